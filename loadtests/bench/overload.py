"""Overload: an open loop of Poisson arrivals at 0.5 to 3 times the FP32 capacity, under four policies."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import numpy as np
import orjson

from loadtests.bench.arithmetic import Outcome
from loadtests.bench.arrivals import Ask, best_possible, due_times, mix
from loadtests.bench.checking import check
from loadtests.bench.open_loop import ANSWERS, EVENTS, PLAN
from loadtests.bench.processes import Peer, Server
from loadtests.bench.requests import Array, Request, Wire, v2_binary
from loadtests.bench.servers import GATEWAY, gateway, with_key
from loadtests.bench.stage import Contender, Settings, Stage, turned
from loadtests.bench.subject import Subject, best_row_ms

LOADS = (0.5, 1.0, 2.0, 3.0)
FP32, FASTEST, FIXED = "always fp32", "always fastest", "fixed tiers"
POLICIES = (FP32, FASTEST, FIXED, GATEWAY)
_OPEN_FACTOR = 2
_CAPACITY_CONNECTIONS = 16
_CAPACITY_RUNS = 3
_CONNECTIONS = 64
_PATIENCE_S = 10.0
_OK, _REFUSED, _TOO_LATE = 200, 503, 504


class OpenLoopError(Exception):
    """The open-loop client ended with an error."""


@dataclass(frozen=True)
class _Plan:
    """One open loop: when each request is due, what it asks, and for which row."""

    due_s: Array
    asked: Array
    rows: Array
    seconds: float


def load_name(load: float) -> str:
    """`2x`: the name of a case in the record."""
    return f"{load:g}x"


def measure(settings: Settings, subject: Subject, stage: Stage) -> dict[str, Any]:
    """Measures the capacity of FP32, then every policy at every load."""
    asks = mix(subject.document)
    fastest = min(subject.variants, key=lambda name: best_row_ms(subject.variants[name]))
    record: dict[str, Any] = {
        "model": subject.model,
        "reference": subject.reference,
        "fastest": fastest,
        "mix": [asdict(each) for each in asks],
        "best_possible_per_s": best_possible(asks, subject.variants),
        "holes": stage.holes,
        "busy_with_other_work": stage.busy,
        "rounds": [],
    }

    def probe(_: Peer) -> Request:
        return subject.pinned(subject.reference)["binary"].requests(subject.some(1))[0]

    server = stage.start(GATEWAY, lambda folder: gateway(folder, subject.model), probe)
    if server is None:
        return record
    wires = {policy: [_wire(policy, each, subject, fastest) for each in asks] for policy in POLICIES}
    for policy, asked in wires.items():
        with stage.checking(policy, server):
            for wire in asked:
                check(server, wire, subject.some(min(settings.rows, 8)), None)
    capacity = _capacity(settings, subject, server)
    record["fp32_capacity_per_s"] = capacity
    for number in range(settings.rounds):
        stage.look()
        settings.progress(f"overload: round {number + 1} of {settings.rounds}")
        record["rounds"].append(
            {
                load_name(load): _at_load(
                    load * capacity, number, settings, subject, stage, server, wires, asks
                )
                for load in LOADS
            }
        )
    return record


def _wire(policy: str, each: Ask, subject: Subject, fastest: str) -> Wire:
    """How a policy puts a request. Pinned variants answer whatever the floor; the deadline is the tier's."""
    parameters: dict[str, str | int] = {"tier": each.tier}
    if policy == GATEWAY and each.allows_degrade:
        parameters["allow_degrade"] = True
    versions = {FP32: f"/versions/{subject.reference}", FASTEST: f"/versions/{fastest}"}
    return v2_binary(f"/v2/models/{subject.model}{versions.get(policy, '')}/infer", with_key(parameters))


def _capacity(settings: Settings, subject: Subject, server: Server) -> float:
    """Requests per second of FP32 when there is always another waiting."""
    path = f"/v2/models/{subject.model}/versions/{subject.reference}/infer"
    wire = v2_binary(path, with_key({"max_latency_ms": 60_000}))
    contender = Contender(server, wire.requests(subject.some(settings.rows)))
    runs = [contender.run(_CAPACITY_CONNECTIONS, settings.seconds) for _ in range(_CAPACITY_RUNS)]
    return median(run.requests_per_s for run in runs if run is not None)


def _at_load(
    rate: float,
    number: int,
    settings: Settings,
    subject: Subject,
    stage: Stage,
    server: Server,
    wires: Mapping[str, list[Wire]],
    asks: list[Ask],
) -> dict[str, dict[str, Any] | None]:
    """Every policy on the same arrivals."""
    draw = np.random.default_rng([number, round(rate)])
    seconds = float(settings.seconds * _OPEN_FACTOR)
    due_s = due_times(rate, seconds, draw)
    rows = min(subject.samples.rows, settings.rows)
    plan = _Plan(due_s, draw.integers(0, len(asks), len(due_s)), draw.integers(0, rows, len(due_s)), seconds)
    outcomes: dict[str, dict[str, Any] | None] = dict.fromkeys(POLICIES)
    for policy in turned(POLICIES, number):
        if policy in stage.holes:
            continue
        requests = [wire.requests(subject.some(rows)) for wire in wires[policy]]
        with server.awake(), tempfile.TemporaryDirectory(prefix="mipgate-bench-") as name:
            _run_client(Path(name), server.port, plan, requests)
            outcome = _judge(Path(name), plan, asks, subject, wires[policy][0])
        outcomes[policy] = asdict(outcome)
    return outcomes


def _run_client(folder: Path, port: int, plan: _Plan, requests: list[list[Request]]) -> None:
    rows = len(requests[0])
    payloads = [request.http1(port) for each in requests for request in each]
    np.savez(
        folder / PLAN,
        port=port,
        connections=_CONNECTIONS,
        patience_s=_PATIENCE_S,
        due_s=plan.due_s,
        which=plan.asked * rows + plan.rows,
        ends=np.cumsum([len(payload) for payload in payloads], dtype=np.int64),
        blob=np.frombuffer(b"".join(payloads), np.uint8),
    )
    command = [sys.executable, "-m", "loadtests.bench.open_loop", str(folder)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise OpenLoopError(f"the open-loop client ended with {done.returncode}: {done.stderr[-500:]}")


def _judge(folder: Path, plan: _Plan, asks: list[Ask], subject: Subject, wire: Wire) -> Outcome:
    with np.load(folder / EVENTS, allow_pickle=False) as events:
        told = {name: events[name] for name in events.files}
    deadlines_s = np.asarray([each.deadline_ms for each in asks])[plan.asked] / 1e3
    correct = np.zeros(len(plan.due_s), bool)
    degraded = np.zeros(len(plan.due_s), bool)
    answers = (folder / ANSWERS).read_bytes()
    begin = 0
    for number, length, end in zip(told["answered"], told["header_length"], told["ends"], strict=True):
        body, begin = answers[begin:end], int(end)
        if told["status"][number] == _OK:
            choice, degraded[number] = _read(wire, body, int(length))
            labels = subject.samples.labels
            correct[number] = labels is not None and choice == labels[plan.rows[number]]
    return judge(plan.due_s, deadlines_s, told, correct, degraded, plan.seconds)


def _read(wire: Wire, body: bytes, header_length: int) -> tuple[int, bool]:
    headers = {"inference-header-content-length": str(header_length)} if header_length >= 0 else {}
    assert wire.read is not None
    said = orjson.loads(body[:header_length] if header_length >= 0 else body)
    return int(wire.read(body, headers).argmax()), bool(said["parameters"]["degraded"])


def judge(
    due_s: Array,
    deadlines_s: Array,
    events: Mapping[str, Array],
    correct: Array,
    degraded: Array,
    seconds: float,
) -> Outcome:
    """What came of an open loop, counted from when requests were due.

    Args:
        due_s: When each was due `(requests,)`.
        deadlines_s: How much time each gave.
        events: `sent_s`, `done_s` (NaN for never) and `status` (0 for none) of each.
        correct: Whether its answer is right.
        degraded: Whether its answer is below its floor.
        seconds: Length of the time in which they were due.
    """
    latency_s = events["done_s"] - due_s
    ok = events["status"] == _OK
    in_time = ok & (latency_s <= deadlines_s)
    rejected = events["status"] == _REFUSED
    late = (ok & ~in_time) | (events["status"] == _TOO_LATE) | (events["status"] == 0)
    answered_ms = latency_s[ok] * 1e3
    sent = ~np.isnan(events["sent_s"])
    lag_ms = (events["sent_s"][sent] - due_s[sent]) * 1e3
    p50, p99 = np.percentile(answered_ms, (50, 99)) if ok.any() else (None, None)
    return Outcome(
        offered=len(due_s),
        seconds=seconds,
        in_time=int(in_time.sum()),
        late=int(late.sum()),
        rejected=int(rejected.sum()),
        failed=int((~ok & ~rejected & ~late).sum()),
        degraded=int((degraded & in_time).sum()),
        correct=int((correct & in_time).sum()),
        p50_ms=None if p50 is None else float(p50),
        p99_ms=None if p99 is None else float(p99),
        client_lag_ms=float(np.percentile(lag_ms, 99)) if sent.any() else float("inf"),
    )
