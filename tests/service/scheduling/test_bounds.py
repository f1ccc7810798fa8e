"""How many may wait: bounds of requests and bytes, the wait that is told, and the end."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing

import pytest

from service.errors import UnavailableError
from service.queues import Priority
from service.scheduler import Completed, Limits, Scheduler
from tests.service.scheduling.scenarios import (
    HEAVY_MS,
    LIMITS,
    NEVER_S,
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


def test_priorities_and_parts_of_a_request_do_not_take_each_others_places() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(Limits(2, 1_000_000, 1.0))) as scheduler:
            running = scheduler.submit(variant, rows(0), 1, later())
            await has_started(variant)
            parts = [
                scheduler.submit(variant, rows(n), 1, later(), Priority.BATCH, int(n == 1))
                for n in range(1, 40)
            ]
            assert scheduler.depth(variant.key) == 1
            others = [scheduler.submit(variant, rows(n), 1, later()) for n in (50, 51)]
            with pytest.raises(UnavailableError):
                scheduler.submit(variant, rows(52), 1, later())
            variant.gate.set()
            done = await asyncio.gather(running, *parts, *others)
            assert [each.outputs[0][0, 0] for each in done] == [0, *range(2, 80, 2), 100, 102]
            assert scheduler.depth(variant.key) == 0

    on_loop(scenario)


def assert_full(caught: pytest.ExceptionInfo[UnavailableError]) -> None:
    error = caught.value
    assert (error.reason, error.outcome) == ("capacity", "rejected")
    assert int(dict(error.headers())[b"retry-after"]) >= 1


def test_more_requests_than_may_wait_are_refused_until_there_is_room() -> None:
    async def scenario() -> None:
        variant, other = heavy(), Doubling("other")
        with closing(Scheduler(Limits(2, 1_000_000, 1.0))) as scheduler:
            running = scheduler.submit(variant, rows(0), 1, later())
            await has_started(variant)
            waiting = [scheduler.submit(variant, rows(i), 1, later()) for i in (1, 2)]
            assert scheduler.depth(variant.key) == 2
            with pytest.raises(UnavailableError, match=r"m/heavy is full") as caught:
                scheduler.submit(variant, rows(3), 1, later())
            assert_full(caught)
            elsewhere = scheduler.submit(other, rows(4), 1, later())  # another variant has its own queue
            variant.gate.set()
            await asyncio.gather(running, *waiting, elsewhere)
            await scheduler.submit(variant, rows(5), 1, later())
        assert [3] not in variant.batches

    on_loop(scenario)


def test_more_bytes_than_may_wait_are_refused() -> None:
    async def scenario() -> None:
        variant = heavy()
        row_bytes = rows(0)["x"].nbytes
        with closing(Scheduler(Limits(1000, 3 * row_bytes, 1.0))) as scheduler:
            running = scheduler.submit(variant, rows(0), 1, later())
            await has_started(variant)
            waiting = scheduler.submit(variant, rows(1, 2), 2, later())
            with pytest.raises(UnavailableError) as caught:
                scheduler.submit(variant, rows(3, 4), 2, later())
            assert_full(caught)
            fits = scheduler.submit(variant, rows(5), 1, later())
            variant.gate.set()
            await asyncio.gather(running, waiting, fits)

    on_loop(scenario)


def test_a_request_larger_than_the_queue_is_refused_and_disturbs_nobody() -> None:
    async def scenario() -> None:
        variant = Doubling(base_ms=0.5)
        with closing(Scheduler(Limits(1000, rows(0)["x"].nbytes, 1.0))) as scheduler:
            with pytest.raises(UnavailableError):
                scheduler.submit(variant, rows(1, 2), 2, later())
            assert scheduler.wait_ms() == 0
            assert (await scheduler.submit(variant, rows(3), 1, later())).outputs[0][0, 0] == 6
            assert (await scheduler.submit(Doubling("other"), rows(4), 1, later())).outputs[0][0, 0] == 8

    on_loop(scenario)


def test_one_bound_holds_for_all_shapes_of_a_variant() -> None:
    async def scenario() -> None:
        variant = heavy()
        with closing(Scheduler(Limits(2, 1_000_000, 1.0))) as scheduler:
            futures = [scheduler.submit(variant, rows(0), 1, later())]
            await has_started(variant)
            futures += [scheduler.submit(variant, rows(0, width=width), 1, later()) for width in (3, 4)]
            assert scheduler.depth(variant.key) == 2
            with pytest.raises(UnavailableError):
                scheduler.submit(variant, rows(0, width=5), 1, later())
            variant.gate.set()
            await asyncio.gather(*futures)
            assert scheduler.depth(variant.key) == 0

    on_loop(scenario)


def test_the_wait_is_what_waits_and_what_is_left_of_what_runs() -> None:
    async def scenario() -> None:
        clock = Clock()
        variant = heavy(ms_per_row=1.0)
        with closing(Scheduler(LIMITS, clock)) as scheduler:
            assert scheduler.wait_ms() == 0
            futures = [scheduler.submit(variant, rows(1, 2), 2, clock.now + NEVER_S)]
            assert scheduler.wait_ms() == pytest.approx(HEAVY_MS + 2)
            await has_started(variant)
            futures.append(scheduler.submit(variant, rows(3), 1, clock.now + NEVER_S))
            assert scheduler.wait_ms() == pytest.approx(HEAVY_MS + 2 + HEAVY_MS + 1)
            clock.now += 0.003
            assert scheduler.wait_ms() == pytest.approx(1 + HEAVY_MS + 1)
            clock.now += 10  # it takes longer than predicted
            assert scheduler.wait_ms() == pytest.approx(HEAVY_MS + 1)
            variant.gate.set()
            await asyncio.gather(*futures)
            assert scheduler.wait_ms() == 0

    on_loop(scenario)


def test_closing_lets_the_running_batch_end_and_refuses_the_rest() -> None:
    async def scenario() -> None:
        variant = heavy(max_rows=1)
        scheduler = Scheduler(LIMITS)
        running = scheduler.submit(variant, rows(1), 1, later())
        await has_started(variant)
        waiting = scheduler.submit(variant, rows(2), 1, later())
        threading.Timer(SOON_S, variant.gate.set).start()
        scheduler.close()
        assert variant.gate.is_set()  # it waited
        done, refused = await settle(running, waiting)
        assert isinstance(done, Completed)
        assert isinstance(refused, UnavailableError)
        assert scheduler.depth(variant.key) == 0
        for late in (variant, Doubling("light")):
            with pytest.raises(UnavailableError):
                scheduler.submit(late, rows(3), 1, later())
        assert variant.batches == [[1]]

    on_loop(scenario)
