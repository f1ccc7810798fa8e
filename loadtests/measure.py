"""Runs Locust in this process: a pass over the test split, and a load for a while, for one target each.

Importing this patches the process for gevent.
"""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import gevent
import psutil
from gevent.pool import Pool
from locust.contrib.fasthttp import FastHttpSession
from locust.env import Environment

from loadtests.resources import Meter, gateway_processes
from loadtests.samples import Samples
from loadtests.tally import Load, Measurement, Tally
from loadtests.targets import Target
from loadtests.users import ask, user_class

_WARM_UP_S = 0.5
_POLL_S = 0.01
_STOP_TIMEOUT_S = 10.0


@dataclass(frozen=True, slots=True)
class Settings:
    """How to measure.

    Attributes:
        url: Base address of the gateway.
        seconds: Length of each load.
        users: Requests in flight at a time.
        binary: Send binary tensors instead of JSON.
    """

    url: str
    seconds: float
    users: int
    binary: bool


def measure_pass(settings: Settings, target: Target, samples: Samples) -> Tally:
    """Sends each row of the test split once, many at a time, without a tier's deadline."""
    bodies = samples.bodies(target.parameters(unhurried=True), binary=settings.binary)
    tally = Tally()
    rows = iter(bodies)

    request_event = Environment().events.request

    def work() -> None:
        session = FastHttpSession(
            settings.url, request_event, None, network_timeout=90.0, connection_timeout=10.0
        )
        for body in rows:  # shared: each greenlet takes the next
            ask(session, target, body, tally)

    pool = Pool(settings.users)
    for _ in range(settings.users):
        pool.spawn(work)
    pool.join(raise_error=True)
    return tally


def measure_load(settings: Settings, target: Target, samples: Samples) -> Load:
    """Sends random rows from `users` users at once for `seconds`, each waiting for its answer."""
    tally, window = Tally(), _Window()
    server = gateway_processes(settings.url)  # looking for them takes long: not while answers count
    bodies = samples.bodies(target.parameters(), binary=settings.binary)
    cls = user_class(target, bodies, tally, measuring=staticmethod(window.is_open))
    environment = Environment(user_classes=[cls], host=settings.url, stop_timeout=_STOP_TIMEOUT_S)
    runner = environment.create_local_runner()
    try:
        runner.start(settings.users, spawn_rate=settings.users)
        while runner.user_count < settings.users:
            gevent.sleep(_POLL_S)
        gevent.sleep(_WARM_UP_S)
        opened = window.open()
        meter = Meter(server)
        gevent.sleep(settings.seconds)
        seconds, client_cpu, machine_cpu = window.close()
        usage = meter.stop()
    finally:
        runner.quit()
    # Answers count by their end: what was sent before the window opened belongs to its first moment.
    tally.requests = [(max(0.0, row[0] - opened), 0.0, *row[2:]) for row in tally.requests]
    return Load(tally, seconds, client_cpu, machine_cpu, usage)


class _Window:
    """The time in which answers count, and how busy this process and this machine were in it."""

    def __init__(self) -> None:
        self._opened: tuple[float, float] | None = None

    def is_open(self) -> bool:
        return self._opened is not None

    def open(self) -> float:
        """Gives the moment, on `time.perf_counter`."""
        psutil.cpu_percent()
        self._opened = time.perf_counter(), time.process_time()
        return self._opened[0]

    def close(self) -> tuple[float, float, float]:
        """Seconds that it was open; the share of one processor used here, and of all on this machine."""
        assert self._opened is not None
        opened, self._opened = self._opened, None
        seconds = time.perf_counter() - opened[0]
        return seconds, (time.process_time() - opened[1]) / seconds, psutil.cpu_percent() / 100


def measure(
    settings: Settings,
    targets: list[Target],
    passes: list[Target],
    samples: Samples,
    progress: Callable[[str], None],
) -> list[Measurement]:
    """First one pass over the test split per target, then one load per target.

    Args:
        settings: How to measure.
        targets: What to load.
        passes: What to send the test split to: the targets, and the reference.
        samples: The labelled test split.
        progress: Told of each step.
    """
    tallies = measure_passes(settings, passes, samples, progress)
    loads: dict[Target, Load] = {}
    for step, target in enumerate(targets, 1):
        progress(f"[{step}/{len(targets)}] {target.label}: {settings.users} users for {settings.seconds:g} s")
        loads[target] = measure_load(settings, target, samples)
    return [Measurement(target, tallies[target], loads.get(target)) for target in passes]


def measure_passes(
    settings: Settings, targets: list[Target], samples: Samples, progress: Callable[[str], None]
) -> dict[Target, Tally]:
    """One pass over the test split per target.

    Args:
        settings: How to measure.
        targets: What to send the test split to.
        samples: The labelled test split.
        progress: Told of each step.
    """
    tallies: dict[Target, Tally] = {}
    for step, target in enumerate(targets, 1):
        progress(f"[{step}/{len(targets)}] {target.label}: {samples.rows} rows of the test split")
        tallies[target] = measure_pass(settings, target, samples)
    return tallies
