"""Nobody hears too late: deadlines in the queue and in a batch, clients that left."""

from __future__ import annotations

import asyncio
from contextlib import closing
from time import perf_counter

import pytest

from compression.signature import Array
from service.errors import DeadlineError
from service.scheduler import Completed, Scheduler
from tests.service.scheduling.scenarios import (
    LIMITS,
    SOON_S,
    Clock,
    Doubling,
    has_started,
    heavy,
    later,
    on_loop,
    rows,
    settle,
)


def soon() -> float:
    return perf_counter() + SOON_S


def test_a_request_that_is_late_already_never_runs() -> None:
    async def scenario() -> None:
        variant, clock = Doubling(), Clock()
        with closing(Scheduler(LIMITS, clock)) as scheduler:
            late, good = await settle(
                scheduler.submit(variant, rows(1), 1, clock.now - 0.001),
                scheduler.submit(variant, rows(2), 1, clock.now + 1),
            )
        assert isinstance(late, DeadlineError)
        assert isinstance(good, Completed)
        assert variant.batches == [[2]]

    on_loop(scenario)


def test_a_request_that_expires_in_the_queue_never_runs() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(LIMITS)) as scheduler:
            first = scheduler.submit(variant, rows(1), 1, later())
            await has_started(variant)
            late = scheduler.submit(variant, rows(2), 1, soon())
            good = scheduler.submit(variant, rows(3), 1, later())
            with pytest.raises(DeadlineError):
                await late
            assert not first.done()  # the error did not wait for the device
            variant.gate.set()
            await asyncio.gather(first, good)
        assert variant.batches == [[1], [3]]

    on_loop(scenario)


@pytest.mark.parametrize("which", ["same variant", "other variant"])
def test_a_request_queued_just_before_a_heavy_batch_starts_hears_at_its_deadline(which: str) -> None:
    async def scenario() -> None:
        variant = heavy(max_rows=1)
        other = variant if which == "same variant" else heavy("m/other")
        with closing(Scheduler(LIMITS)) as scheduler:
            # The first has no deadline to speak of, but its batch of one is under way when the loop turns.
            first = scheduler.submit(variant, rows(1), 1, perf_counter() + SOON_S / 2)
            late = scheduler.submit(other, rows(2), 1, soon())
            with pytest.raises(DeadlineError):
                await late
            assert variant.started.is_set()
            assert not variant.gate.is_set()
            variant.gate.set()
            other.gate.set()
            with pytest.raises(DeadlineError):
                await first
        assert variant.batches == [[1]]
        assert which == "same variant" or not other.batches

    on_loop(scenario)


def test_a_request_in_a_batch_that_takes_too_long_hears_at_its_deadline() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(LIMITS)) as scheduler:
            late = scheduler.submit(variant, rows(1), 1, soon())
            patient = scheduler.submit(variant, rows(2), 1, later())
            with pytest.raises(DeadlineError):
                await late
            assert not patient.done()
            variant.gate.set()
            assert (await patient).outputs[0][0, 0] == 4
        assert variant.batches == [[1, 2]]

    on_loop(scenario)


def test_an_answer_that_comes_after_the_deadline_is_late() -> None:
    async def scenario() -> None:
        variant, clock = Doubling(), Clock()

        def slow(x: Array) -> list[Array]:
            clock.now += 2
            return [x]

        variant.answer = slow
        with closing(Scheduler(LIMITS, clock)) as scheduler:
            late, good = await settle(
                scheduler.submit(variant, rows(1), 1, clock.now + 1),
                scheduler.submit(variant, rows(2), 1, clock.now + 3),
            )
        assert isinstance(late, DeadlineError)
        assert isinstance(good, Completed)

    on_loop(scenario)


def test_a_request_that_was_cancelled_never_runs() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(LIMITS)) as scheduler:
            first = scheduler.submit(variant, rows(1), 1, later())
            await has_started(variant)
            left = scheduler.submit(variant, rows(2), 1, later())
            stays = scheduler.submit(variant, rows(3), 1, later())
            left.cancel()
            variant.gate.set()
            await asyncio.gather(first, stays)
        assert variant.batches == [[1], [3]]

    on_loop(scenario)


def test_a_request_that_is_cancelled_while_it_runs_disturbs_nobody() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(LIMITS)) as scheduler:
            left = scheduler.submit(variant, rows(1, 2), 2, later())
            stays = scheduler.submit(variant, rows(3), 1, later())
            await has_started(variant)
            left.cancel()
            variant.gate.set()
            assert (await stays).outputs[0].tolist() == [[6, 6]]

    on_loop(scenario)


def test_a_batch_that_nobody_waits_for_any_more_is_cut_off() -> None:
    async def scenario() -> None:
        variant, other = heavy(), Doubling("other")
        variant.can_be_cut_off = True
        with closing(Scheduler(LIMITS)) as scheduler:
            left = scheduler.submit(variant, rows(1), 1, later())
            late = scheduler.submit(variant, rows(2), 1, soon())
            await has_started(variant)
            waits = scheduler.submit(other, rows(3), 1, later())
            left.cancel()
            assert not variant.gate.is_set()  # one of two still waits
            with pytest.raises(DeadlineError):
                await late
            assert (await waits).outputs[0][0, 0] == 6  # the device is free
        assert variant.told == [(2, 0)]

    on_loop(scenario)


def test_a_batch_whose_clients_all_left_is_cut_off() -> None:
    async def scenario() -> None:
        variant = heavy()
        variant.can_be_cut_off = True
        with closing(Scheduler(LIMITS)) as scheduler:
            left = scheduler.submit(variant, rows(1), 1, later())
            await has_started(variant)
            left.cancel()
            assert (await scheduler.submit(Doubling("other"), rows(3), 1, later())).outputs[0][0, 0] == 6
        assert variant.told == [(1, 0)]

    on_loop(scenario)
