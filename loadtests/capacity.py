"""The highest rate at which an objective holds, found by search. Pure but for the probe that it is given."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

Outcome = Literal["held", "broken", "client"]

_LOWEST = 1.0
_LEAP = 2.0


@dataclass(frozen=True, slots=True)
class Probe:
    """One rate that was tried.

    Attributes:
        rate: Requests per second.
        outcome: The objective `held`, was `broken`, or the load generator could not keep up (`client`).
        why: The figure that broke it.
    """

    rate: float
    outcome: Outcome
    why: str = ""


@dataclass(frozen=True, slots=True)
class Capacity:
    """What a search found.

    Attributes:
        rate: The highest rate that held; 0 when none did.
        limit: Why it is not higher: the gateway, the load generator, or the highest rate allowed.
        probes: What was tried, in order.
    """

    rate: float
    limit: Literal["gateway", "client", "most"]
    probes: tuple[Probe, ...]


def find_capacity(
    probe: Callable[[float], Probe], start: float, most: float, tolerance: float = 0.1
) -> Capacity:
    """Doubles or halves the rate until the objective breaks and holds, then halves the gap between the two.

    A rate that breaks is tried once more: one hiccup of the machine is no limit of the gateway.

    Args:
        probe: Loads at a rate.
        start: The first rate.
        most: The highest rate to try.
        tolerance: The gap, relative to the rate, at which the search ends.
    """
    tried: list[Probe] = []

    def holds(rate: float) -> bool:
        tried.append(probe(rate))
        if tried[-1].outcome != "held":
            tried.append(probe(rate))
        return tried[-1].outcome == "held"

    low, high = 0.0, math.inf
    rate = min(max(start, _LOWEST), most)
    while high / max(low, 1e-9) > 1 + tolerance:
        if holds(rate):
            low = rate
        else:
            high = rate
        if low >= most or high <= _LOWEST:
            break
        if math.isinf(high):
            rate = min(low * _LEAP, most)
        elif low == 0:
            rate = max(high / _LEAP, _LOWEST)
        else:
            rate = math.sqrt(low * high)
    if low >= most:
        return Capacity(low, "most", tuple(tried))
    stopped_by = next(p.outcome for p in reversed(tried) if p.rate == high)
    return Capacity(low, "client" if stopped_by == "client" else "gateway", tuple(tried))
