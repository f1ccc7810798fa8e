"""Locust's master: shares a schedule among worker processes and gathers what they saw.

Importing this patches the process for gevent.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import gevent
import psutil
from gevent.event import Event
from locust.env import Environment

from loadtests import worker
from loadtests.resources import Meter, gateway_processes
from loadtests.samples import Samples
from loadtests.schedule import Schedule
from loadtests.tally import Load, Tally, tally_of
from loadtests.targets import Target

MOST_OPEN = 2000
_WORKERS_WITHIN_S = 30.0
_PREPARED_WITHIN_S = 120.0
_ANSWERED_WITHIN_S = 90.0
_LEAD_S = 0.2
_GONE_WITHIN_S = 5.0
_WORKER_FILE = Path(str(worker.__file__))


class CrewError(Exception):
    """Workers are missing or broke; the message says what to do."""


@dataclass(frozen=True, slots=True)
class Sending:
    """How workers send.

    Attributes:
        url: Base address of the gateway.
        binary: Send binary tensors instead of JSON.
        allow_degrade: Let the gateway answer below a tier's floor.
    """

    url: str
    binary: bool
    allow_degrade: bool


class Crew:
    """A Locust master and its workers."""

    def __init__(self, workers: int, samples: Samples, bind: str = "127.0.0.1", port: int = 0) -> None:
        self.port = port or _free_port()
        self.workers = workers
        self._samples = samples
        self._environment = Environment(user_classes=[worker.Player])
        self._runner: Any = self._environment.create_master_runner(bind, self.port)
        self._done = Event()
        self._prepared = 0
        self._parts: list[dict[str, Any]] = []
        self._refusals: list[str] = []
        for name in ("prepared", "played", "refused"):
            self._runner.register_message(name, getattr(self, f"_{name}_by"))

    def close(self) -> None:
        """Sends the workers home."""
        self._runner.quit()

    def wait(self, within_s: float | None = _WORKERS_WITHIN_S) -> None:
        """Waits for the workers and starts a user on each.

        Raises:
            CrewError: Some did not come.
        """
        end = None if within_s is None else time.monotonic() + within_s
        while self._runner.worker_count < self.workers:
            if end is not None and time.monotonic() > end:
                raise CrewError(
                    f"{self._runner.worker_count} of {self.workers} load generators started within "
                    f"{within_s:g} s. Read what they printed above."
                )
            gevent.sleep(0.02)
        self._runner.start(self.workers, spawn_rate=self.workers)

    def play(self, schedule: Schedule, targets: list[Target], sending: Sending) -> Load:
        """Sends a schedule, shared among the workers, and measures the gateway meanwhile.

        Raises:
            CrewError: A worker refused or was lost.
        """
        self._prepared, self._parts = 0, []
        common = {
            "url": sending.url,
            "binary": sending.binary,
            "allow_degrade": sending.allow_degrade,
            "most_open": max(1, MOST_OPEN // self.workers),
            "rows_there": self._samples.rows,
            "asked": [
                {"model": t.model, "kind": t.kind, "name": t.name, "unfit": dict(t.unfit)} for t in targets
            ],
        }
        for place, client in enumerate(list(self._runner.clients.keys())[: self.workers]):
            share = schedule.share(place, self.workers).message()
            self._runner.send_message("prepare", common | share, client_id=client)
        self._wait_until(lambda: self._prepared == self.workers, _PREPARED_WITHIN_S)
        meter = Meter(gateway_processes(sending.url))
        psutil.cpu_percent()
        self._runner.send_message("play", {"begin": time.time() + _LEAD_S})
        gevent.sleep(_LEAD_S + schedule.seconds)
        usage, machine_cpu = meter.stop(), psutil.cpu_percent() / 100
        self._wait_until(lambda: len(self._parts) == self.workers, _ANSWERED_WITHIN_S)
        tally = tally_of(self._parts)
        busiest = max(part["cpu"] for part in self._parts)
        return Load(tally, _seconds(schedule, tally), busiest, machine_cpu, usage, schedule.digest)

    def _wait_until(self, done: Any, within_s: float) -> None:
        end = time.monotonic() + within_s
        while not done():
            self._done.clear()
            if self._refusals:
                raise CrewError(self._refusals[0])
            if self._runner.worker_count < self.workers or time.monotonic() > end:
                raise CrewError("a load generator was lost. Read what it printed above, and run again.")
            self._done.wait(0.2)

    def _prepared_by(self, environment: Any, msg: Any, **_: Any) -> None:
        self._prepared += 1
        self._done.set()

    def _played_by(self, environment: Any, msg: Any, **_: Any) -> None:
        self._parts.append(msg.data)
        self._done.set()

    def _refused_by(self, environment: Any, msg: Any, **_: Any) -> None:
        self._refusals.append(msg.data["reason"])
        self._done.set()


@contextmanager
def local_crew(processes: int, samples: Samples, path: Path) -> Iterator[Crew]:
    """A crew whose workers are processes of this machine.

    Raises:
        CrewError: They did not start.
    """
    crew = Crew(processes, samples)
    command = worker_command("127.0.0.1", crew.port, path)
    started = [
        subprocess.Popen(command, env=worker_environment(), stdout=sys.stderr) for _ in range(processes)
    ]
    try:
        crew.wait()
        yield crew
    finally:
        crew.close()
        for process in started:
            try:
                process.wait(_GONE_WITHIN_S)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()


def worker_command(host: str, port: int, samples: Path) -> list[str]:
    """The command of one worker: Locust's own."""
    command = [sys.executable, "-m", "locust", "-f", str(_WORKER_FILE), "--worker"]
    command += ["--master-host", host, "--master-port", str(port), "--samples", str(samples)]
    return [*command, "--loglevel", "WARNING"]


def worker_environment() -> dict[str, str]:
    """Timers of gevent's usual backend fire a millisecond late; `select` has microseconds."""
    return os.environ | {"GEVENT_BACKEND": os.environ.get("GEVENT_BACKEND", "select")}


def _seconds(schedule: Schedule, tally: Tally) -> float:
    """From the start to the last good answer: what comes late is no throughput of the planned time."""
    rows = tally.rows
    good = rows[rows["good"]]
    last = float((good["at_s"] + good["latency_ms"] / 1000).max()) if len(good) else 0.0
    return max(schedule.seconds, last)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
