"""What waits: forecasts come true, and nobody who was admitted is made late by a newcomer."""

from __future__ import annotations

from dataclasses import dataclass, replace
from math import inf, isinf
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.queues import BATCH_SHARE, Backlog, Job, Priority, Queue

INTERACTIVE, BATCH, SHADOW = Priority


@dataclass
class Timed:
    """Stands for a variant: a batch takes `base_ms` and `ms_per_row` for each row."""

    key: str
    base_ms: float = 1.0
    ms_per_row: float = 1.0
    max_batch_rows: int = 4

    def predict_ms(self, rows: int) -> float:
        assert rows > 0
        return self.base_ms + self.ms_per_row * rows

    def profiled_ms(self, rows: int) -> float:
        return self.predict_ms(rows)

    def cancel(self) -> None:
        raise NotImplementedError

    def run(self, inputs: Any) -> list[Any]:
        raise NotImplementedError

    def shape_key(self, inputs: Any) -> None:
        return None

    def executed(self, *figures: Any) -> None:
        raise NotImplementedError

    def cut_off(self, *figures: Any) -> None:
        raise NotImplementedError

    def is_well(self) -> bool:
        raise NotImplementedError


def job(deadline: float, number: int, rows: int = 1) -> Job[Any]:
    return Job(deadline, number, rows, deadline, {}, 0, 0.0, None)  # type: ignore[arg-type]


def test_a_batch_is_over_before_any_of_its_requests_is_given_up() -> None:
    queue: Queue[Job[Any]] = Queue(Timed("v", 0.0, 50.0, 16), INTERACTIVE)
    for number in range(7):
        queue.push(replace(job(1.0, number), until=1.0 if number == 0 else 0.81))
    assert queue.fit(0.6, 1.0) == (4, 4)


def drain(backlog: Backlog[Any], now: float) -> dict[float, float]:
    """Runs everything; the time at which each number was done."""
    done = {}
    while batch := backlog.next_batch(now):
        variant, _, jobs = batch
        now += variant.predict_ms(sum(each.rows for each in jobs)) / 1e3
        done |= {each.number: now for each in jobs}
    return done


REQUESTS = st.lists(
    st.tuples(st.integers(0, 2), st.integers(1, 60), st.integers(1, 4), st.booleans()), max_size=30
)
VARIANTS = [Timed("fp32", 2.0, 4.0), Timed("int8", 1.0, 1.0, 8), Timed("tiny", 0.1, 0.1, 32)]


def filled(requests: list[tuple[int, int, int, bool]]) -> Backlog[Any]:
    backlog: Backlog[Any] = Backlog()
    for number, (which, due_ms, rows, urgent) in enumerate(requests):
        variant = VARIANTS[which]
        backlog.push(
            (variant.key, urgent), variant, INTERACTIVE if urgent else BATCH, job(due_ms / 1e3, number, rows)
        )
    return backlog


@given(REQUESTS, st.integers(0, 2), st.integers(1, 80), st.integers(1, 4), st.booleans(), st.integers(0, 20))
def test_a_forecast_comes_true_when_nobody_else_comes(
    requests: list[tuple[int, int, int, bool]], which: int, due_ms: int, rows: int, urgent: bool, free_ms: int
) -> None:
    variant, free_at, deadline = VARIANTS[which], free_ms / 1e3, due_ms / 1e3
    backlog = filled(requests)
    forecast = backlog.forecast(
        (variant.key, urgent), variant, INTERACTIVE if urgent else BATCH, rows, deadline, free_at
    )
    before = drain(filled(requests), free_at)
    backlog.push((variant.key, urgent), variant, INTERACTIVE if urgent else BATCH, job(deadline, 1000, rows))
    after = drain(backlog, free_at)
    if isinf(forecast):
        return
    if forecast <= deadline:  # admitted: it is in time, and so is everybody who was
        assert after[1000] <= deadline + 1e-9
        for number, (_, due, _, _) in enumerate(requests):
            was, now = before[number], after[number]
            assert now <= due / 1e3 + 1e-9 or was > due / 1e3 or now - was > variant.predict_ms(rows) / 1e3
    else:
        assert after[1000] > deadline - 1e-9


def test_the_earliest_deadline_is_first_and_its_batch_fills_up_from_its_own_queue() -> None:
    backlog: Backlog[Any] = Backlog()
    slow, fast = Timed("slow"), Timed("fast")
    for number, (variant, due) in enumerate([(slow, 0.5), (fast, 0.2), (slow, 0.1), (slow, 0.9)]):
        backlog.push((variant.key,), variant, INTERACTIVE, job(due, number))
    order = []
    while batch := backlog.next_batch(0.0):
        order.append([each.number for each in batch[2]])
    assert order == [[2, 0, 3], [1]]


def test_a_request_that_would_push_another_over_its_deadline_is_told_so() -> None:
    backlog: Backlog[Any] = Backlog()
    slow = Timed("slow", 0.0, 10.0, 1)
    backlog.push(("slow",), slow, INTERACTIVE, job(0.015, 0))
    assert isinf(backlog.forecast(("slow",), slow, INTERACTIVE, 1, 0.012, 0.0))
    assert backlog.forecast(("slow",), slow, INTERACTIVE, 1, 0.030, 0.0) == pytest.approx(0.020)


def test_one_that_is_late_anyway_keeps_nobody_out() -> None:
    backlog: Backlog[Any] = Backlog()
    slow = Timed("slow", 0.0, 10.0, 1)
    backlog.push(("slow",), slow, INTERACTIVE, job(0.005, 0))
    assert backlog.forecast(("slow",), slow, INTERACTIVE, 1, 0.030, 0.0) == pytest.approx(0.020)


def test_interactive_requests_go_first_and_batch_ones_have_their_share() -> None:
    backlog: Backlog[Any] = Backlog()
    variant = Timed("v", 0.0, 1.0, 1)
    for number in range(80):
        backlog.push(("v", True), variant, INTERACTIVE, job(10.0, number))
        backlog.push(("v", False), variant, BATCH, job(1.0, 1000 + number))
    order = [batch[2][0].number for _ in range(80) if (batch := backlog.next_batch(0.0))]
    assert order[0] == 0
    patient = [number for number in order if number >= 1000]
    assert len(patient) == pytest.approx(80 * BATCH_SHARE, abs=1)
    first_half = [number for number in order[:40] if number >= 1000]
    assert first_half, "it is not starved"
    rest = [batch[2][0].number for _ in range(80) if (batch := backlog.next_batch(0.0))]
    assert rest[-1] >= 1000
    assert not backlog.queues


def test_batch_requests_use_an_idle_device_at_once() -> None:
    backlog: Backlog[Any] = Backlog()
    variant = Timed("v")
    backlog.push(("v", False), variant, BATCH, job(1.0, 0))
    batch = backlog.next_batch(0.0)
    assert batch is not None
    assert batch[2][0].number == 0


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 50)), min_size=1, max_size=900))
def test_a_long_life_of_pushes_and_takes_keeps_the_count(steps: list[tuple[bool, int]]) -> None:
    backlog: Backlog[Any] = Backlog()
    variant = Timed("v", max_batch_rows=3)
    pushed = taken = 0
    for number, (push, due) in enumerate(steps):
        if push:
            backlog.push(("v",), variant, INTERACTIVE, job(due, number))
            pushed += 1
        elif batch := backlog.next_batch(inf):
            taken += len(batch[2])
    left = backlog.clear()
    assert taken + len(left) == pushed
    assert backlog.work_ms() == 0


def test_copies_run_when_nothing_else_waits() -> None:
    backlog: Backlog[Any] = Backlog()
    variant = Timed("v", 0.0, 1.0, 1)
    for priority in (SHADOW, BATCH, INTERACTIVE):
        for number in range(3):
            backlog.push(("v", priority), variant, priority, job(1.0, 10 * priority + number))
    order = [batch[2][0].number // 10 for _ in range(9) if (batch := backlog.next_batch(0.0))]
    assert order[-3:] == [SHADOW] * 3
    assert order[0] == INTERACTIVE


def test_copies_run_one_by_one_as_others_may_come_meanwhile() -> None:
    backlog: Backlog[Any] = Backlog()
    variant = Timed("v", 0.0, 1.0, 8)
    for number in range(3):
        backlog.push(("v", SHADOW), variant, SHADOW, job(1e6, number))
    assert [len(batch[2]) for _ in range(3) if (batch := backlog.next_batch(0.0))] == [1, 1, 1]
