"""What is worth serving: ties, Pareto dominance, and the fastest above a floor. Pure functions."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

from variants.profile import Profile

# Latencies this close are a tie, and the better quality wins.
TIE = 1.10

T = TypeVar("T")


def fastest(items: Iterable[T], cost: Callable[[T], float], quality: Callable[[T], float]) -> T | None:
    """The item of least cost; among those within 10% of it, the one of best quality.

    Args:
        items: What to choose from.
        cost: Time of an item, in any unit.
        quality: Quality of an item; more is better.
    """
    ranked = sorted(items, key=cost)
    if not ranked:
        return None
    limit = cost(ranked[0]) * TIE
    return max((item for item in ranked if cost(item) <= limit), key=quality)


def undominated(items: Iterable[T], cost: Callable[[T], float], quality: Callable[[T], float]) -> list[T]:
    """The items that nothing cheaper, or as cheap, is as good as; the cheapest first.

    Args:
        items: What to choose from.
        cost: Time or size of an item, in any unit.
        quality: Quality of an item; more is better.
    """
    kept: list[T] = []
    for item in sorted(items, key=lambda each: (cost(each), -quality(each))):
        if not kept or quality(item) > quality(kept[-1]):
            kept.append(item)
    return kept


def dominates(one: Profile, other: Profile) -> bool:
    """Whether one is at least as good in quality and faster at every batch size that both know."""
    sizes = one.latency_ms.keys() & other.latency_ms.keys()
    is_faster = bool(sizes) and all(one.latency_ms[s].p50 < other.latency_ms[s].p50 for s in sizes)
    return is_faster and one.quality.validation.ratio >= other.quality.validation.ratio
