"""Which arm of a rollout answers a request, and for how long it may try."""

from __future__ import annotations

import asyncio
import threading
from time import perf_counter

import numpy as np
import pytest

from service.breaker import FAILURES, Circuit
from service.fleet import Fleet
from service.loaded import LoadedModel, LoadedVariant
from service.rollout.assignment import assign
from service.rollout.rollout import CANDIDATE, PRIMARY, Kind
from tests.service.inference.core import (
    NEVER_S,
    Known,
    ask,
    core,
    failing,
    joined,
    named,
    nan,
    noting,
    on_loop,
    other_than,
    request,
    rollout,
)


def test_a_candidate_answers_its_share_and_says_so(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            candidate = other_than(model, (await ask(serving, model, request())).variant)
            known = Known(rollout(candidate, 30.0))
            joined(serving, known)
            arms = [
                (await ask(serving, model, request(), sticky_key=f"caller {number}")).arm
                for number in range(300)
            ]
            again = [
                (await ask(serving, model, request(), sticky_key=f"caller {number}")).arm
                for number in range(300)
            ]
            assert arms == again  # sticky
            assert arms.count(CANDIDATE) == pytest.approx(90, abs=40)
            assert known.tallies[CANDIDATE].requests == 2 * arms.count(CANDIDATE)
            assert known.tallies[PRIMARY].requests == 2 * arms.count(PRIMARY)
            assert len(known.kept) == 600

    on_loop(scenario)


@pytest.mark.parametrize("damage", ["errors", "nan", "hangs"])
def test_a_broken_candidate_costs_one_retry_and_no_caller_an_error(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, damage: str
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            candidate = other_than(model, usual)
            known = Known(rollout(candidate))
            joined(serving, known)
            hung = asyncio.Event()
            if damage == "hangs":
                gate = threading.Event()
                monkeypatch.setattr(candidate, "profiled_ms", lambda rows: 5.0)
                monkeypatch.setattr(candidate, "run", lambda inputs: gate.wait(NEVER_S) and failing(inputs))
                monkeypatch.setattr(candidate, "cancel", lambda: (gate.set(), hung.set()))
            else:
                monkeypatch.setattr(candidate, "run", failing if damage == "errors" else nan(candidate))
            outcome = await ask(serving, model, request(), max_latency_ms=2000.0)
            assert outcome.outputs is not None
            assert np.isfinite(outcome.outputs["logits"]).all()
            assert (outcome.arm, outcome.variant.version) != (CANDIDATE, candidate.version)
            tally = known.tallies[CANDIDATE]
            assert (tally.requests, tally.retries) == (1, 1)
            counted = {"errors": tally.errors, "nan": tally.non_finite, "hangs": tally.timeouts}
            assert counted[damage] == 1
            assert sum(counted.values()) == 1
            candidate.breaker.answered()

    on_loop(scenario)


def test_who_came_first_goes_first_whatever_the_arm(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            arms = {PRIMARY: usual, CANDIDATE: other_than(model, usual)}
            known = Known(rollout(arms[CANDIDATE], 50.0))
            joined(serving, known)
            keys = {}
            for number in range(20):
                arm = assign(known.rollout, str(number), "balanced")
                keys[arm.name if arm else ""] = str(number)
            ran: list[LoadedVariant] = []
            for variant in arms.values():
                monkeypatch.setattr(variant, "run", noting(variant, ran))
            for order in ((PRIMARY, CANDIDATE), (CANDIDATE, PRIMARY)):
                ran.clear()
                serving.scheduler._busy_until = perf_counter()
                asked = []
                for name in order:
                    asked.append(asyncio.create_task(ask(serving, model, request(), sticky_key=keys[name])))
                    await asyncio.sleep(0.01)
                serving.scheduler._busy_until = None
                serving.scheduler._dispatch(asyncio.get_running_loop())
                assert [(await each).variant for each in asked] == ran == [arms[name] for name in order]

    on_loop(scenario)


@pytest.mark.parametrize("kind", [Kind.AB, Kind.SHADOW])
def test_the_routers_choice_is_run_once_however_long_it_takes(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch, kind: Kind
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            known = Known(rollout(other_than(model, usual), 0.0, kind=kind))
            joined(serving, known)
            ran: list[LoadedVariant] = []
            monkeypatch.setattr(usual, "run", noting(usual, ran, 0.35))
            monkeypatch.setattr(usual, "profiled_ms", lambda rows: 100.0)  # beside the loop
            answer = await ask(serving, model, request(), max_latency_ms=400.0)
            assert (answer.variant, ran) == (usual, [usual])
            tally = known.tallies[PRIMARY]
            assert (tally.requests, tally.misses, tally.retries) == (1, 0, 0)
            assert tally.timeouts == (kind is Kind.AB)  # by the clock of all arms

    on_loop(scenario)


@pytest.mark.parametrize("named_primary", [False, True])
def test_arms_have_the_same_time_whoever_the_router_chooses(
    fleet: Fleet, model: LoadedModel, named_primary: bool
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            other = other_than(model, usual)
            known = Known(named(other, usual, 50.0) if named_primary else rollout(other, 50.0))
            joined(serving, known)
            slower = {}
            for number in range(20):
                part = (await ask(serving, model, request(), sticky_key=str(number))).part
                assert part is not None
                slower[part.arm.name] = part.slower
            assert len(slower) == 2
            assert len(set(slower.values())) == 1

    on_loop(scenario)


@pytest.mark.parametrize("arm", [PRIMARY, CANDIDATE])
def test_an_arm_that_is_the_routers_choice_has_all_of_the_callers_time(
    fleet: Fleet, model: LoadedModel, arm: str
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            other = other_than(model, usual)
            known = Known(named(usual, other, 0.0) if arm == PRIMARY else named(other, usual, 100.0))
            joined(serving, known)
            serving.scheduler._busy_until = perf_counter() + 1.7
            asking = asyncio.create_task(ask(serving, model, request(), max_latency_ms=2000.0))
            await asyncio.sleep(1.8)
            serving.scheduler._busy_until = None
            serving.scheduler._dispatch(asyncio.get_running_loop())
            outcome = await asking
            assert (outcome.arm, outcome.variant) == (arm, usual)
            tally = known.tallies[arm]  # in the caller's time, if not in that which every arm has
            assert (tally.requests, tally.timeouts, tally.misses, tally.retries) == (1, 0, 1, 0)

    on_loop(scenario)


def test_a_candidate_that_is_the_routers_choice_is_probed_when_its_circuit_is_half_open(
    fleet: Fleet, model: LoadedModel
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            known = Known(named(other_than(model, usual), usual, 100.0))
            joined(serving, known)
            for _ in range(FAILURES):
                usual.breaker.failed(perf_counter())
            usual.breaker.until = 0.0
            assert (await ask(serving, model, request())).variant is usual
            assert usual.breaker.circuit is Circuit.CLOSED
            assert known.tallies[CANDIDATE].errors == 0

    on_loop(scenario)


def test_a_candidate_below_a_callers_floor_gets_none_of_its_requests(
    fleet: Fleet, model: LoadedModel
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            candidate = min(
                (model.variants[each.version] for each in model.candidates), key=lambda v: v.candidate.ratio
            )
            known = Known(rollout(candidate))
            joined(serving, known)
            floor = candidate.candidate.ratio + 1e-6
            if floor > 1:
                pytest.skip("every variant is as good as the reference")
            outcome = await ask(serving, model, request(), tier="fast", min_accuracy=floor)
            assert outcome.arm == ""
            assert known.tallies[CANDIDATE].requests == known.tallies[PRIMARY].requests == 0

    on_loop(scenario)
