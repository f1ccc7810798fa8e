"""Requests on real variants: every answer is its own, failures cost nobody, rollouts count what they see."""

from __future__ import annotations

import asyncio
import dataclasses
import random
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from compression.signature import Array
from service.breaker import FAILURES, Circuit
from service.course import Course
from service.errors import (
    BadRequestError,
    DeadlineError,
    InferenceError,
    NotFoundError,
    ServiceError,
    UnavailableError,
    UncomputableError,
)
from service.experiments import Experiments
from service.fleet import Fleet
from service.inference import Inference
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import Metrics
from service.pace import DevicePace, Pace
from service.protocol import InferRequest
from service.rollout.assignment import assign
from service.rollout.bandit import parse_reward
from service.rollout.evidence import ArmEvidence, ArmTally, Feedback
from service.rollout.rollout import CANDIDATE, PRIMARY, Arm, Kind, Phase, Rollout
from service.scheduler import Limits, Scheduler
from service.state.sealed import Served
from service.transforming import Transforming
from variants.card import Failure
from variants.catalog import Catalog
from variants.host import this_host
from variants.runtime import RuntimeUnavailableError
from variants.variant import Status

T = TypeVar("T")

NEVER_S = 30.0
LIMITS = Limits(requests=1024, bytes=2**28, inline_ms=1.0)
PATIENT: dict[str, Any] = {"max_latency_ms": 20_000.0}


@pytest.fixture(scope="module")
def fleet(digits: Catalog) -> Fleet:
    fleet = Fleet(digits, this_host(), Metrics(CollectorRegistry()), 32)
    fleet.load_all()
    return fleet


@pytest.fixture
def model(fleet: Fleet) -> LoadedModel:
    return fleet.load("digits")  # with its variants as they are, whatever a test did to them


def test_what_was_never_built_is_not_found_and_what_is_lost_may_come_back(model: LoadedModel) -> None:
    entry = model.card.find("int8-static")
    unbuilt = dataclasses.replace(entry, failure=Failure(Status.SKIPPED, "there is nothing to quantize."))
    for named, failed, error in ((entry, False, UnavailableError), (unbuilt, True, NotFoundError)):
        asked = dataclasses.replace(model, card=model.card.with_entry(named), variants={})
        for version in ("int8-static", entry.id.version):
            asked.refused[version] = "there is nothing to quantize."
            with pytest.raises(error, match=r"quantize\. Use another") as caught:
                asked.pinned(version)
            assert ("is not built" in str(caught.value)) == failed


def test_a_recipe_whose_own_build_is_not_loaded_is_no_name_of_an_other(model: LoadedModel) -> None:
    variants = {name: each for name, each in model.variants.items() if name != "int8-static"}
    asked = dataclasses.replace(model, variants=variants)
    assert set(asked.versions) == {name for name in model.versions if name != "int8-static"}


@asynccontextmanager
async def core(fleet: Fleet) -> AsyncIterator[Inference]:
    metrics = Metrics(CollectorRegistry())
    scheduler, transforming = Scheduler(LIMITS), Transforming(LIMITS, metrics)
    try:
        yield Inference(fleet, scheduler, transforming, metrics)
    finally:
        scheduler.close()
        transforming.close()


def on_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with asyncio.timeout(NEVER_S):
            return await scenario()

    return asyncio.run(run())


def request(rows: int = 1, seed: int = 0) -> InferRequest:
    image = np.random.default_rng(seed).uniform(0, 16, (rows, 64)).astype(np.float32)
    return InferRequest(None, {"image": image}, rows, (), False, {})


async def ask(core: Inference, model: LoadedModel, sent: InferRequest, **parameters: Any) -> Course:
    return await core.infer(model, None, sent, PATIENT | parameters, perf_counter())


def direct(variant: LoadedVariant, sent: InferRequest) -> Array:
    return variant.open().run(sent.inputs)[0]


def refusing(bad: InferRequest, run: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
    """A variant's `run` that cannot compute one row."""

    def raises(inputs: Any) -> list[Array]:
        if (inputs["image"] == bad.inputs["image"][0]).all(axis=1).any():
            raise RuntimeError("this row is too much")
        return run(inputs)

    return raises


def failing(inputs: Any) -> Any:
    raise RuntimeError("broken on purpose")


# ---- answers


def test_no_answer_goes_to_the_wrong_request(fleet: Fleet, model: LoadedModel) -> None:
    """Mixed traffic: tiers, variants, sizes, clients that leave, priorities, impossible wishes."""

    async def scenario() -> tuple[int, int]:
        draw, answered, refused = random.Random(7), 0, 0
        tolerance = {"int8-dynamic": None}

        async def one(number: int) -> None:
            nonlocal answered, refused
            await asyncio.sleep(draw.random() * 0.4)
            sent = request(draw.choice([1, 1, 1, 2, 7, 40]), number)
            pinned = model.variants[draw.choice(model.versions)] if draw.random() < 0.5 else None
            wish = draw.choice(
                [{}, {"tier": "fast"}, {"tier": "accurate"}, {"priority": "batch"}, {"allow_degrade": True}]
            )
            late = {"max_latency_ms": 1e-3} if draw.random() < 0.1 else {}
            task = asyncio.create_task(
                serving.infer(model, pinned, sent, PATIENT | wish | late, perf_counter())
            )
            if draw.random() < 0.1:
                await asyncio.sleep(draw.random() * 0.01)
                task.cancel()
            try:
                outcome = await task
            except (ServiceError, asyncio.CancelledError):
                refused += 1
                return
            answered += 1
            assert outcome.outputs is not None
            got = outcome.outputs["logits"]
            assert got.shape == (sent.rows, 10)
            if outcome.variant.name not in tolerance:  # whose ranges depend on the whole batch
                np.testing.assert_allclose(got, direct(outcome.variant, sent), rtol=1e-4, atol=1e-4)

        async with core(fleet) as serving:
            await asyncio.gather(*[one(number) for number in range(600)])
            assert serving.scheduler.wait_ms() == 0
        return answered, refused

    answered, refused = on_loop(scenario)
    assert answered > 400
    assert refused > 30


def test_what_a_client_that_left_asked_for_never_runs(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            variant, ran = model.variants["fp32"], []
            variant.executed = lambda rows, *_: ran.append(rows)  # type: ignore[method-assign]
            try:
                task = asyncio.create_task(serving.infer(model, variant, request(3), PATIENT, perf_counter()))
                await asyncio.sleep(0)
                task.cancel()
                with pytest.raises(asyncio.CancelledError):
                    await task
                await asyncio.sleep(0.05)
            finally:
                del variant.executed  # type: ignore[attr-defined]
            assert ran == []

    on_loop(scenario)


# ---- variants that fail


def test_a_request_whose_variant_fails_is_answered_by_the_next(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            monkeypatch.setattr(usual, "run", failing)
            for number in range(2 * FAILURES):
                outcome = await ask(serving, model, request(seed=number))
                assert outcome.variant is not usual
                assert outcome.variant.candidate.ratio >= model.slo.default.floor
            assert usual.breaker.circuit is Circuit.OPEN
            assert usual.breaker.failures == FAILURES  # then it was left alone
            with pytest.raises(UnavailableError, match="several times in a row") as caught:
                await serving.infer(model, usual, request(), PATIENT, perf_counter())
            assert caught.value.reason == "breaker"
            monkeypatch.undo()
            usual.breaker.until = 0.0
            await serving.infer(model, usual, request(), PATIENT, perf_counter())
            assert usual.breaker.circuit is Circuit.CLOSED

    on_loop(scenario)


def test_a_pinned_variant_that_fails_is_an_error_of_its_own(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            pinned = model.variants["fp32"]
            monkeypatch.setattr(pinned, "run", failing)
            with pytest.raises(InferenceError):
                await serving.infer(model, pinned, request(), PATIENT, perf_counter())
            pinned.breaker.answered()

    on_loop(scenario)


def test_an_input_that_no_variant_can_compute_is_the_clients_error(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = request(seed=7)

    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            for variant in model.variants.values():
                monkeypatch.setattr(variant, "run", refusing(bad, variant.run))
            for _ in range(2 * FAILURES):
                with pytest.raises(UncomputableError, match="this row is too much") as caught:
                    await ask(serving, model, bad)
                assert (caught.value.status, caught.value.outcome) == (400, "client_error")
            assert {each.breaker.failures for each in model.variants.values()} == {0}
            monkeypatch.undo()
            monkeypatch.setattr(usual, "run", refusing(bad, usual.run))
            assert (await ask(serving, model, bad)).variant is not usual
            assert usual.breaker.failures == 1  # another could: it was the variant
            usual.breaker.answered()

    on_loop(scenario)


def test_a_variant_that_was_closed_opens_on_its_next_request(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            variant, sent = model.variants["fp16"], request(2)
            variant.close()
            assert not variant.is_open
            outcome = await serving.infer(model, variant, sent, PATIENT, perf_counter())
            assert variant.is_open
            assert outcome.outputs is not None
            np.testing.assert_allclose(outcome.outputs["logits"], direct(variant, sent), rtol=1e-5)

    on_loop(scenario)


def test_a_variant_that_cannot_be_opened_again_is_blamed_and_the_next_answers(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refused() -> Any:
        raise RuntimeUnavailableError("its file is gone")

    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            usual.close()
            monkeypatch.setattr(usual, "open", refused)
            # Opening takes no time, by its profile: the router goes on choosing it.
            monkeypatch.setattr(usual, "profile", dataclasses.replace(usual.profile, load_s=0.0))
            for _ in range(FAILURES):
                assert (await ask(serving, model, request())).variant is not usual
            assert usual.breaker.circuit is Circuit.OPEN
            usual.breaker.until = 0.0
            with pytest.raises(InferenceError, match="cannot be opened now"):
                await serving.infer(model, usual, request(), PATIENT, perf_counter())
            monkeypatch.undo()
            usual.breaker.until = 0.0
            await serving.infer(model, usual, request(), PATIENT, perf_counter())
            assert usual.breaker.circuit is Circuit.CLOSED

    on_loop(scenario)


# ---- rollouts


class Known:
    """Stands for the conductor: one rollout that runs, its tallies, and what is kept for labels."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.seal = None
        self.tallies: dict[str, ArmTally] = {arm.name: ArmTally() for arm in rollout.arms}
        self.kept: list[Served] = []

    def active(self, model: str, tier: str) -> Rollout | None:
        return self.rollout

    def tally(self, rollout: str, arm: str) -> ArmTally:
        return self.tallies[arm]

    def remember(self, answer: Served) -> None:
        self.kept.append(answer)

    async def judge(self, labels: Any, score: Any, age_s: float) -> list[Served]:
        found = [answer for answer in self.kept if answer.request in labels]
        self.scores = [score(answer, labels[answer.request]) for answer in found]
        return found


def rollout(candidate: LoadedVariant, weight: float = 100.0, **changes: Any) -> Rollout:
    arms = (
        Arm(PRIMARY, "fp32@000000000000", 100 - weight),
        Arm(CANDIDATE, candidate.version, weight, weight),
    )
    settings: dict[str, Any] = {"kind": Kind.AB, "phase": Phase.PROGRESSING, "tier": None} | changes
    return Rollout(id="r", model="digits", arms=arms, created=0, entered=0, deadline=1e12, **settings)


def joined(serving: Inference, known: Known) -> Experiments:
    made = Experiments(known, serving.scheduler, serving.metrics, "rollouts", 1e9)  # type: ignore[arg-type]
    serving.experiments = made
    return made


def other_than(model: LoadedModel, usual: LoadedVariant) -> LoadedVariant:
    """A good variant that the router does not choose: it knows the usual one alone from now on."""
    floor = model.slo.default.floor
    model.candidates, known = [usual.candidate], model.candidates
    good = [model.variants[each.version] for each in known if each.ratio >= floor]
    return next(variant for variant in good if variant is not usual)


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


def nan(variant: LoadedVariant) -> Callable[[Any], list[Array]]:
    return lambda inputs: [np.full((len(inputs["image"]), 10), np.nan, np.float32)]


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


def named(primary: LoadedVariant, candidate: LoadedVariant, weight: float) -> Rollout:
    """A rollout whose primary is a variant of its own, and not whatever the router chooses."""
    arms = Arm(PRIMARY, primary.version, 100 - weight), Arm(CANDIDATE, candidate.version, weight, weight)
    return dataclasses.replace(rollout(candidate), arms=arms, keeps_primary=True)


def noting(
    variant: LoadedVariant, ran: list[LoadedVariant], takes_s: float = 0.0
) -> Callable[[Any], list[Array]]:
    """A variant's `run` that notes that it ran, and takes its time."""
    run = variant.run

    def noted(inputs: Any) -> list[Array]:
        ran.append(variant)
        time.sleep(takes_s)
        return run(inputs)

    return noted


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


def test_a_candidate_that_is_never_in_time_is_as_slow_as_that(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            candidate = other_than(model, (await ask(serving, model, request())).variant)
            known = Known(rollout(candidate))
            joined(serving, known)
            monkeypatch.setattr(candidate, "predict_ms", lambda rows: 900.0)
            for _ in range(10):
                answer = await ask(serving, model, request(), max_latency_ms=1000.0)
                assert answer.variant is not candidate
                assert answer.total_s < 0.5
            seen = known.tallies[CANDIDATE].take()
            assert (seen.requests, seen.misses, seen.retries, seen.failures) == (10, 10, 10, 0)
            fastest = seen.latency.quantile_s(0.01)
            assert fastest is not None
            assert fastest >= 0.49  # half of the caller's time, and not what the primary took in its place
            for reward in ("in_time", "within 100ms"):
                assert parse_reward(reward).of(seen) == (0, 10)

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


def test_a_candidate_that_fails_has_no_latency(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            candidate = other_than(model, (await ask(serving, model, request())).variant)
            known = Known(rollout(candidate))
            joined(serving, known)
            monkeypatch.setattr(candidate, "run", failing)
            await ask(serving, model, request())
            seen = known.tallies[CANDIDATE].take()
            assert (seen.requests, seen.errors, seen.latency.total) == (1, 1, 0)
            candidate.breaker.answered()

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


def test_what_is_late_in_the_routers_own_choice_is_late_and_no_failure_of_the_arm(
    fleet: Fleet, model: LoadedModel
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            known = Known(named(usual, other_than(model, usual), 0.0))
            joined(serving, known)
            serving.scheduler._busy_until = perf_counter()
            with pytest.raises(DeadlineError):
                await ask(serving, model, request(), max_latency_ms=100.0)
            serving.scheduler._busy_until = None
            tally = known.tallies[PRIMARY]
            assert (tally.requests, tally.misses, tally.timeouts, tally.errors) == (1, 1, 0, 0)

    on_loop(scenario)


def test_answers_that_are_not_finite_are_the_primarys_to_give(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            other = other_than(model, usual)
            monkeypatch.setattr(usual, "run", nan(usual))
            known = Known(named(usual, other, 0.0))
            joined(serving, known)
            assert (await ask(serving, model, request())).variant is usual
            assert known.tallies[PRIMARY].non_finite == 1
            known = Known(named(other, usual, 100.0))  # now it is the candidate, and the primary takes over
            joined(serving, known)
            assert (await ask(serving, model, request())).variant is other
            assert (known.tallies[CANDIDATE].non_finite, known.tallies[CANDIDATE].retries) == (1, 1)

    on_loop(scenario)


def test_what_nobody_can_compute_counts_against_no_arm(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    bad = request(seed=7)

    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            candidate = other_than(model, usual)
            known = Known(rollout(candidate))
            joined(serving, known)
            own = {variant: variant.run for variant in model.variants.values()}
            for variant, run in own.items():
                monkeypatch.setattr(variant, "run", refusing(bad, run))
            with pytest.raises(UncomputableError):
                await ask(serving, model, bad)
            assert known.tallies[CANDIDATE].take() == ArmEvidence()
            monkeypatch.setattr(usual, "run", own[usual])
            assert (await ask(serving, model, bad)).variant is usual
            assert (known.tallies[CANDIDATE].requests, known.tallies[CANDIDATE].errors) == (1, 1)
            candidate.breaker.answered()

    on_loop(scenario)


def test_a_client_that_does_not_wait_for_its_arm_found_it_late(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            candidate = other_than(model, (await ask(serving, model, request())).variant)
            known = Known(rollout(candidate))
            joined(serving, known)
            serving.scheduler._busy_until = perf_counter()
            asking = asyncio.create_task(ask(serving, model, request()))
            await asyncio.sleep(0.01)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            serving.scheduler._busy_until = None
            tally = known.tallies[CANDIDATE]
            assert (tally.requests, tally.misses, tally.errors) == (1, 1, 0)

    on_loop(scenario)


def test_a_client_that_leaves_while_another_takes_over_saw_a_failure(
    fleet: Fleet, model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            candidate = other_than(model, usual)
            known = Known(rollout(candidate))
            joined(serving, known)
            monkeypatch.setattr(candidate, "run", failing)
            monkeypatch.setattr(usual, "run", noting(usual, [], 0.2))
            monkeypatch.setattr(usual, "profiled_ms", lambda rows: 100.0)  # beside the loop
            asking = asyncio.create_task(ask(serving, model, request(), max_latency_ms=1000.0))
            await asyncio.sleep(0.05)
            asking.cancel()
            with pytest.raises(asyncio.CancelledError):
                await asking
            tally = known.tallies[CANDIDATE]
            assert (tally.requests, tally.misses, tally.errors) == (1, 0, 1)
            candidate.breaker.answered()
            await asyncio.sleep(0.2)

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


def test_shadow_copies_are_compared_and_never_wait_for(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            candidate = other_than(model, usual)
            known = Known(rollout(candidate, 0.0, kind=Kind.SHADOW, fraction=1.0))
            joined(serving, known)
            for number in range(40):
                assert (await ask(serving, model, request(seed=number))).variant.version != candidate.version
                await asyncio.sleep(0.005)
            await asyncio.sleep(0.2)
            comparisons = known.tallies[CANDIDATE].comparisons
            assert comparisons.n == 40
            for arm in (PRIMARY, CANDIDATE):  # both in the runtime alone
                assert known.tallies[arm].requests == 40
                slowest = known.tallies[arm].take().latency.quantile_s(0.9)
                assert slowest is not None
                assert slowest < 0.004
            sent = [request(seed=number) for number in range(40)]
            same = [direct(usual, s).argmax() == direct(candidate, s).argmax() for s in sent]
            assert comparisons.agreement == sum(same)
            assert 0 < comparisons.cosine <= 40
            samples = [s for m in serving.metrics.shadow_comparisons.collect() for s in m.samples]
            assert sum(s.value for s in samples if s.name.endswith("_total")) == comparisons.n

    on_loop(scenario)


def test_labels_that_come_later_say_who_was_right(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            usual = (await ask(serving, model, request())).variant
            known = Known(rollout(other_than(model, usual), 50.0))
            experiments = joined(serving, known)
            outcome = await ask(serving, model, request(2))
            assert outcome.outputs is not None
            right = outcome.outputs["logits"].argmax(axis=1).tolist()
            wrong = [(value + 1) % 10 for value in right]
            await experiments.judge({outcome.request_id: right}, lambda _: model.card.spec, 60)
            assert known.scores == [Feedback(1, correct=1.0)]
            await experiments.judge({outcome.request_id: [right[0], wrong[1]]}, lambda _: model.card.spec, 60)
            assert known.scores == [Feedback(1, correct=0.5)]
            with pytest.raises(BadRequestError, match="shape"):
                await experiments.judge({outcome.request_id: [1, 2, 3]}, lambda _: model.card.spec, 60)

    on_loop(scenario)


@pytest.mark.parametrize("own", ["mine-1", None])
def test_a_request_has_the_same_id_wherever_it_is_told_of(
    fleet: Fleet, model: LoadedModel, own: str | None
) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            told: list[str] = []
            serving.refusals.append(lambda error, name, tier, request_id: told.append(request_id))
            sent, impossible = dataclasses.replace(request(), id=own), {"max_latency_ms": 0.0001}
            request_id = own or serving.new_id()
            with pytest.raises(ServiceError):
                await serving.infer(model, None, sent, impossible, perf_counter(), None, request_id)
            assert told == [request_id]
            answer = await serving.infer(model, None, sent, PATIENT, perf_counter())
            assert answer.request_id == own or own is None
            assert answer.request_id

    on_loop(scenario)


def test_a_deadline_that_passed_is_said_and_counted(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            with pytest.raises((DeadlineError, UnavailableError)):
                await serving.infer(model, None, request(), {"max_latency_ms": 5.0}, perf_counter() - 1.0)
            samples = [s for m in serving.metrics.requests.collect() for s in m.samples]
            assert not [s for s in samples if s.labels.get("outcome") == "ok" and s.value]

    on_loop(scenario)


# ---- shapes that a runtime prepares itself for


def test_the_first_call_with_new_shapes_tells_nothing_of_the_pace(
    model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    variant = model.variants["fp32"]
    monkeypatch.setattr(variant, "_pace", Pace(DevicePace()))
    monkeypatch.setattr(variant, "profiled_ms", lambda rows: 2.0)
    slow = 2 * variant.predict_ms(3)

    def batch(rows: int) -> float:
        variant.run(request(rows).inputs)
        variant.executed(rows, 1, slow / 1e3, slow / 1e3, True)
        return variant.predict_ms(3)

    monkeypatch.setattr(variant, "_prepares_shapes", True)
    assert [batch(3), batch(5)] == [2.0, 2.0]
    assert batch(3) > 2.0
    monkeypatch.setattr(variant, "_pace", Pace(DevicePace()))
    monkeypatch.setattr(variant, "_prepares_shapes", False)
    assert batch(7) > 2.0
