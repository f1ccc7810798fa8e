"""A rollout goes from phase to phase as the evidence says, and says why."""

from __future__ import annotations

import json
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.errors import ConflictError
from service.rollout.command import Verb, command
from service.rollout.evidence import ArmEvidence, Evidence
from service.rollout.machine import advance, promote, withdraw
from service.rollout.rollout import Kind, Observation, Outcome, Phase, Rollout, Transition
from tests.service.rollout.rollouts import rollout, seen
from tests.service.rollout.simulation import World, run_canary

a_few = settings(max_examples=60)

GUARDS = ("agreement>=0.99@95%,n=500", "errors<=1%")
GOOD = seen(20_000, compared=(20_000, 19_990))
BAD = seen(20_000, compared=(20_000, 19_000))
SOME = seen(600, compared=(600, 598))
FEW = seen(100, compared=(100, 100))
PRIMARY = seen(20_000)


def look(at: Rollout, now: float, candidate: ArmEvidence = FEW, **observed: Any) -> Transition | None:
    evidence: Evidence = {"primary": PRIMARY, "candidate": candidate}
    return advance(at, Observation(**{"evidence": evidence} | observed), now)


def moved(transition: Transition | None) -> Transition:
    assert transition is not None
    return transition


@pytest.mark.parametrize(
    ("state", "now", "candidate", "done", "expected"),
    [
        ({"phase": Phase.INITIALIZING}, 1001, FEW, False, None),
        ({"phase": Phase.INITIALIZING}, 1001, FEW, True, (Phase.PROGRESSING, 5, "all arms are loaded")),
        ({"phase": Phase.INITIALIZING}, 4600, FEW, False, (Phase.FINALISING, 0, "not all arms were loaded")),
        ({}, 1001, FEW, False, None),
        ({}, 1001, GOOD, False, None),
        ({}, 1010, SOME, False, (Phase.PROGRESSING, 25, "step 2 of 4")),
        ({}, 1010, FEW, False, (Phase.WAITING, 5, "waits for evidence: agreement has 100 of 500")),
        ({}, 1001, BAD, False, (Phase.FINALISING, 0, "agreement 0.95 ")),
        ({}, 4600, SOME, False, (Phase.FINALISING, 0, "the time is over")),
        ({}, 1001, seen(10, errors=10), False, (Phase.FINALISING, 0, "errors 100%")),
        ({"phase": Phase.WAITING}, 1030, FEW, False, None),
        ({"phase": Phase.WAITING}, 1030, SOME, False, (Phase.PROGRESSING, 25, "step 2 of 4")),
        ({"step": 3}, 1001, GOOD, False, None),
        ({"step": 3}, 1010, GOOD, False, (Phase.PROMOTING, 100, "candidate candidate@0123456789ab passed")),
        ({"step": 3}, 1010, SOME, False, (Phase.WAITING, 5, "waits for evidence: agreement 0.9967 (")),
        ({"step": 3}, 4600, GOOD, False, (Phase.PROMOTING, 100, "passed")),
        ({"paused": 1005.0, "phase": Phase.WAITING}, 9999, GOOD, False, None),
        ({"paused": 1005.0, "phase": Phase.WAITING}, 1010, BAD, False, (Phase.FINALISING, 0, "agreement")),
        ({"phase": Phase.PROMOTING}, 1010, GOOD, False, None),
        ({"phase": Phase.PROMOTING}, 1010, GOOD, True, (Phase.FINALISING, 5, "released")),
        ({"phase": Phase.PROMOTING}, 1010, seen(10, errors=10), False, (Phase.FINALISING, 0, "errors")),
        ({"phase": Phase.FINALISING, "ending": Phase.FAILED}, 1010, BAD, False, None),
        ({"phase": Phase.FINALISING, "ending": Phase.FAILED}, 1010, BAD, True, (Phase.FAILED, 5, "")),
        ({"phase": Phase.SUCCEEDED}, 9999, BAD, True, None),
        ({"phase": Phase.FAILED}, 9999, GOOD, True, None),
    ],
)
def test_a_canary_moves(
    state: dict[str, Any], now: float, candidate: ArmEvidence, done: bool, expected: Any
) -> None:
    before = rollout(Kind.CANARY, *GUARDS, **state)
    transition = look(before, now, candidate, done=done)
    if expected is None:
        assert transition is None
        return
    after = moved(transition).rollout
    phase, weight, reason = expected
    assert (after.phase, after.arms[1].weight) == (phase, weight)
    assert reason in after.reason
    assert sum(after.weights.values()) == pytest.approx(100)
    assert (after.version, after.updated) == (before.version + 1, now)
    assert json.dumps(moved(transition).to_json(), allow_nan=False)


def test_a_failed_canary_ends_as_failed_and_a_slow_one_as_inconclusive() -> None:
    failed = moved(look(rollout(Kind.CANARY, *GUARDS), 1001, BAD)).rollout
    assert failed.ending is Phase.FAILED
    assert failed.arms[1].outcome is Outcome.FAILED
    undecided = moved(look(rollout(Kind.CANARY, *GUARDS), 4600, SOME)).rollout
    assert undecided.ending is Phase.INCONCLUSIVE
    assert undecided.arms[1].outcome is None


def test_a_step_is_not_taken_while_the_estimate_speaks_against_it() -> None:
    leaning = seen(600, compared=(600, 592))
    assert moved(look(rollout(Kind.CANARY, *GUARDS), 1010, leaning)).rollout.phase is Phase.WAITING


def test_waiting_for_the_arms_takes_no_time_from_the_rollout() -> None:
    begun = moved(look(rollout(phase=Phase.INITIALIZING), 2000, done=True)).rollout
    assert (begun.entered, begun.deadline) == (2000, 2000 + 3600)


def test_an_ab_test_keeps_its_weights_until_it_is_decided() -> None:
    running = rollout(Kind.AB, *GUARDS)
    waiting = moved(look(running, 1010, SOME)).rollout
    assert (waiting.phase, waiting.weights) == (Phase.WAITING, {"primary": 50, "candidate": 50})
    won = moved(look(waiting, 1020, GOOD)).rollout
    assert (won.phase, won.weights) == (Phase.PROMOTING, {"primary": 0, "candidate": 100})
    assert won.arms[1].outcome is Outcome.PASSED


def test_an_ab_test_without_guards_waits_for_an_operator() -> None:
    waiting = moved(look(rollout(Kind.AB), 1010, GOOD)).rollout
    assert waiting.reason == "waits for evidence: an operator's decision, as no guard was given"
    assert moved(look(waiting, 4600, GOOD)).rollout.ending is Phase.INCONCLUSIVE


def test_a_shadow_drops_those_that_fail_and_releases_those_that_pass() -> None:
    running = rollout(Kind.SHADOW, *GUARDS, candidates=2)
    evidence = {"candidate": BAD, "candidate-2": GOOD}
    one_left = moved(advance(running, Observation(evidence), 1001))
    assert one_left.rollout.phase is Phase.PROGRESSING
    assert [arm.name for arm in one_left.rollout.contenders] == ["candidate-2"]
    assert one_left.reason.startswith("candidate rolled back: agreement 0.95")
    won = moved(advance(one_left.rollout, Observation(evidence), 1010)).rollout
    assert won.phase is Phase.PROMOTING
    assert [arm.outcome for arm in won.arms] == [None, Outcome.FAILED, Outcome.PASSED]
    assert won.weights == {"primary": 100, "candidate": 0, "candidate-2": 0}


# ---- bandits


def bandit(*rewards: tuple[int, float], **changes: Any) -> tuple[Rollout, Evidence]:
    running = rollout(Kind.BANDIT, candidates=len(rewards) - 1, **changes)
    earned = zip(running.arms, rewards, strict=True)
    return running, {arm.name: seen(reward[0], labelled=reward) for arm, reward in earned}


def test_a_bandit_gives_more_to_what_is_likely_best_and_something_to_all() -> None:
    running, evidence = bandit((200, 180), (200, 190), (200, 150))
    assert advance(running, Observation(evidence), 1009) is None
    shared = moved(advance(running, Observation(evidence, seed=1), 1010)).rollout
    assert shared.weights["candidate"] > 70
    assert 5 <= shared.weights["candidate-2"] < 6
    assert sum(shared.weights.values()) == pytest.approx(100)
    assert shared.entered == 1010
    assert moved(advance(running, Observation(evidence, seed=1), 1010)).rollout == shared


def test_a_bandit_promotes_what_surely_earns_more() -> None:
    running, evidence = bandit((5000, 4500), (5000, 4700), (5000, 4800))
    won = moved(advance(running, Observation(evidence), 1001))
    assert won.reason.startswith("candidate-2 is surely best by accuracy: primary 0.9 of 5000")
    assert won.rollout.weights == {"primary": 0, "candidate": 0, "candidate-2": 100}


def test_a_bandit_drops_what_surely_earns_less() -> None:
    running, evidence = bandit((5000, 4500), (5000, 4000), (50, 45))
    dropped = moved(advance(running, Observation(evidence), 1001)).rollout
    assert [arm.name for arm in dropped.contenders] == ["candidate-2"]
    running, evidence = bandit((5000, 4500), (5000, 4000))
    assert moved(advance(running, Observation(evidence), 1001)).rollout.ending is Phase.FAILED


def test_a_bandit_whose_winner_is_gone_has_released_nothing() -> None:
    running = rollout(Kind.BANDIT, candidates=2)
    winner = running.candidates[0]
    promoting = promote(running, [winner], 1010.0, "it won").rollout
    ended = withdraw(promoting, [winner], 1011.0).rollout
    assert (ended.phase, ended.ending) == (Phase.FINALISING, Phase.FAILED)
    assert ended.weights["primary"] == 100.0


def test_a_bandit_between_equals_is_inconclusive() -> None:
    running, evidence = bandit((500, 450), (500, 451))
    assert moved(advance(running, Observation(evidence), 4600)).rollout.ending is Phase.INCONCLUSIVE


def test_a_bandits_best_must_keep_its_guards() -> None:
    running, evidence = bandit(
        (5000, 4000), (5000, 4800), guards=rollout(Kind.AB, "misses<=1%,n=9000").guards
    )
    shared = moved(advance(running, Observation(evidence), 1010)).rollout
    assert shared.phase is Phase.PROGRESSING


# ---- operators


@pytest.mark.parametrize("phase", Phase)
@pytest.mark.parametrize("verb", Verb)
@pytest.mark.parametrize("paused", [None, 1005.0])
def test_a_command_is_carried_out_or_refused_with_the_state(
    phase: Phase, verb: Verb, paused: float | None
) -> None:
    before = rollout(Kind.CANARY, *GUARDS, phase=phase, paused=paused)
    running = phase in (Phase.PROGRESSING, Phase.WAITING)
    allowed = {
        Verb.PROMOTE: running,
        Verb.PAUSE: running and not paused,
        Verb.RESUME: running and bool(paused),
        Verb.ABORT: running or phase in (Phase.INITIALIZING, Phase.PROMOTING),
    }[verb]
    if not allowed:
        with pytest.raises(ConflictError, match=f"rollout r1 is {phase.value}"):
            command(before, verb, "ann", 1010)
        return
    transition = command(before, verb, "ann", 1010)
    assert (transition.who, transition.rollout.version) == ("ann", 2)
    assert "ann" in transition.reason


def test_a_pause_takes_no_time_from_the_rollout() -> None:
    paused = command(rollout(Kind.CANARY, *GUARDS), Verb.PAUSE, "ann", 1005).rollout
    assert paused.phase is Phase.WAITING
    resumed = command(paused, Verb.RESUME, "ann", 1105).rollout
    assert (resumed.phase, resumed.paused) == (Phase.PROGRESSING, None)
    assert (resumed.entered, resumed.deadline) == (1100, 4700)


def test_an_abort_fails_no_candidate_and_sends_all_back() -> None:
    promoting = command(rollout(Kind.CANARY, *GUARDS), Verb.PROMOTE, "ann", 1005).rollout
    assert promoting.weights == {"primary": 0, "candidate": 100}
    aborted = command(promoting, Verb.ABORT, "bob", 1006).rollout
    assert (aborted.phase, aborted.ending) == (Phase.FINALISING, Phase.FAILED)
    assert aborted.weights == {"primary": 100, "candidate": 0}
    assert aborted.arms[1].outcome is None


def test_promoting_a_bandit_promotes_the_arm_with_most_traffic() -> None:
    running = rollout(Kind.BANDIT, candidates=2).with_weights({"candidate": 20, "candidate-2": 60})
    promoted = command(running, Verb.PROMOTE, "ann", 1005).rollout
    assert [arm.outcome for arm in promoted.arms] == [None, None, Outcome.PASSED]


# ---- whole rollouts


@a_few
@given(
    st.sampled_from(Kind),
    st.integers(1, 3),
    st.lists(st.sampled_from([(FEW, 5), (SOME, 20), (GOOD, 20), (BAD, 1), (GOOD, 4000)]), max_size=12),
    st.sampled_from([None, *Verb]),
)
def test_whatever_happens_weights_sum_and_state_survives_json(
    kind: Kind, candidates: int, events: list[tuple[ArmEvidence, float]], verb: Verb | None
) -> None:
    now, running = 1000.0, rollout(kind, *GUARDS, candidates=1 if kind is Kind.CANARY else candidates)
    for candidate, passed_s in events:
        now += passed_s
        evidence = {"primary": PRIMARY} | {arm.name: candidate for arm in running.candidates}
        if transition := advance(running, Observation(evidence, done=True), now):
            assert transition.rollout.version == running.version + 1
            assert transition.reason
            running = transition.rollout
        assert sum(running.weights.values()) == pytest.approx(100)
        assert all(0 <= weight <= 100 for weight in running.weights.values())
        assert Rollout.from_json(json.loads(json.dumps(running.to_json()))) == running
    if verb and running.phase is Phase.PROGRESSING and verb is not Verb.RESUME:
        after = command(running, verb, "ann", now).rollout
        assert replace(after, version=0) != replace(running, version=0)


def test_a_good_canary_succeeds_a_bad_one_fails_and_too_little_is_inconclusive() -> None:
    guards = ("agreement>=0.99@95%,n=100", "errors<=1%")
    assert run_canary(guards, World(agreement=1.0), seed=1).phase is Phase.SUCCEEDED
    assert run_canary(guards, World(agreement=0.9), seed=1).phase is Phase.FAILED
    assert run_canary(guards, World(errors=(0.0, 1.0)), seed=1).phase is Phase.FAILED
    assert run_canary(guards, World(), seed=1, per_tick=2).phase is Phase.INCONCLUSIVE
