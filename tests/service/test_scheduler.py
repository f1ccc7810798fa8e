"""The scheduler: every request gets its own answer or its own error, the most urgent first, none too late."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping
from contextlib import closing
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from compression.signature import Array
from service.errors import DeadlineError, InferenceError, ServiceError, UnavailableError, UncomputableError
from service.queues import Priority
from service.scheduler import Completed, Limits, Scheduler

unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

T = TypeVar("T")
LIMITS = Limits(requests=1000, bytes=1_000_000, inline_ms=1.0)
HEAVY_MS = 2.0
SOON_S, NEVER_S = 0.05, 20.0


class Doubling:
    """Stands for a loaded variant: `y = 2 x`, a record of its batches, and a gate that holds them."""

    def __init__(
        self, key: str = "m/v", *, ms_per_row: float = 0.0, base_ms: float = 0.0, max_rows: int = 32
    ) -> None:
        self.key = key
        self.max_batch_rows = max_rows
        self.ms_per_row, self.base_ms = ms_per_row, base_ms
        self.batches: list[list[float]] = []
        self.told: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.started, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.answer: Callable[[Array], list[Any]] = lambda x: [2 * x]
        self.log: list[str] = []
        self.well = False
        self.cancelled, self.can_be_cut_off = threading.Event(), False

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(inputs["x"][:, 0].tolist())
        self.log.append(self.key)
        self.started.set()
        assert self.gate.wait(NEVER_S)
        if self.cancelled.is_set():
            self.cancelled.clear()
            raise RuntimeError("cut off")
        return self.answer(inputs["x"])

    def cancel(self) -> None:
        if self.can_be_cut_off:
            self.cancelled.set()
            self.gate.set()

    def predict_ms(self, rows: int) -> float:
        assert rows > 0, "nobody asks how long nothing takes"
        return self.base_ms + self.ms_per_row * rows

    def profiled_ms(self, rows: int) -> float:
        return self.predict_ms(rows)

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        return inputs["x"].shape[1:]

    def executed(self, rows: int, requests: int, seconds: float, held_s: float, ok: bool) -> None:
        assert held_s >= seconds >= 0
        self.told.append((rows, requests))

    def cut_off(self, rows: int, held_s: float) -> None:
        self.told.append((rows, 0))

    def is_well(self) -> bool:
        return self.well


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def heavy(key: str = "m/heavy", **settings: Any) -> Doubling:
    """A variant whose batches run in the executor, and whose gate is closed."""
    variant = Doubling(key, base_ms=HEAVY_MS, **settings)
    variant.gate.clear()
    return variant


def rows(*values: float, width: int = 2) -> dict[str, Array]:
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


def on_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a scenario on an event loop on which an error that nobody handles fails the test."""
    unhandled: list[dict[str, Any]] = []

    async def run() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(NEVER_S):
            return await scenario()

    result = asyncio.run(run())
    assert not unhandled
    return result


def soon() -> float:
    return perf_counter() + SOON_S


def later() -> float:
    return perf_counter() + NEVER_S


async def settle(*futures: asyncio.Future[Completed]) -> list[Completed | BaseException]:
    return await asyncio.gather(*futures, return_exceptions=True)


async def has_started(variant: Doubling) -> None:
    assert await asyncio.to_thread(variant.started.wait, NEVER_S)


# ---- answers


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


@unhurried
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


# ---- order and batches


@unhurried
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


@unhurried
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


# ---- deadlines and clients that left


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


# ---- bounds


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


# ---- failures


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


# ---- threads


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


# ---- the end


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
