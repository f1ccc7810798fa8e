"""Requests on real variants: every answer is its own, and failures cost nobody."""

from __future__ import annotations

import asyncio
import dataclasses
import random
from time import perf_counter
from typing import Any

import numpy as np
import pytest

from service.breaker import FAILURES, Circuit
from service.errors import (
    DeadlineError,
    InferenceError,
    NotFoundError,
    ServiceError,
    UnavailableError,
    UncomputableError,
)
from service.fleet import Fleet
from service.loaded import LoadedModel
from service.pace import DevicePace, Pace
from tests.service.inference.core import (
    PATIENT,
    ask,
    core,
    direct,
    failing,
    on_loop,
    refusing,
    request,
)
from variants.card import Failure
from variants.runtime import RuntimeUnavailableError
from variants.variant import Status


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


def test_a_deadline_that_passed_is_said_and_counted(fleet: Fleet, model: LoadedModel) -> None:
    async def scenario() -> None:
        async with core(fleet) as serving:
            with pytest.raises((DeadlineError, UnavailableError)):
                await serving.infer(model, None, request(), {"max_latency_ms": 5.0}, perf_counter() - 1.0)
            samples = [s for m in serving.metrics.requests.collect() for s in m.samples]
            assert not [s for s in samples if s.labels.get("outcome") == "ok" and s.value]

    on_loop(scenario)


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
