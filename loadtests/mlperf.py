"""MLPerf's LoadGen as a second, independent client: it times the requests, we only send them.

    python -m loadtests.mlperf --url http://localhost:3000 --model digits --samples samples.npz --out out

Scenarios after Reddi et al. 2020, "MLPerf Inference Benchmark": SingleStream sends one after the other,
Server sends at random moments (a Poisson process) and bounds the latency, Offline has all rows at once.
LoadGen's own logs (`mlperf_log_summary.txt`, `mlperf_log_detail.txt`) stay in the folder of each scenario.
"""

from __future__ import annotations

import argparse
import http.client
import json
import queue
import re
import sys
import threading
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import mlperf_loadgen as loadgen
import numpy as np

from loadtests.answers import AnswerError, check_answer, read_answer
from loadtests.authorization import KEY_HELP, take_key
from loadtests.samples import Body, SamplesError, read_samples
from loadtests.schema import LoadGen
from loadtests.targets import GatewayError, Target, offer

SCENARIOS = ("SingleStream", "Server", "Offline")
RESULT = "result.json"
_SUMMARY = "mlperf_log_summary.txt"
_MOST_ROWS = 1000
_SENDERS = {"SingleStream": 1, "Server": 32, "Offline": 16}
# Of fewer than some 660 answers LoadGen will not say that 99 in 100 kept the bound.
_QUERIES = {"SingleStream": 100, "Server": 700, "Offline": 1}
_UNTIMED = -1
# SingleStream and Offline send what LoadGen expects to take the time: too few rows would end too soon.
# It may be faster than while it was warmed up; then it is run again with more.
_MARGINS = (1.5, 3.0, 6.0)
_LINE = re.compile(r"^([^:=]+?)\s*[:=]\s*(.+?)\s*$")
_TIMEOUT_S = 60.0


class Senders:
    """Threads that send what LoadGen issues and tell it when each answer is there."""

    def __init__(self, url: str, target: Target, bodies: Sequence[Body], count: int) -> None:
        self.answered = self.right = self.judged = 0
        self.failure: str | None = None
        self._address, self._target, self._bodies = urlsplit(url), target, bodies
        self._path = self._address.path.rstrip("/") + target.path
        self._waiting: queue.SimpleQueue[tuple[int, int] | None] = queue.SimpleQueue()
        self._counting = threading.Lock()
        self._threads = [threading.Thread(target=self._send) for _ in range(count)]
        for thread in self._threads:
            thread.start()

    def issue(self, samples: Sequence[Any]) -> None:
        """Called by LoadGen; must not wait for answers."""
        for sample in samples:
            self._waiting.put((sample.id, sample.index))

    def stop(self) -> None:
        """Ends the threads."""
        for _ in self._threads:
            self._waiting.put(None)
        for thread in self._threads:
            thread.join()

    def warm_up(self) -> float:
        """Sends the rows once from all threads, untimed by LoadGen; gives the answers per second."""
        started = time.perf_counter()
        for row in range(len(self._bodies)):
            self._waiting.put((_UNTIMED, row))
        while self.answered < len(self._bodies):
            time.sleep(0.01)
        rate = self.answered / (time.perf_counter() - started)
        self.answered = self.right = self.judged = 0
        return rate

    def _send(self) -> None:
        connection = self._connect()
        while (sample := self._waiting.get()) is not None:
            query, row = sample
            choice = self._ask(connection, self._bodies[row])
            if query != _UNTIMED:
                answer = np.array([choice], np.int32)  # LoadGen copies it before the call returns
                loadgen.QuerySamplesComplete(
                    [loadgen.QuerySampleResponse(query, answer.ctypes.data, answer.nbytes)]
                )
        connection.close()

    def _connect(self) -> http.client.HTTPConnection:
        kind = http.client.HTTPSConnection if self._address.scheme == "https" else http.client.HTTPConnection
        return kind(self._address.hostname or "", self._address.port, timeout=_TIMEOUT_S)

    def _ask(self, connection: http.client.HTTPConnection, body: Body) -> int:
        """The class that was answered, -1 for no good answer: LoadGen knows no failures, so we count them."""
        try:
            connection.request("POST", self._path, body.payload, body.headers)
            response = connection.getresponse()
            content = response.read()
            if response.status != http.HTTPStatus.OK:
                raise AnswerError(f"status {response.status}: {content[:300].decode(errors='replace')}")
            answer = read_answer(content, response.headers.get("inference-header-content-length"))
            check_answer(self._target, answer)
        except (AnswerError, OSError, http.client.HTTPException) as error:
            connection.close()  # the next request connects anew
            with self._counting:
                self.failure = self.failure or f"{type(error).__name__}: {error}"
                self.answered += 1
            return -1
        with self._counting:
            self.answered += 1
            self.judged += body.label is not None
            self.right += body.label is not None and answer.choice == body.label
        return answer.choice


def run(
    url: str,
    target: Target,
    bodies: Sequence[Body],
    scenario: str,
    rate: float,
    slo_ms: float,
    seconds: float,
    out: Path,
) -> LoadGen:
    """Runs one scenario and keeps LoadGen's logs below `out`.

    Args:
        url: Base address of the gateway.
        target: What is asked.
        bodies: Its requests.
        scenario: A name in `SCENARIOS`.
        rate: Requests per second of Server.
        slo_ms: The latency that 99 in 100 requests of Server must keep.
        seconds: The least length of the run.
        out: The folder.
    """
    folder = out / scenario.lower()
    folder.mkdir(parents=True, exist_ok=True)
    for margin in _MARGINS:
        senders = Senders(url, target, bodies, _SENDERS[scenario])
        warm = senders.warm_up()
        expected = rate if scenario == "Server" else margin * warm
        _test(senders, len(bodies), _settings(scenario, expected, slo_ms, seconds), folder)
        summary = read_summary((folder / _SUMMARY).read_text())
        if scenario == "Server" or summary.get("Min duration satisfied") != "NO":
            break
    summary["requests answered"] = str(senders.answered)
    if senders.judged:
        summary["accuracy of the answers"] = f"{senders.right / senders.judged:.4f}"
    if senders.failure:
        summary["first failure"] = senders.failure
    valid = summary.get("Result is", "") == "VALID" and senders.failure is None
    return {
        "scenario": scenario, "target": target.label, "valid": valid, "summary": summary, "logs": str(folder),
    }  # fmt: skip


def _test(senders: Senders, rows: int, settings: Any, folder: Path) -> None:
    """Has LoadGen drive the senders once."""
    sut = loadgen.ConstructSUT(senders.issue, lambda: None)
    qsl = loadgen.ConstructQSL(rows, rows, lambda loaded: None, lambda unloaded: None)
    try:
        loadgen.StartTestWithLogSettings(sut, qsl, settings, _logs(folder))
    finally:
        senders.stop()
        loadgen.DestroyQSL(qsl)
        loadgen.DestroySUT(sut)


def read_summary(text: str) -> dict[str, str]:
    """LoadGen's summary by name."""
    return {
        m[1].strip(): m[2] for line in text.splitlines() if (m := _LINE.match(line)) and "====" not in line
    }


def _settings(scenario: str, rate: float, slo_ms: float, seconds: float) -> Any:
    settings = loadgen.TestSettings()
    settings.scenario = getattr(loadgen.TestScenario, scenario)
    settings.mode = loadgen.TestMode.PerformanceOnly
    settings.min_duration_ms = int(seconds * 1000)
    settings.min_query_count = _QUERIES[scenario]
    settings.server_target_qps = rate
    settings.server_target_latency_ns = int(slo_ms * 1e6)
    settings.server_target_latency_percentile = 0.99
    settings.offline_expected_qps = rate
    settings.single_stream_expected_latency_ns = int(1e9 / rate)
    return settings


def _logs(folder: Path) -> Any:
    output = loadgen.LogOutputSettings()
    output.outdir = str(folder)
    output.copy_summary_to_stdout = False
    logs = loadgen.LogSettings()
    logs.log_output = output
    logs.enable_trace = False
    return logs


def main(arguments: Sequence[str] | None = None) -> int:
    """Runs the scenarios; ends with 1 when LoadGen calls one invalid."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.mlperf", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument("--url", required=True, help="base address of the gateway")
    parser.add_argument("--key", help=KEY_HELP)
    parser.add_argument("--model", required=True, help="the model's name")
    parser.add_argument("--samples", required=True, type=Path, help="labelled rows: the model's samples.npz")
    parser.add_argument("--target", help="such as tier:fast or variant:int8-static (the first tier)")
    parser.add_argument("--scenario", nargs="+", choices=SCENARIOS, default=SCENARIOS, help="all of them")
    parser.add_argument("--rate", type=float, default=100.0, help="requests per second of Server (100)")
    parser.add_argument("--slo-ms", type=float, default=50.0, help="latency bound of Server, ms (50)")
    parser.add_argument("--seconds", type=float, default=5.0, help="least length of each scenario (5)")
    parser.add_argument("--binary", action="store_true", help="send binary tensors instead of JSON")
    parser.add_argument("--out", required=True, type=Path, help="folder for the logs and result.json")
    options = parser.parse_args(arguments)
    take_key(options.key)
    try:
        samples = read_samples(options.samples)
        targets = {target.label: target for target in offer(options.url, options.model).targets()}
    except (GatewayError, SamplesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    if options.target and options.target not in targets:
        parser.error(f"unknown target {options.target}; the gateway offers {', '.join(targets)}")
    target = targets[options.target] if options.target else next(iter(targets.values()))
    rows = range(min(samples.rows, _MOST_ROWS))
    results = []
    for scenario in options.scenario:
        # Only Server has a bound on latency; the others ask how fast it can be.
        parameters = target.parameters(unhurried=scenario != "Server")
        bodies = [samples.body(row, parameters, binary=options.binary) for row in rows]
        made = run(
            options.url, target, bodies, scenario, options.rate, options.slo_ms, options.seconds, options.out
        )
        print(
            f"{scenario}: {'valid' if made['valid'] else 'NOT VALID'}; logs in {made['logs']}",
            file=sys.stderr,
        )
        results.append(made)
    (options.out / RESULT).write_text(json.dumps(results, indent=2) + "\n")
    return 0 if all(made["valid"] for made in results) else 1


if __name__ == "__main__":
    sys.exit(main())
