"""The memory budget: what was used last keeps its session."""

from __future__ import annotations

from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.residency import to_close


@dataclass
class Open:
    """Stands for a loaded variant."""

    key: str
    memory: int
    last_used: float = 0.0
    is_open: bool = True

    @property
    def profile(self) -> Any:
        return SimpleNamespace(memory_bytes=self.memory)


def closed(variants: list[Open], budget: int) -> list[str]:
    return [variant.key for variant in to_close(variants, budget)]  # type: ignore[arg-type]


def test_without_a_budget_everything_stays() -> None:
    assert closed([Open("a", 10**12), Open("b", 10**12)], 0) == []


def test_those_not_used_for_longest_are_closed() -> None:
    variants = [Open("old", 10, 1.0), Open("new", 10, 3.0), Open("middle", 10, 2.0)]
    assert closed(variants, 30) == []
    assert closed(variants, 20) == ["old"]
    assert closed(variants, 10) == ["old", "middle"]


def test_one_that_alone_is_too_large_still_serves() -> None:
    assert closed([Open("huge", 100, 1.0)], 10) == []


def test_a_small_one_may_stay_where_a_large_one_does_not_fit() -> None:
    variants = [Open("newest", 10, 3.0), Open("large", 50, 2.0), Open("small", 5, 1.0)]
    assert closed(variants, 20) == ["large"]


def test_closed_ones_count_for_nothing_and_one_known_by_two_names_once() -> None:
    twice = Open("a", 10, 1.0)
    assert closed([twice, twice, Open("b", 10, 2.0), Open("c", 99, 3.0, is_open=False)], 20) == []


@given(st.lists(st.tuples(st.integers(1, 50), st.floats(0, 9)), min_size=1, max_size=8), st.integers(1, 200))
def test_what_stays_fits_or_is_one(sizes: list[tuple[int, float]], budget: int) -> None:
    variants = [Open(str(number), memory, used) for number, (memory, used) in enumerate(sizes)]
    gone = set(closed(variants, budget))
    stays = [variant for variant in variants if variant.key not in gone]
    assert sum(variant.memory for variant in stays) <= budget or len(stays) == 1
