"""Every request gets its own answer or its own error, and a failure costs its own batch only."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from contextlib import closing
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.signature import Array
from service.errors import InferenceError, ServiceError, UnavailableError, UncomputableError
from service.scheduler import Completed, Scheduler
from tests.service.scheduling.scenarios import HEAVY_MS, LIMITS, Clock, Doubling, later, on_loop, rows, settle


def test_a_request_gets_its_answer_and_how_long_it_took() -> None:
    async def scenario() -> None:
        with closing(Scheduler(LIMITS)) as scheduler:
            variant = Doubling()
            done = await scheduler.submit(variant, rows(1, 2), 2, later())
            assert done.outputs[0].tolist() == [[2, 2], [4, 4]]
            assert done.batch_rows == 2
            assert done.queue_s >= 0
            assert done.infer_s >= 0
            assert variant.told == [(2, 1)]

    on_loop(scenario)


def test_requests_that_arrive_together_share_a_batch() -> None:
    async def scenario() -> None:
        with closing(Scheduler(LIMITS)) as scheduler:
            variant = Doubling()
            answers = await settle(*[scheduler.submit(variant, rows(i), 1, later()) for i in range(5)])
            assert [answer.outputs[0][0, 0] for answer in answers] == [0, 2, 4, 6, 8]
            assert variant.told == [(5, 5)]

    on_loop(scenario)


def test_requests_of_different_shapes_do_not_share_a_batch() -> None:
    async def scenario() -> None:
        with closing(Scheduler(LIMITS)) as scheduler:
            variant = Doubling()
            wide = scheduler.submit(variant, rows(1, width=3), 1, later())
            narrow = scheduler.submit(variant, rows(2, width=2), 1, later())
            await settle(wide, narrow)
            assert wide.result().outputs[0].tolist() == [[2, 2, 2]]
            assert narrow.result().outputs[0].tolist() == [[4, 4]]
            assert variant.told == [(1, 1), (1, 1)]

    on_loop(scenario)


REQUEST = st.tuples(st.integers(0, 2), st.integers(1, 9), st.integers(2, 3), st.integers(0, 3))


@given(st.lists(REQUEST, min_size=1, max_size=40))
def test_every_answer_goes_to_its_own_request(requests: list[tuple[int, int, int, int]]) -> None:
    """Any interleaving of light and heavy variants, batch sizes, shapes and turns of the loop."""

    async def scenario() -> None:
        variants = [Doubling("light"), Doubling("tiny", max_rows=3), Doubling("heavy", base_ms=HEAVY_MS)]
        with closing(Scheduler(LIMITS)) as scheduler:

            async def ask(number: int, which: int, count: int, width: int, turns: int) -> None:
                for _ in range(turns):
                    await asyncio.sleep(0)
                sent = rows(*[1000 * number + row for row in range(count)], width=width)
                done = await scheduler.submit(variants[which], sent, count, later())
                assert np.array_equal(done.outputs[0], 2 * sent["x"])
                assert done.batch_rows >= count

            await asyncio.gather(*[ask(number, *request) for number, request in enumerate(requests)])
            assert [scheduler.depth(variant.key) for variant in variants] == [0, 0, 0]
            assert scheduler.wait_ms() == 0

        ran = [value for variant in variants for batch in variant.batches for value in batch]
        assert len(ran) == len(set(ran)) == sum(count for _, count, _, _ in requests)

    on_loop(scenario)


@pytest.mark.parametrize("base_ms", [0.0, HEAVY_MS], ids=["inline", "executor"])
def test_a_batch_that_fails_fails_its_own_requests_only(base_ms: float) -> None:
    async def scenario() -> None:
        bad, good = Doubling("bad", base_ms=base_ms), Doubling("good", base_ms=base_ms)

        def fail(x: Array) -> list[Array]:
            raise RuntimeError("secret internals")

        bad.answer = fail
        with closing(Scheduler(LIMITS)) as scheduler:
            outcomes = await settle(
                *[scheduler.submit(variant, rows(i), 1, later()) for i, variant in enumerate([bad, good] * 2)]
            )
            assert [type(outcome) for outcome in outcomes] == [InferenceError, Completed] * 2
            assert "secret" not in str(outcomes[0])
            bad.answer = lambda x: [3 * x]
            assert (await scheduler.submit(bad, rows(5), 1, later())).outputs[0][0, 0] == 15

    on_loop(scenario)


@pytest.mark.parametrize("base_ms", [0.0, HEAVY_MS], ids=["inline", "executor"])
@pytest.mark.parametrize(("well", "kind"), [(True, UncomputableError), (False, InferenceError)])
def test_an_input_that_cannot_be_computed_costs_its_own_request_only(
    base_ms: float, well: bool, kind: type[InferenceError]
) -> None:
    async def scenario() -> None:
        variant = Doubling(base_ms=base_ms)
        variant.well = well

        def answer(x: Array) -> list[Array]:
            if (x == 3).any():
                raise RuntimeError("index 3 is out of bounds")
            return [2 * x]

        variant.answer = answer
        with closing(Scheduler(LIMITS)) as scheduler:
            outcomes = await settle(*[scheduler.submit(variant, rows(i), 1, later()) for i in range(6)])
            assert [type(outcome) for outcome in outcomes] == [Completed] * 3 + [kind] + [Completed] * 2
            assert [o.outputs[0][0, 0] for o in outcomes if isinstance(o, Completed)] == [0, 2, 4, 8, 10]
            assert ("index 3 is out of bounds" in str(outcomes[3])) is well
            assert variant.told == ([] if well else [(6, 6)])

    on_loop(scenario)


@pytest.mark.parametrize("base_ms", [0.0, HEAVY_MS], ids=["inline", "executor"])
@pytest.mark.parametrize(
    "answer",
    [lambda x: [x[:-1]], lambda x: [np.concatenate([x, x])], lambda x: [x, x[:1]], lambda x: [x.sum()]],
    ids=["fewer", "more", "second output", "scalar"],
)
def test_a_wrong_number_of_rows_is_an_error_of_its_batch_and_no_mix_up(
    base_ms: float, answer: Callable[[Array], list[Any]]
) -> None:
    async def scenario() -> None:
        bad, good = Doubling("bad", base_ms=base_ms), Doubling("good", base_ms=base_ms)
        bad.answer = answer
        with closing(Scheduler(LIMITS)) as scheduler:
            one, two, three = await settle(
                scheduler.submit(bad, rows(1, 2), 2, later()),
                scheduler.submit(bad, rows(3), 1, later()),
                scheduler.submit(good, rows(4), 1, later()),
            )
        assert isinstance(one, InferenceError)
        # alone, a single row can have the right number of rows
        assert isinstance(two, InferenceError) or two.outputs[0][0, 0] == 3
        assert isinstance(three, Completed)
        assert three.outputs[0].tolist() == [[8, 8]]

    on_loop(scenario)


def test_every_error_of_the_scheduler_says_fact_and_remedy() -> None:
    async def scenario() -> list[BaseException | Completed]:
        bad, clock = Doubling("bad"), Clock()
        bad.answer = lambda x: []
        with closing(Scheduler(LIMITS, clock)) as scheduler:
            outcomes = await settle(
                scheduler.submit(bad, rows(1), 1, clock.now - 1), scheduler.submit(bad, rows(1), 1, clock.now)
            )
        with pytest.raises(UnavailableError) as caught:
            scheduler.submit(bad, rows(1), 1, clock.now)
        return [*outcomes, caught.value]

    for error in on_loop(scenario):
        assert isinstance(error, ServiceError | Completed)
        if isinstance(error, ServiceError):
            assert str(error).count(". ") >= 1
