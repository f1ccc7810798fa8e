"""`make drill`: things go wrong on this machine, and Prometheus raises what docs/operations.md promises.

    python -m deploy.ops.drill --prometheus /usr/bin/prometheus

A gateway with two workers serves a model of its own, from a store of its own, under a steady load. A worker
is killed, the load triples, a variant is damaged on disk and the load triples again; then the variant is
made anew. The rules are those of `deploy/prometheus`, their times a thirtieth: two minutes stand for an hour.
Ends with status 1 when an alert was raised that is not promised, or a promised one was not.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
from rich.console import Console
from rich.table import Table

from deploy.ops.local import BIN, GatewayError, free_port, running_gateway
from deploy.ops.prometheus import Prometheus, running_prometheus

_MODEL, _SIDE = "drill", 64
_FAST = "int8-static"
_FASTER = 30
_WORKERS = 2
_CALM_SHARE = 0.4  # of what the reference alone can do here
_MEASURED_S = 8
_BACK_WITHIN_S = 60.0
_NARROWEST = 140
_WORKER = "_bentoml_impl.worker.service"


@dataclass(frozen=True)
class _Act:
    """One thing that happens.

    Attributes:
        name: What happens, as the table tells it.
        begin: Makes it happen.
        seconds: How long it goes on.
        promised: The alerts that must fire at its end, and nothing else may fire in it anew.
        tripled: Whether the load is three times as high.
    """

    name: str
    begin: Callable[[], None]
    seconds: float
    promised: frozenset[str]
    tripled: bool = False


class _Drill:
    """The gateway under trial, and what can be done to it."""

    def __init__(self, server: subprocess.Popen[bytes], url: str, store: Path, folder: Path) -> None:
        self._server, self._url, self._store, self._folder = server, url, store, folder
        self._loads = 0
        self._rate = _CALM_SHARE * self._capacity()

    def acts(self) -> list[_Act]:
        """What happens, in order."""
        refused = frozenset({"VariantRefused"})
        burns = frozenset({"ErrorBudgetBurnsFast", "ErrorBudgetBurnsSlowly"})
        return [
            _Act("the usual load", _nothing, 30, frozenset()),
            _Act("a worker is killed", self.kill_a_worker, 30, frozenset()),
            _Act("the load triples", _nothing, 40, frozenset(), tripled=True),
            _Act(f"{_FAST} is damaged, and workers start anew", self.damage, 30, refused),
            _Act("the load triples without it", _nothing, 90, refused | burns, tripled=True),
            _Act(f"{_FAST} is built anew", self.build, 90, frozenset()),
        ]

    def _capacity(self) -> float:
        """Requests per second that the reference answers, asked by as many clients as keep it busy."""
        out = self._folder / "capacity"
        command = ["compare", _MODEL, "--url", self._url, "--out", str(out), "--target", "variant:fp32"]
        _mipgate(*command, "--users", "16", "--seconds", str(_MEASURED_S), "--binary")
        (target,) = json.loads((out / "report.json").read_text())["targets"]
        return float(target["requests_per_s"])

    @contextmanager
    def load(self, seconds: float, *, tripled: bool = False) -> Iterator[None]:
        """Sends requests of all tiers at random moments, whatever the answers, for as long at least."""
        times = 3 if tripled else 1
        self._loads += 1
        out = self._folder / f"load-{self._loads}"
        command = [str(BIN / "mipgate"), "compare", _MODEL, "--url", self._url, "--out", str(out)]
        command += ["--target", "mix", "--shape", "poisson", "--rate", f"{times * self._rate:.1f}"]
        command += ["--seconds", f"{seconds:g}", "--allow-degrade", "--binary", "--seed", str(self._loads)]
        with (self._folder / f"{out.name}.log").open("wb") as log:
            sending = subprocess.Popen(command, stdout=log, stderr=log)
            try:
                yield
                sending.wait(120)
            finally:
                sending.kill()
        if not (out / "report.json").is_file():
            raise GatewayError(
                f"the load was not sent: {(self._folder / f'{out.name}.log').read_text()[-800:]}"
            )

    def kill_a_worker(self) -> None:
        """Kills one as the kernel would, and waits until another has taken its place."""
        self._kill(self._workers()[0])

    def _kill(self, worker: psutil.Process) -> None:
        worker.kill()
        worker.wait(10)
        self._wait_for(lambda: len(self._workers()) == _WORKERS)

    def damage(self) -> None:
        """Changes a byte of the fast variant's file; who opens it from now on refuses it."""
        (path,) = self._store.glob(f"models/{_MODEL}.{_FAST}/*/model.onnx")
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 0xFF
        path.chmod(0o644)
        path.unlink()  # whoever has mapped the old file keeps it
        path.write_bytes(content)
        for worker in self._workers():
            self._kill(worker)

    def build(self) -> None:
        """What the runbook says to do about it."""
        _mipgate("build", _MODEL, "--recipe", _FAST, "--quiet")

    def _workers(self) -> list[psutil.Process]:
        found = []
        for child in psutil.Process(self._server.pid).children(recursive=True):
            try:
                if _WORKER in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                pass  # it ended meanwhile
        return found

    def _wait_for(self, condition: Callable[[], bool]) -> None:
        end = time.monotonic() + _BACK_WITHIN_S
        while not condition():
            if time.monotonic() > end:
                raise GatewayError("the killed worker was not started again")
            time.sleep(0.2)


def _nothing() -> None:
    pass


def _mipgate(*arguments: str) -> str:
    return _run([str(BIN / "mipgate"), *arguments])


def _run(command: list[str]) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)} fails: {done.stderr.strip()[-800:]}")
    return done.stdout


def _play(drill: _Drill, prometheus: Prometheus, console: Console) -> bool:
    """Lets everything happen; whether exactly what is promised was raised."""
    table = Table("what happens", "promised", "raised", "still firing at its end", "", title="Alerts")
    good, standing = True, dict[str, str]()
    for act in drill.acts():
        console.print(f"{act.name} ...")
        raised = dict(standing)
        act.begin()
        with drill.load(act.seconds, tripled=act.tripled):
            end = time.monotonic() + act.seconds
            while time.monotonic() < end:
                time.sleep(1)
                raised |= prometheus.alerts()
            last = prometheus.alerts()
        said = raised | last
        unpromised = said.keys() - act.promised - standing.keys()
        for alert in sorted(unpromised):
            console.print(f"  {alert} was not promised: {said[alert]}")
        fine = last.keys() == act.promised and not unpromised
        table.add_row(
            act.name, *map(_listed, (act.promised, raised, last)), "as promised" if fine else "NOT SO"
        )
        good, standing = good and fine, last
    console.print(table)
    return good


def _listed(alerts: Iterable[str]) -> str:
    return ", ".join(sorted(alerts)) or "none"


def main() -> None:
    """Makes the model, starts everything, lets it go wrong, and tells what was raised."""
    parser = argparse.ArgumentParser(description="Let things go wrong, and see which alerts are raised.")
    parser.add_argument("--prometheus", type=Path, required=True, help="the program `prometheus`")
    given = parser.parse_args()
    console = Console()
    console.width = max(console.width, _NARROWEST)
    with tempfile.TemporaryDirectory(prefix="mipgate-drill-") as name:
        folder = Path(name)
        store = folder / "bentoml"
        os.environ |= {"MIPGATE_HOME": str(folder / "mipgate"), "BENTOML_HOME": str(store)}
        console.print(f"building {_MODEL}: fp32 and {_FAST} ...")
        _run(
            [sys.executable, "-m", "loadtests.bench.resnet", f"{name}/m.onnx", f"{name}/rows.npz", str(_SIDE)]
        )
        _mipgate("add", f"{name}/m.onnx", "--data", f"{name}/rows.npz", "--name", _MODEL, "--no-build")
        _mipgate("build", _MODEL, "--recipe", "fp32", "--recipe", _FAST, "--quiet")
        port = free_port()
        settings = {"MIPGATE_WORKERS": str(_WORKERS)}
        try:
            with (
                running_gateway(port, folder / "gateway.log", settings) as server,
                running_prometheus(
                    given.prometheus, free_port(), [f"127.0.0.1:{port}"], folder, faster=_FASTER
                ) as prometheus,
            ):
                drill = _Drill(server, f"http://127.0.0.1:{port}", store, folder)
                sys.exit(0 if _play(drill, prometheus, console) else 1)
        except GatewayError as error:
            sys.exit(str(error))


if __name__ == "__main__":
    main()
