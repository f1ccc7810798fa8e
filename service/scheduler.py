"""One scheduler per compute device: what comes first, which requests share a batch, who is told what.

Two models never run at the same time on one device, so that predicted latencies stay true. Batches of tiny
models run on the event loop; heavy ones in one executor thread (the runtime releases the GIL).
Everything but that thread's work happens on the event loop: no locks.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from itertools import chain
from time import perf_counter

import numpy as np

from compression.signature import Array
from service.errors import DeadlineError, InferenceError, OverrunError, UnavailableError
from service.isolation import Apart, check_rows, each_alone
from service.queues import Backlog, Executable, Job, Priority

log = logging.getLogger("mipgate.scheduler")

_CLOSED = "this gateway is shutting down. Try again; another takes over."
_LATE = "the deadline passed before the answer was there. Give more time, or ask for a faster tier."


@dataclass(frozen=True, slots=True)
class Limits:
    """Bounds of one scheduler.

    Attributes:
        requests: Requests that may wait for one variant.
        bytes: Input bytes that may wait for one variant.
        inline_ms: Batches predicted to take less run on the event loop.
    """

    requests: int
    bytes: int
    inline_ms: float


@dataclass(slots=True)  # frozen, it would take three times as long to make, for every request
class Completed:
    """What came of a request. Nobody changes it.

    Attributes:
        outputs: Arrays `(rows, ...)` in the order of the variant's outputs.
        queue_s: Time it waited.
        infer_s: Time that its batch ran.
        batch_rows: Rows of that batch.
        started: When that batch began, on the scheduler's clock; the same for all of its requests.
    """

    outputs: list[Array]
    queue_s: float
    infer_s: float
    batch_rows: int
    started: float


@dataclass(slots=True)
class _Held:
    """What waits for one variant with one priority."""

    requests: int = 0
    bytes: int = 0


class Scheduler:
    """Runs requests on one device."""

    def __init__(
        self,
        limits: Limits,
        clock: Callable[[], float] = perf_counter,
        margin: Callable[[], float] = lambda: 1.0,
    ) -> None:
        """`margin` tells how much longer than predicted a batch may well take now, as a factor."""
        self._limits = limits
        self._clock = clock
        self._backlog: Backlog[Completed] = Backlog(margin)
        self._held: dict[tuple[str, Priority], _Held] = {}
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mipgate-device")
        self._busy_until: float | None = None
        self._running: tuple[Executable, list[Job[Completed]]] | None = None  # in the executor
        self._dispatch_planned = False
        self._closed = False
        self._count = 0

    def depth(self, key: str) -> int:
        """Requests that wait for a variant."""
        return sum(
            self._held[key, priority].requests for priority in Priority if (key, priority) in self._held
        )

    @property
    def is_idle(self) -> bool:
        """Whether nothing runs and nothing waits."""
        return self._busy_until is None and not self._backlog.queues

    def is_inline(self, variant: Executable, rows: int) -> bool:
        """Whether a batch of so many rows runs on the event loop: a busy host does not make it heavy."""
        return variant.profiled_ms(rows) <= self._limits.inline_ms

    def wait_ms(self) -> float:
        """Predicted time until everything that waits or runs now is done."""
        waits_ms = self._backlog.work_ms() if self._backlog.queues else 0.0
        if self._busy_until is None:
            return waits_ms
        return waits_ms + max(0.0, self._busy_until - self._clock()) * 1e3

    def completion_ms(
        self, variant: Executable, inputs: Mapping[str, Array], rows: int, deadline: float, priority: Priority
    ) -> float:
        """Time, on the safe side, until a request that comes now would be done.

        Args:
            variant: What is to answer it.
            inputs: Arrays `(rows, ...)` by name.
            rows: Length of the batch axis; more than a batch may have run in parts.
            deadline: On the scheduler's clock.
            priority: Who goes before it.

        Returns:
            Milliseconds; infinity when it would make others late that were admitted.
        """
        now = self._clock()
        key = (variant.key, variant.shape_key(inputs), priority)
        return (
            self._backlog.forecast(key, variant, priority, rows, deadline, self._free_at(now)) - now
        ) * 1e3

    def submit(
        self,
        variant: Executable,
        inputs: Mapping[str, Array],
        rows: int,
        deadline: float,
        priority: Priority = Priority.INTERACTIVE,
        counts: int = 1,
        until: float | None = None,
    ) -> asyncio.Future[Completed]:
        """Queues a request; the future ends with its outputs or an error of `service.errors`.

        Args:
            variant: What answers it.
            inputs: Arrays `(rows, ...)` by name.
            rows: Length of the batch axis.
            deadline: On the scheduler's clock.
            priority: Who goes before it.
            counts: As how many requests it counts: 0 for what belongs to one that waits already.
            until: When it is given up, on the scheduler's clock, if that is before its deadline, by which it
                takes its turn.

        Raises:
            UnavailableError: The variant's queue is full, or the scheduler is closed.
        """
        if self._closed:
            raise UnavailableError(_CLOSED)
        loop = asyncio.get_running_loop()
        place = variant.key, priority
        held = self._held.get(place)
        if held is None:
            held = self._held[place] = _Held()
        size = sum([array.nbytes for array in inputs.values()])
        if (counts and held.requests >= self._limits.requests) or held.bytes + size > self._limits.bytes:
            raise UnavailableError(
                f"the queue of {variant.key} is full. Try again after Retry-After.",
                "capacity",
                self.wait_ms() / 1e3,
            )
        self._count += 1
        until = deadline if until is None else until
        future: asyncio.Future[Completed] = loop.create_future()
        job = Job(deadline, self._count, rows, until, inputs, size, self._clock(), future, counts)
        held.requests += counts
        held.bytes += size
        self._backlog.push((variant.key, variant.shape_key(inputs), priority), variant, priority, job)
        if self._busy_until is not None:
            self._set_timer(loop, job, job.arrived)
        else:
            self._plan_dispatch(loop)
        return future

    def close(self) -> None:
        """Lets the running batch end and refuses what waits and what comes."""
        self._closed = True
        for job in self._backlog.clear():
            if not job.future.done():
                job.future.set_exception(UnavailableError(_CLOSED))
        self._held.clear()
        self._executor.shutdown(wait=True)

    def _free_at(self, now: float) -> float:
        return now if self._busy_until is None else max(now, self._busy_until)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, job: Job[Completed], now: float) -> None:
        """The device may be held beyond a request's deadline; its answer must not wait for it."""
        if not (job.has_timer or job.future.done()):
            job.has_timer = True
            timer = loop.call_later(max(0.0, job.until - now), _expire, job)

            def settled(_: asyncio.Future[Completed]) -> None:
                timer.cancel()
                self._cut_off()

            job.future.add_done_callback(settled)

    def _cut_off(self) -> None:
        """Ends the running batch once nobody waits for it: all are late, or left."""
        if self._running is not None:
            variant, jobs = self._running
            if all([job.future.done() for job in jobs]):
                variant.cancel()

    def _plan_dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Dispatches when the loop has read what is there to read: those requests share a batch."""
        if not self._dispatch_planned:
            self._dispatch_planned = True
            loop.call_soon(self._dispatch, loop)

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs the most urgent batches: tiny ones until they are no longer tiny together, or one heavy one.

        Those who were answered by one tiny batch would ask again one by one beside the next: batches would
        shrink from turn to turn.
        """
        self._dispatch_planned = False
        turn_ends = self._clock() + self._limits.inline_ms / 1e3
        while self._busy_until is None and (batch := self._next_batch()) is not None:
            if not self._run_inline(*batch):
                self._run_beside(loop, *batch)
            elif self._backlog.queues and (self._clock() > turn_ends or not self._backlog.is_pressing):
                self._plan_dispatch(loop)
                return

    def _run_inline(self, variant: Executable, jobs: list[Job[Completed]], rows: int) -> bool:
        """Runs a tiny batch on the loop; returns whether it was tiny."""
        if not self.is_inline(variant, rows):
            return False
        started = self._clock()
        self._finish(variant, jobs, rows, started, _run(variant, jobs, self._clock))
        return True

    def _run_beside(
        self, loop: asyncio.AbstractEventLoop, variant: Executable, jobs: list[Job[Completed]], rows: int
    ) -> None:
        """Runs a heavy batch in the executor, then what waits."""
        started = self._clock()
        self._busy_until = started + variant.predict_ms(rows) / 1e3
        self._running = variant, jobs
        running = loop.run_in_executor(self._executor, _run, variant, jobs, self._clock)
        waiting = (queue.jobs for queue in self._backlog.queues.values())
        for job in chain(jobs, *waiting):
            self._set_timer(loop, job, started)

        def done(future: asyncio.Future[_Ran]) -> None:
            self._busy_until = self._running = None
            self._finish(variant, jobs, rows, started, future.result())
            self._dispatch(loop)

        running.add_done_callback(done)

    def _next_batch(self) -> tuple[Executable, list[Job[Completed]], int] | None:
        """The most urgent batch without the requests that expired or whose clients left: they never run."""
        while batch := self._backlog.next_batch(self._clock()):
            variant, priority, taken = batch
            held, now = self._held[variant.key, priority], self._clock()
            jobs, rows = [], 0
            for job in taken:
                held.requests -= job.counts
                held.bytes -= job.bytes
                if job.future.done():
                    continue
                if job.until < now:
                    _expire(job)
                    continue
                job.begun = now
                jobs.append(job)
                rows += job.rows
            if jobs:
                return variant, jobs, rows
        return None

    def _finish(
        self, variant: Executable, jobs: list[Job[Completed]], rows: int, started: float, ran: _Ran
    ) -> None:
        """Gives each request its rows of the batch's outputs."""
        outputs, seconds = ran
        if outputs is None:
            variant.cut_off(rows, self._clock() - started)
            return
        if isinstance(outputs, Apart):
            self._finish_apart(variant, jobs, outputs, started, seconds)
            return
        variant.executed(rows, len(jobs), seconds, self._clock() - started, True)
        offset = 0
        for job in jobs:
            if job.future.done():
                pass  # it expired while the batch ran
            elif started + seconds > job.deadline:
                _expire(job)
            else:
                part = outputs if job.rows == rows else [o[offset : offset + job.rows] for o in outputs]
                job.future.set_result(Completed(part, started - job.arrived, seconds, rows, started))
            offset += job.rows

    def _finish_apart(
        self, variant: Executable, jobs: list[Job[Completed]], apart: Apart, started: float, seconds: float
    ) -> None:
        """Gives each request of a batch that failed what came of it alone."""
        if not apart.is_well:
            rows = sum(job.rows for job in jobs)
            variant.executed(rows, len(jobs), seconds, self._clock() - started, False)
        for job, outcome in zip(jobs, apart.outcomes, strict=True):
            if job.future.done():
                pass  # it expired while the batch ran
            elif started + seconds > job.deadline:
                _expire(job)
            elif isinstance(outcome, InferenceError):
                job.future.set_exception(outcome)
            else:
                done = Completed(outcome, started - job.arrived, seconds, job.rows, started)
                job.future.set_result(done)


_Ran = tuple[list[Array] | Apart | None, float]


def _run(variant: Executable, jobs: list[Job[Completed]], clock: Callable[[], float]) -> _Ran:
    """Runs a batch.

    Returns:
        Its outputs, or what came of each request alone where it failed, or None where nobody waits for it any
        more; and the seconds that it took.
    """
    started = clock()
    outputs: list[Array] | Apart | None
    try:
        outputs = variant.run(_stack(jobs))
        check_rows(outputs, sum([job.rows for job in jobs]))
    except Exception as error:  # the runtime's errors have no common base but this
        gone = all([job.future.done() for job in jobs])
        outputs = None if gone else each_alone(variant, jobs, error)
    return outputs, clock() - started


def _stack(jobs: list[Job[Completed]]) -> Mapping[str, Array]:
    if len(jobs) == 1:
        return jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}


def _expire(job: Job[Completed]) -> None:
    if job.future.done():
        return
    late = DeadlineError(_LATE)
    if job.begun is not None:
        late = OverrunError(_LATE, job.begun, job.until - job.begun)
    job.future.set_exception(late)
