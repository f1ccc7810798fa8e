"""When requests are due, and what they ask for: drawn beforehand, the same for every policy. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from loadtests.bench.requests import Array
from loadtests.bench.subject import best_row_ms

_DEGRADE_FLOOR = 0.95  # unless the model's document names another


@dataclass(frozen=True, slots=True)
class Ask:
    """One kind of request in the mix.

    Attributes:
        tier: The tier that it names.
        floor: Lowest quality ratio that may answer.
        deadline_ms: From when it is due.
        allows_degrade: Whether it lets the gateway go below the tier's floor.
    """

    tier: str
    floor: float
    deadline_ms: float
    allows_degrade: bool


def mix(document: Mapping[str, Any]) -> list[Ask]:
    """Every tier once as it is and once allowing degradation: equal shares of a load."""
    lowest = float(document.get("degrade_floor", _DEGRADE_FLOOR))
    asks = []
    for name, tier in document["tiers"].items():
        floor, deadline_ms = float(tier["min_quality_ratio"]), float(tier["deadline_ms"])
        asks.append(Ask(name, floor, deadline_ms, False))
        asks.append(Ask(name, min(floor, lowest), deadline_ms, True))
    return asks


def due_times(rate: float, seconds: float, draw: np.random.Generator) -> Array:
    """Times in seconds of a Poisson process.

    Args:
        rate: Mean arrivals per second.
        seconds: Length of the time.
        draw: The source of randomness.
    """
    count = draw.poisson(rate * seconds)
    return np.sort(draw.uniform(0.0, seconds, count))


def best_possible(asks: Sequence[Ask], variants: Mapping[str, Mapping[str, Any]]) -> float | None:
    """Most requests per second that the mix leaves possible, by the profiles alone.

    Every request runs on the fastest variant that its floor allows, in the batch size that is best for it.

    Returns:
        None when some floor is above every variant.
    """
    total_ms = 0.0
    for each in asks:
        allowed = [
            best_row_ms(variant)
            for variant in variants.values()
            if variant["quality"]["validation"]["ratio"] >= each.floor
        ]
        if not allowed:
            return None
        total_ms += min(allowed)
    return 1e3 * len(asks) / total_ms
