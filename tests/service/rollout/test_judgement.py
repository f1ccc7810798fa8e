"""What a guard says of evidence: passes, fails, or not yet, with figures that people can read."""

from __future__ import annotations

import json
import math
import random

import pytest

from service.rollout.evidence import UNBOUNDED, ArmEvidence, Comparisons, Feedback
from service.rollout.guard import parse_guard
from service.rollout.judgement import State, describe, exceeds_budget, judge, judge_candidates
from service.rollout.rollout import Kind
from tests.service.rollout.rollouts import rollout, seen

MANY = 20_000
RIGHT = (MANY, MANY * 0.9)


@pytest.mark.parametrize(
    ("text", "primary", "candidate", "state"),
    [
        ("errors<=1%", seen(), seen(MANY, errors=20), State.PASSES),
        ("errors<=1%", seen(), seen(MANY, errors=400), State.FAILS),
        ("errors<=1%", seen(), seen(MANY, errors=200), State.UNDECIDED),
        ("errors<=1%", seen(), seen(MANY, timeouts=300, non_finite=100), State.FAILS),
        ("errors<=2x", seen(MANY, errors=200), seen(MANY, errors=800), State.FAILS),
        ("errors<=+1pt", seen(MANY, errors=200), seen(MANY, errors=210), State.PASSES),
        ("misses<=1%", seen(), seen(MANY, misses=20), State.PASSES),
        ("agreement>=0.99", seen(), seen(compared=(MANY, MANY * 0.999)), State.PASSES),
        ("agreement>=0.99", seen(), seen(compared=(MANY, MANY * 0.98)), State.FAILS),
        ("cosine>=0.99", seen(), seen(compared=(MANY, MANY * 0.999)), State.PASSES),
        ("accuracy>=90%", seen(), seen(labelled=(MANY, MANY * 0.95)), State.PASSES),
        ("accuracy>=-2pt", seen(labelled=RIGHT), seen(labelled=RIGHT), State.PASSES),
        ("accuracy>=-2pt", seen(labelled=RIGHT), seen(labelled=(MANY, MANY * 0.8)), State.FAILS),
        ("accuracy>=0.98x", seen(labelled=RIGHT), seen(labelled=RIGHT), State.PASSES),
        ("accuracy>=0.98x", seen(labelled=RIGHT), seen(labelled=(MANY, MANY * 0.8)), State.FAILS),
        ("p99<=1.2x", seen(MANY, ms=5), seen(MANY, ms=5), State.PASSES),
        ("p99<=1.2x", seen(MANY, ms=5), seen(MANY, ms=7), State.FAILS),
        ("p50<=6ms", seen(), seen(MANY, ms=5), State.PASSES),
        ("p50<=4ms", seen(), seen(MANY, ms=5), State.FAILS),
    ],
)  # fmt: skip
def test_evidence_decides_a_guard(
    text: str, primary: ArmEvidence, candidate: ArmEvidence, state: State
) -> None:
    verdict = judge(parse_guard(text), primary, candidate)
    assert verdict.state is state
    assert verdict.samples == MANY
    document = verdict.to_json()
    assert document["verdict"] == state.value
    assert document["low"] <= document["estimate"] <= document["high"]


def losses(mean: float, deviation: float = 0.1) -> ArmEvidence:
    return ArmEvidence(feedback=Feedback(MANY, 0.0, MANY * mean, MANY * (mean**2 + deviation**2)))


@pytest.mark.parametrize(
    ("text", "mean", "state"),
    [
        ("loss<=1.05x", 1.0, State.PASSES),
        ("loss<=1.05x", 1.2, State.FAILS),
        ("loss<=1.1", 1.0, State.PASSES),
        ("loss<=1.1", 1.2, State.FAILS),
    ],
)
def test_losses_are_compared_by_their_means(text: str, mean: float, state: State) -> None:
    assert judge(parse_guard(text), losses(1.0), losses(mean)).state is state


def test_a_largest_difference_is_a_limit() -> None:
    guard = parse_guard("max_abs<=0.5,n=10")
    within = ArmEvidence(comparisons=Comparisons(10, max_abs=0.5))
    beyond = ArmEvidence(comparisons=Comparisons(10, max_abs=UNBOUNDED))
    assert judge(guard, seen(), within).state is State.PASSES
    assert judge(guard, seen(), beyond).state is State.FAILS


def test_too_few_samples_decide_nothing() -> None:
    verdict = judge(parse_guard("agreement>=0.99,n=500"), seen(), seen(compared=(499, 0.0)))
    assert verdict.state is State.UNDECIDED
    assert verdict.sentence == "agreement has 499 of 500 samples"
    assert verdict.to_json() | {"estimate": None, "low": None, "high": None} == verdict.to_json()


def test_a_comparison_has_as_many_samples_as_the_arm_with_fewer() -> None:
    guard = parse_guard("p50<=1.5x,n=1000")
    assert judge(guard, seen(900), seen(5000)).samples == 900
    assert judge(guard, seen(900), seen(5000)).interval is None


def test_a_sentence_gives_all_figures() -> None:
    verdict = judge(parse_guard("errors<=1%"), seen(), seen(MANY, errors=400))
    assert verdict.sentence == "errors 2% (1.66% to 2.38%, 20000 samples) is surely above 1%"
    verdict = judge(parse_guard("p99<=1.2x"), seen(200), seen(200))
    assert "to unbounded, 200 samples) may lie on either side of 1.2x" in verdict.sentence
    assert json.dumps(verdict.to_json(), allow_nan=False)
    assert verdict.to_json()["high"] is None


def test_guards_share_their_chance_of_being_wrong() -> None:
    guard, evidence = parse_guard("errors<=1%"), seen(2000, errors=30)
    alone, shared = judge(guard, seen(), evidence), judge(guard, seen(), evidence, claims=6)
    assert alone.interval is not None
    assert shared.interval is not None
    assert shared.interval.low < alone.interval.low < alone.interval.high < shared.interval.high
    two = rollout(Kind.AB, "errors<=1%", "p50<=2x", "misses<=1%", candidates=2)
    assert judge_candidates(two, {"candidate": evidence})[0].interval == shared.interval


@pytest.mark.parametrize(("failures", "requests"), [(6, 6), (8, 20), (60, 2000)])
def test_a_broken_candidate_exceeds_its_budget_at_once(failures: int, requests: int) -> None:
    verdict = exceeds_budget(rollout(), {"candidate": seen(requests, errors=failures)})
    assert verdict is not None
    assert "surely above 1%" in verdict.sentence


@pytest.mark.parametrize(("failures", "requests"), [(0, 0), (1, 1), (3, 3), (20, 2000), (12, 1000)])
def test_bad_luck_does_not(failures: int, requests: int) -> None:
    assert exceeds_budget(rollout(), {"candidate": seen(requests, errors=failures)}) is None


def test_a_candidate_that_fails_no_more_often_than_the_primary_is_not_to_blame() -> None:
    candidate = seen(1000, timeouts=100)
    assert exceeds_budget(rollout(), {"primary": seen(1000, timeouts=100), "candidate": candidate}) is None
    assert exceeds_budget(rollout(), {"primary": seen(8), "candidate": seen(8, errors=8)}) is not None
    assert exceeds_budget(rollout(), {"primary": seen(1000, timeouts=20), "candidate": candidate}) is not None


def test_arms_that_fail_alike_are_left_alone_however_often_one_looks() -> None:
    draws, dropped = random.Random(0), 0
    for _ in range(20):
        failed = {"primary": 0, "candidate": 0}
        for requests in range(50, 2001, 50):
            for arm in failed:
                failed[arm] += sum(draws.random() < 0.05 for _ in range(50))
            evidence = {arm: seen(requests, errors=errors) for arm, errors in failed.items()}
            if exceeds_budget(rollout(), evidence) is not None:
                dropped += 1
                break
    assert dropped == 0


def test_a_budget_may_be_nearly_everything() -> None:
    generous = rollout(failure_budget=0.9999999)
    assert exceeds_budget(generous, {"candidate": seen(100, errors=99)}) is None


@pytest.mark.parametrize("text", ["errors<=1%", "errors<=2x", "errors<=+1pt"])
def test_what_was_never_asked_shows_nothing_of_its_errors(text: str) -> None:
    verdict = judge(parse_guard(text), seen(MANY), seen(MANY, misses=MANY, retries=MANY))
    assert (verdict.state, verdict.samples) == (State.UNDECIDED, 0)


def test_a_rollout_describes_itself_in_json() -> None:
    running = rollout(Kind.CANARY, "agreement>=0.99", "p99<=1.2x")
    document = describe(running, {"candidate": seen(10, errors=1, compared=(4, 3.0))})
    assert json.loads(json.dumps(document, allow_nan=False)) == document
    candidate = document["arms"][1]
    assert (candidate["name"], candidate["weight"]) == ("candidate", 5.0)
    assert candidate["evidence"]["agreement"] == 0.75
    assert math.isclose(candidate["evidence"]["p50_ms"], 5.0, rel_tol=0.03)
    assert document["arms"][0]["evidence"]["p99_ms"] is None
    assert [guard["text"] for guard in document["guards"]] == ["agreement>=0.99", "p99<=1.2x"]
