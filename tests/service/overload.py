"""Overload in virtual time: the real router and queues, a device that takes what a profile says, and chance.

`python -m tests.service.overload` prints goodput, misses and quality by policy and load. It tells what the
policy is worth without a machine's noise; `make bench` tells what is left of it on a machine.
"""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np

from service.breaker import Breaker
from service.errors import ServiceError
from service.pace import DevicePace
from service.queues import Backlog, Job, Priority
from service.router import Router
from service.routing import Candidate, Slo, work_ms
from variants.serving_spec import TierSpec

# Milliseconds of a batch of 1 and of 32 rows, and quality over the reference's: a small network of pictures.
PYRAMID = {
    "fp32": (2.0, 48.0, 1.0),
    "int8": (1.0, 18.0, 0.997),
    "pruned-int8": (0.6, 9.0, 0.985),
    "distilled-int8": (0.3, 4.5, 0.962),
}
TIERS = (TierSpec("accurate", 0.999, 200), TierSpec("balanced", 0.99, 100), TierSpec("fast", 0.97, 50))
DEGRADE_FLOOR = 0.95
MOST_ROWS = 32


class Variant:
    """Stands for a loaded variant: it takes what its profile says, times the host's slowness and chance."""

    is_open = True

    def __init__(self, name: str, first_ms: float, most_ms: float, ratio: float) -> None:
        self.key = self.version = self.name = name
        self.max_batch_rows = MOST_ROWS
        self._first, self._slope = first_ms, (most_ms - first_ms) / (MOST_ROWS - 1)
        self.breaker = Breaker()
        self.candidate = Candidate(name, name, ratio, self.predict_ms, self.predict_ms)

    def predict_ms(self, rows: int) -> float:
        return self._first + self._slope * (rows - 1)

    profiled_ms = predict_ms

    def shape_key(self, inputs: Any) -> None:
        return None


class Model(SimpleNamespace):
    """Stands for a loaded model, and is known by its identity as that is."""

    __hash__ = object.__hash__


@dataclass
class Counts:
    """What became of the offered requests."""

    offered: int = 0
    in_time: int = 0
    late: int = 0
    refused: int = 0
    degraded: int = 0
    quality: float = 0.0
    steps: list[int] = field(default_factory=list)

    @property
    def missed_share(self) -> float:
        """Late and refused, over what was offered."""
        return (self.late + self.refused) / self.offered

    @property
    def late_share(self) -> float:
        """Late, over what was admitted."""
        return self.late / max(1, self.offered - self.refused)


class Device:
    """The scheduler's decisions, in virtual time."""

    def __init__(self, counts: Counts, chance: random.Random, pace: DevicePace, jitter: float) -> None:
        self.now = 0.0
        self.free_at = 0.0
        self.backlog: Backlog[Any] = Backlog(lambda: pace.margin)
        self._counts, self._chance, self._jitter = counts, chance, jitter
        self._number = 0

    def clock(self) -> float:
        return self.now

    def wait_ms(self) -> float:
        return self.backlog.work_ms() + max(0.0, self.free_at - self.now) * 1e3

    def completion_ms(
        self, variant: Any, inputs: Any, rows: int, deadline: float, priority: Priority
    ) -> float:
        free_at = max(self.now, self.free_at)
        done = self.backlog.forecast((variant.key, priority), variant, priority, rows, deadline, free_at)
        return (done - self.now) * 1e3

    def submit(self, variant: Any, rows: int, deadline: float, priority: Priority, asked: Any) -> None:
        self._number += 1
        job = Job(deadline, self._number, rows, deadline, {}, 0, self.now, asked)
        self.backlog.push((variant.key, priority), variant, priority, job)

    def advance(self, until: float) -> None:
        """Runs batches as the device gets free."""
        while self.backlog.queues and max(self.now, self.free_at) <= until:
            self.now = max(self.now, self.free_at)
            batch = self.backlog.next_batch(self.now)
            assert batch is not None
            variant, _, jobs = batch
            alive = [job for job in jobs if job.deadline >= self.now]
            self._counts.late += len(jobs) - len(alive)
            if not alive:
                continue
            took_ms = variant.predict_ms(sum(job.rows for job in alive))
            self.free_at = self.now + took_ms / 1e3 * self._chance.lognormvariate(0, self._jitter)
            for job in alive:
                if self.free_at <= job.deadline:
                    self._counts.in_time += 1
                    self._counts.quality += variant.candidate.ratio  # type: ignore[attr-defined]
                else:
                    self._counts.late += 1
        self.now = until


Policy = Callable[[Slo, dict[str, Variant]], str | None]  # the variant that is pinned, or None to route
POLICIES: dict[str, Policy] = {
    "always fp32": lambda slo, variants: "fp32",
    "always fastest": lambda slo, variants: "distilled-int8",
    "fixed tiers": lambda slo, variants: (
        min(
            (v for v in variants.values() if v.candidate.ratio >= slo.floor), key=lambda v: v.predict_ms(8)
        ).name
    ),
    "mipgate": lambda slo, variants: None,
}


def mix(chance: random.Random) -> Slo:
    """A tier at random; half of the requests allow degrading."""
    tier = chance.choice(TIERS)
    floor = DEGRADE_FLOOR if chance.random() < 0.5 else None
    return Slo(tier, tier.min_quality_ratio, tier.deadline_ms, floor)


def capacity(name: str = "fp32") -> float:
    """Rows per second that a variant alone does in full batches."""
    return MOST_ROWS / Variant(name, *PYRAMID[name]).predict_ms(MOST_ROWS) * 1e3


def best_possible(seed: int = 0) -> float:
    """Rows per second of the mix when each goes to the cheapest variant that its lowest floor allows."""
    chance, variants = random.Random(seed), [Variant(name, *terms) for name, terms in PYRAMID.items()]
    costs = []
    for _ in range(3000):
        slo = mix(chance)
        floor = slo.floor if slo.degraded_floor is None else slo.degraded_floor
        costs.append(
            min(work_ms(v.candidate, slo.deadline_ms) for v in variants if v.candidate.ratio >= floor)
        )
    return 1e3 / float(np.mean(costs))


def simulate(policy: str, rate: float, seconds: float = 10.0, seed: int = 0, jitter: float = 0.05) -> Counts:
    """Poisson arrivals at a rate, one row each."""
    chance, counts = random.Random(seed), Counts()
    pace = DevicePace()
    pace.spread = jitter
    device = Device(counts, chance, pace, jitter)
    variants = {name: Variant(name, *terms) for name, terms in PYRAMID.items()}
    model: Any = Model(
        name="m",
        variants=variants,
        candidates=[each.candidate for each in variants.values()],
        allowed=lambda now: [each.candidate for each in variants.values()],
    )
    router = Router(device, device.clock)  # type: ignore[arg-type]
    request: Any = SimpleNamespace(rows=1, inputs={})
    at = 0.0
    while (at := at + chance.expovariate(rate)) < seconds:
        device.advance(at)
        slo = mix(chance)
        deadline = at + slo.deadline_ms / 1e3
        counts.offered += 1
        pinned = POLICIES[policy](slo, variants)
        try:
            fixed: Any = None if pinned is None else variants[pinned]
            route = router.route(model, fixed, slo, request, deadline)
        except ServiceError:
            counts.refused += 1
            continue
        counts.degraded += route.degraded_from is not None
        device.submit(route.variant, 1, deadline, slo.priority, None)
    device.advance(seconds + 10)
    return counts


def main() -> None:
    """Prints the table."""
    base, best = capacity(), best_possible()
    print(f"fp32 does {base:.0f}/s, the best possible for this mix is {best:.0f}/s")
    print("load   policy            goodput/s  of best  missed  late/admitted  degraded  quality")
    for load in (0.5, 1.0, 2.0, 3.0):
        rate = load * base
        for policy in POLICIES:
            counts = simulate(policy, rate)
            goodput = counts.in_time / 10.0
            print(
                f"{load:3.1f}x   {policy:16s}  {goodput:9.0f}  {goodput / min(rate, best):6.1%}  "
                f"{counts.missed_share:6.1%}  {counts.late_share:13.2%}  "
                f"{counts.degraded / counts.offered:8.1%}  {counts.quality / max(1, counts.in_time):.4f}"
            )


if __name__ == "__main__":
    main()
