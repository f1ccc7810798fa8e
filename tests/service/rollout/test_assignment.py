"""Callers stay on their arm, move at most once while a weight grows, and all go back on an abort."""

from __future__ import annotations

from dataclasses import replace
from math import sqrt

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rollout.assignment import assign, position, shadow_draw
from service.rollout.rollout import Arm, Kind, Outcome, Phase, Rollout
from tests.service.rollout.rollouts import rollout

a_few = settings(max_examples=100)

KEYS = st.text(min_size=1, max_size=256)
WEIGHTS = st.floats(0, 100)


def at(weight: float, **changes: object) -> Rollout:
    return rollout(**changes).with_weights({"candidate": weight})  # type: ignore[arg-type]


def named(given_to: Arm | None) -> str:
    assert given_to is not None
    return given_to.name


@a_few
@given(KEYS, st.lists(WEIGHTS, min_size=2, max_size=8))
def test_a_caller_moves_at_most_once_while_a_weight_grows(key: str, weights: list[float]) -> None:
    arms = [named(assign(at(weight), key, "balanced")) for weight in sorted(weights)]
    assert arms == sorted(arms, reverse=True)  # primary first, then candidate


@a_few
@given(KEYS, WEIGHTS)
def test_an_abort_sends_all_back(key: str, weight: float) -> None:
    assert named(assign(at(0.0), key, "balanced")) == "primary"
    assert named(assign(at(100.0), key, "balanced")) == "candidate"
    assert assign(at(weight, phase=Phase.FINALISING), key, "balanced") is None


@a_few
@given(KEYS, WEIGHTS)
def test_a_caller_stays_where_it_is(key: str, weight: float) -> None:
    assert assign(at(weight), key, "balanced") == assign(at(weight, version=9), key, "fast")


@pytest.mark.parametrize("weight", [1.0, 5.0, 50.0, 95.0])
def test_shares_of_callers_are_those_of_the_weights(weight: float) -> None:
    running, callers = at(weight), 20_000
    moved = sum(named(assign(running, f"caller-{n}", "balanced")) == "candidate" for n in range(callers))
    share = weight / 100
    assert abs(moved - callers * share) < 4.5 * sqrt(callers * share * (1 - share))


def test_another_rollout_chooses_other_callers() -> None:
    one, other = at(50.0), at(50.0, id="r2")
    same = sum(
        named(assign(one, f"caller-{n}", "fast")) == named(assign(other, f"caller-{n}", "fast"))
        for n in range(10_000)
    )
    assert abs(same - 5_000) < 4.5 * 50


@a_few
@given(st.floats(0, 1, exclude_max=True), WEIGHTS)
def test_a_request_without_a_key_takes_its_draw(draw: float, weight: float) -> None:
    arm = named(assign(at(weight), draw, "balanced"))
    assert arm == ("candidate" if draw < weight / 100 else "primary")


def test_several_candidates_share_as_their_weights_say() -> None:
    running = rollout(Kind.AB, candidates=3).with_weights({"candidate": 10, "candidate-3": 30})
    arms = [named(assign(running, draw, "fast")) for draw in (0.05, 0.15, 0.39, 0.41, 0.99)]
    assert arms == ["candidate", "candidate-3", "candidate-3", "primary", "primary"]
    assert running.weights == {"primary": 60, "candidate": 10, "candidate-2": 0, "candidate-3": 30}


def test_other_tiers_take_no_part() -> None:
    running = at(100.0, tier="fast")
    assert assign(running, "caller", "balanced") is None
    assert named(assign(running, "caller", "fast")) == "candidate"


@a_few
@given(KEYS)
def test_a_position_lies_within_0_and_1(key: str) -> None:
    assert 0 <= position(rollout(), key) < 1


def test_a_fraction_is_copied_to_the_other_side() -> None:
    running = rollout(Kind.SHADOW, candidates=2, fraction=0.1)
    assert [arm.name for arm in shadow_draw(running, running.primary, 0.05)] == ["candidate", "candidate-2"]
    assert shadow_draw(running, running.primary, 0.1) == ()
    assert shadow_draw(running, running.candidates[0], 0.0) == (running.primary,)


def test_a_failed_candidate_gets_no_copies() -> None:
    running = rollout(Kind.SHADOW, candidates=2)
    first, second, third = running.arms
    running = replace(running, arms=(first, replace(second, outcome=Outcome.FAILED), third))
    assert shadow_draw(running, running.primary, 0.0) == (third,)
    ended = replace(running, phase=Phase.FINALISING)
    assert shadow_draw(ended, ended.primary, 0.0) == ()
