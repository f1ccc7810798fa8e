"""The most urgent first, and batches that fill up without making anybody late."""

from __future__ import annotations

import asyncio
import threading
from contextlib import closing
from time import perf_counter
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.signature import Array
from service.queues import Priority
from service.scheduler import Limits, Scheduler
from tests.service.scheduling.scenarios import (
    HEAVY_MS,
    LIMITS,
    NEVER_S,
    Clock,
    Doubling,
    has_started,
    heavy,
    later,
    on_loop,
    rows,
    settle,
)


@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 20)), min_size=1, max_size=20))
def test_the_earliest_deadline_is_first_across_variants(requests: list[tuple[int, int]]) -> None:
    async def scenario() -> None:
        ran: list[float] = []
        variants = [Doubling(f"v{number}", max_rows=1) for number in range(3)]
        for variant in variants:
            variant.answer = lambda x: ran.append(x[0, 0]) or [x]
        clock = Clock()
        with closing(Scheduler(LIMITS, clock)) as scheduler:
            await settle(*[
                scheduler.submit(variants[which], rows(number), 1, clock.now + wait)
                for number, (which, wait) in enumerate(requests)
            ])  # fmt: skip
        deadlines = [requests[int(number)][1] for number in ran]
        assert deadlines == sorted(deadlines)
        assert len(ran) == len(requests)
        for which in range(3):  # equal deadlines: first come, first served
            mine = [number for number in ran if requests[int(number)][0] == which]
            assert mine == sorted(mine, key=lambda number: (requests[int(number)][1], number))

    on_loop(scenario)


def test_an_urgent_request_does_not_wait_for_earlier_ones() -> None:
    async def scenario() -> None:
        blocker, patient, urgent = heavy(), Doubling("patient", base_ms=HEAVY_MS), Doubling("urgent")
        urgent.log = patient.log
        with closing(Scheduler(LIMITS)) as scheduler:
            futures = [scheduler.submit(blocker, rows(0), 1, later())]
            await has_started(blocker)
            futures.append(scheduler.submit(patient, rows(1), 1, perf_counter() + 50))
            futures.append(scheduler.submit(urgent, rows(2), 1, perf_counter() + 40))
            blocker.gate.set()
            await asyncio.gather(*futures)
            assert patient.log == ["urgent", "patient"]

    on_loop(scenario)


@given(
    st.lists(st.tuples(st.integers(1, 12), st.integers(1, 60)), min_size=1, max_size=25),
    st.integers(1, 16),
)
def test_a_batch_keeps_to_its_rows_and_never_makes_its_head_late(
    requests: list[tuple[int, int]], max_rows: int
) -> None:
    """Rows and milliseconds until the deadline of each request; a row takes 2 ms. Time stands still."""

    async def scenario() -> None:
        variant = Doubling(ms_per_row=2.0, max_rows=max_rows)
        clock = Clock()
        with closing(Scheduler(Limits(1000, 1_000_000, inline_ms=1e9), clock)) as scheduler:
            await settle(*[
                scheduler.submit(variant, rows(*[number] * count), count, clock.now + wait / 1e3)
                for number, (count, wait) in enumerate(requests)
            ])  # fmt: skip
        order = sorted(range(len(requests)), key=lambda number: (requests[number][1], number))
        for batch in variant.batches:
            members = [int(number) for number in dict.fromkeys(batch)]
            assert members == order[: len(members)]
            del order[: len(members)]
            head_s = requests[members[0]][1] / 1e3
            if len(members) > 1:
                assert len(batch) <= max_rows
                assert clock.now + variant.predict_ms(len(batch)) / 1e3 <= clock.now + head_s
            if order:  # and it was not smaller than it had to be
                grown = len(batch) + requests[order[0]][0]
                in_time = clock.now + variant.predict_ms(grown) / 1e3 <= clock.now + head_s
                assert grown > max_rows or not in_time
        assert not order

    on_loop(scenario)


def test_a_request_larger_than_a_batch_runs_alone() -> None:
    async def scenario() -> None:
        variant = Doubling(max_rows=4)
        with closing(Scheduler(LIMITS)) as scheduler:
            await asyncio.gather(
                scheduler.submit(variant, rows(*range(9)), 9, later()),
                scheduler.submit(variant, rows(9), 1, later()),
            )
        assert variant.told == [(9, 1), (1, 1)]

    on_loop(scenario)


def test_light_batches_run_on_the_loop_and_heavy_ones_in_one_executor_thread() -> None:
    async def scenario() -> None:
        light, weighty = Doubling("light"), [Doubling(f"heavy{i}", base_ms=HEAVY_MS) for i in range(3)]
        with closing(Scheduler(LIMITS)) as scheduler:
            await asyncio.gather(*[scheduler.submit(v, rows(1), 1, later()) for v in [light, *weighty]])
        assert light.threads == {threading.current_thread().name}
        names = set().union(*[variant.threads for variant in weighty])
        assert len(names) == 1
        assert names.pop().startswith("mipgate-device")

    on_loop(scenario)


@pytest.mark.parametrize(("takes_s", "shared"), [(0.0, True), (0.002, False)])
def test_tiny_batches_of_several_variants_share_a_turn_as_long_as_they_are_tiny_together(
    takes_s: float, shared: bool
) -> None:
    async def scenario() -> None:
        clock = Clock()
        with closing(Scheduler(LIMITS, clock=clock)) as scheduler:
            variants = [Doubling(f"m/{n}", base_ms=0.1) for n in range(3)]

            def answer(x: Array) -> list[Any]:
                clock.now += takes_s
                return [2 * x]

            for variant in variants:
                variant.answer = answer
            *requests, copy = [
                scheduler.submit(variant, rows(1), 1, clock.now + NEVER_S, priority)
                for variant, priority in zip(
                    variants, (Priority.INTERACTIVE, Priority.BATCH, Priority.SHADOW), strict=True
                )
            ]
            await requests[0]
            assert bool(variants[1].batches) is shared
            assert not variants[2].batches  # a copy lets the answers go first
            await settle(*requests, copy)

    on_loop(scenario)


def test_two_models_never_run_at_the_same_time() -> None:
    async def scenario() -> None:
        one, other = heavy("one"), Doubling("other")
        with closing(Scheduler(LIMITS)) as scheduler:
            futures = [scheduler.submit(one, rows(1), 1, later())]
            await has_started(one)
            futures.append(scheduler.submit(other, rows(2), 1, later()))
            for _ in range(10):  # the loop turns while the device is held
                await asyncio.sleep(0)
            assert not other.batches
            one.gate.set()
            await asyncio.gather(*futures)
            assert other.batches == [[2]]

    on_loop(scenario)
