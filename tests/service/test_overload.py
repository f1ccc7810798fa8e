"""Overload in virtual time: deadlines are kept, and nearly as many answers are given as could be at best."""

from __future__ import annotations

import pytest

from tests.service.overload import Counts, best_possible, capacity, simulate

SECONDS = 4.0


@pytest.fixture(scope="module")
def runs() -> dict[tuple[str, float], Counts]:
    policies = ("always fp32", "mipgate")
    return {(p, load): simulate(p, load * capacity(), SECONDS) for p in policies for load in (1.0, 2.0, 3.0)}


@pytest.mark.parametrize("load", [1.0, 2.0, 3.0])
def test_goodput_is_near_the_best_possible(runs: dict[tuple[str, float], Counts], load: float) -> None:
    counts = runs["mipgate", load]
    offered = counts.offered / SECONDS
    assert counts.in_time / SECONDS >= 0.85 * min(offered, best_possible())  # the first second is a surprise


@pytest.mark.parametrize("load", [1.0, 2.0, 3.0])
def test_what_is_admitted_is_in_time(runs: dict[tuple[str, float], Counts], load: float) -> None:
    assert runs["mipgate", load].late_share <= 0.01


@pytest.mark.parametrize("load", [2.0, 3.0])
def test_misses_are_a_fifth_of_those_of_fp32_alone(
    runs: dict[tuple[str, float], Counts], load: float
) -> None:
    assert runs["mipgate", load].missed_share <= runs["always fp32", load].missed_share / 5


def test_nobody_is_degraded_without_need(runs: dict[tuple[str, float], Counts]) -> None:
    calm = simulate("mipgate", 0.5 * capacity(), SECONDS)
    assert calm.degraded == calm.refused == calm.late == 0


def test_quality_bends_no_further_than_it_was_allowed_to(runs: dict[tuple[str, float], Counts]) -> None:
    for load in (2.0, 3.0):
        counts = runs["mipgate", load]
        assert counts.quality / counts.in_time >= 0.975
