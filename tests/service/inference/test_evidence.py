"""What a rollout counts of the requests that it sees."""

from __future__ import annotations

import asyncio
import dataclasses
from time import perf_counter

import pytest

from service.errors import (
    BadRequestError,
    DeadlineError,
    ServiceError,
    UncomputableError,
)
from service.fleet import Fleet
from service.loaded import LoadedModel
from service.rollout.bandit import parse_reward
from service.rollout.evidence import ArmEvidence, Feedback
from service.rollout.rollout import CANDIDATE, PRIMARY, Kind
from tests.service.inference.core import (
    PATIENT,
    Known,
    ask,
    core,
    direct,
    failing,
    joined,
    named,
    nan,
    noting,
    on_loop,
    other_than,
    refusing,
    request,
    rollout,
)


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
