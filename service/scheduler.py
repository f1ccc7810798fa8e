"""One scheduler per compute device: queues per variant, earliest deadline first, batches that fit.

Two models never run at the same time on one device, so that predicted latencies stay true. Batches of tiny
models run on the event loop; heavy ones in one executor thread (the runtime releases the GIL).
Everything but that thread's work happens on the event loop: no locks.
"""

from __future__ import annotations

import asyncio
import heapq
import logging
from collections.abc import Callable, Hashable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from itertools import chain
from time import perf_counter
from typing import Protocol

import numpy as np

from compression.signature import Array
from service.errors import DeadlineError, InferenceError, UnavailableError

log = logging.getLogger("mipgate.scheduler")

_CLOSED = "this gateway is shutting down. Try again; another takes over."
_LATE = "the deadline passed before the answer was there. Give more time, or ask for a faster tier."


class Executable(Protocol):
    """What the scheduler needs of a loaded variant."""

    key: str
    max_batch_rows: int

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch."""

    def predict_ms(self, rows: int) -> float:
        """Predicted time of a batch."""

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        """Requests of the same key can share a batch."""

    def executed(self, rows: int, requests: int, seconds: float) -> None:
        """Told of each batch that ran."""


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


@dataclass(frozen=True, slots=True)
class Completed:
    """What came of a request.

    Attributes:
        outputs: Arrays `(rows, ...)` in the order of the variant's outputs.
        queue_s: Time it waited.
        infer_s: Time that its batch ran.
        batch_rows: Rows of that batch.
    """

    outputs: list[Array]
    queue_s: float
    infer_s: float
    batch_rows: int


@dataclass(order=True, slots=True)
class _Job:
    deadline: float
    number: int
    inputs: Mapping[str, Array] = field(compare=False)
    rows: int = field(compare=False)
    bytes: int = field(compare=False)
    arrived: float = field(compare=False)
    future: asyncio.Future[Completed] = field(compare=False)
    has_timer: bool = field(default=False, compare=False)


@dataclass(slots=True)
class _Backlog:
    """What waits for one variant, in all of its queues."""

    requests: int = 0
    bytes: int = 0


class _Queue:
    """The waiting requests of one variant that can share batches, earliest deadline first."""

    __slots__ = ("backlog", "jobs", "rows", "variant")

    def __init__(self, variant: Executable, backlog: _Backlog) -> None:
        self.variant = variant
        self.backlog = backlog
        self.jobs: list[_Job] = []
        self.rows = 0

    def push(self, job: _Job) -> None:
        heapq.heappush(self.jobs, job)
        self.rows += job.rows
        self.backlog.requests += 1
        self.backlog.bytes += job.bytes

    def pop(self) -> _Job:
        job = heapq.heappop(self.jobs)
        self.rows -= job.rows
        self.backlog.requests -= 1
        self.backlog.bytes -= job.bytes
        return job


class Scheduler:
    """Runs requests on one device."""

    def __init__(self, limits: Limits, clock: Callable[[], float] = perf_counter) -> None:
        self._limits = limits
        self._clock = clock
        self._queues: dict[Hashable, _Queue] = {}  # none of them is empty
        self._backlogs: dict[str, _Backlog] = {}
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mipgate-device")
        self._busy_until: float | None = None
        self._dispatch_planned = False
        self._closed = False
        self._count = 0

    def depth(self, key: str) -> int:
        """Requests that wait for a variant."""
        return self._backlogs[key].requests if key in self._backlogs else 0

    def wait_ms(self) -> float:
        """Predicted time until everything that waits or runs now is done."""
        waiting = sum(queue.variant.predict_ms(queue.rows) for queue in self._queues.values())
        running = 0.0 if self._busy_until is None else max(0.0, self._busy_until - self._clock()) * 1e3
        return waiting + running

    def submit(
        self, variant: Executable, inputs: Mapping[str, Array], rows: int, deadline: float
    ) -> asyncio.Future[Completed]:
        """Queues a request; the future ends with its outputs or an error of `service.errors`.

        Args:
            variant: What answers it.
            inputs: Arrays `(rows, ...)` by name.
            rows: Length of the batch axis.
            deadline: On the scheduler's clock.

        Raises:
            UnavailableError: The variant's queue is full, or the scheduler is closed.
        """
        if self._closed:
            raise UnavailableError(_CLOSED)
        loop = asyncio.get_running_loop()
        backlog = self._backlogs.setdefault(variant.key, _Backlog())
        size = sum(array.nbytes for array in inputs.values())
        if backlog.requests >= self._limits.requests or backlog.bytes + size > self._limits.bytes:
            raise UnavailableError(
                f"the queue of {variant.key} is full. Try again after Retry-After.",
                "capacity",
                self.wait_ms() / 1e3,
            )
        key = (variant.key, variant.shape_key(inputs))
        queue = self._queues.get(key)
        if queue is None:
            queue = self._queues[key] = _Queue(variant, backlog)
        self._count += 1
        job = _Job(deadline, self._count, inputs, rows, size, self._clock(), loop.create_future())
        queue.push(job)
        if self._busy_until is not None:
            self._set_timer(loop, job, job.arrived)
        else:
            self._plan_dispatch(loop)
        return job.future

    def close(self) -> None:
        """Lets the running batch end and refuses what waits and what comes."""
        self._closed = True
        for queue in self._queues.values():
            while queue.jobs:
                job = queue.pop()
                if not job.future.done():
                    job.future.set_exception(UnavailableError(_CLOSED))
        self._queues.clear()
        self._executor.shutdown(wait=True)

    def _set_timer(self, loop: asyncio.AbstractEventLoop, job: _Job, now: float) -> None:
        """The device may be held beyond a request's deadline; its answer must not wait for it."""
        if not (job.has_timer or job.future.done()):
            job.has_timer = True
            timer = loop.call_later(max(0.0, job.deadline - now), _expire, job.future)
            job.future.add_done_callback(lambda _: timer.cancel())

    def _plan_dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Dispatches when the loop has read what is there to read: those requests share a batch."""
        if not self._dispatch_planned:
            self._dispatch_planned = True
            loop.call_soon(self._dispatch, loop)

    def _dispatch(self, loop: asyncio.AbstractEventLoop) -> None:
        """Runs the most urgent batch, then gives the loop a turn."""
        self._dispatch_planned = False
        if self._busy_until is not None:
            return
        batch = self._next_batch()
        if batch is None:
            return
        variant, jobs, rows = batch
        predicted_ms = variant.predict_ms(rows)
        if predicted_ms <= self._limits.inline_ms:
            _finish(variant, jobs, rows, self._clock(), *_run(variant, jobs, self._clock))
            if self._queues:
                self._plan_dispatch(loop)
            return
        started = self._clock()
        self._busy_until = started + predicted_ms / 1e3
        running = loop.run_in_executor(self._executor, _run, variant, jobs, self._clock)
        for job in chain(jobs, *(queue.jobs for queue in self._queues.values())):
            self._set_timer(loop, job, started)

        def done(future: asyncio.Future[_Ran]) -> None:
            self._busy_until = None
            _finish(variant, jobs, rows, started, *future.result())
            self._dispatch(loop)

        running.add_done_callback(done)

    def _next_batch(self) -> tuple[Executable, list[_Job], int] | None:
        """The queue with the earliest deadline, and as many of its requests as that deadline allows."""
        while self._queues:
            key, queue = min(self._queues.items(), key=lambda item: item[1].jobs[0].deadline)
            jobs = self._take(queue)
            if not queue.jobs:
                del self._queues[key]
            if jobs:
                return queue.variant, jobs, sum(job.rows for job in jobs)
        return None

    def _take(self, queue: _Queue) -> list[_Job]:
        now = self._clock()
        variant, jobs, rows = queue.variant, list[_Job](), 0
        while queue.jobs:
            head = queue.jobs[0]
            if jobs and (
                rows + head.rows > variant.max_batch_rows
                or now + variant.predict_ms(rows + head.rows) / 1e3 > jobs[0].deadline
            ):
                break
            job = queue.pop()
            if job.future.done():
                continue  # expired or abandoned: it never runs
            if job.deadline < now:
                _expire(job.future)
                continue
            jobs.append(job)
            rows += job.rows
        return jobs


_Ran = tuple[list[Array] | Exception, float]


def _run(variant: Executable, jobs: list[_Job], clock: Callable[[], float]) -> _Ran:
    """Runs a batch; returns its outputs or what went wrong, and the seconds it took."""
    started = clock()
    try:
        outputs: list[Array] | Exception = variant.run(_stack(jobs))
    except Exception as error:  # the runtime's errors have no common base but this
        outputs = error
    return outputs, clock() - started


def _stack(jobs: list[_Job]) -> Mapping[str, Array]:
    if len(jobs) == 1:
        return jobs[0].inputs
    return {name: np.concatenate([job.inputs[name] for job in jobs]) for name in jobs[0].inputs}


def _finish(
    variant: Executable,
    jobs: list[_Job],
    rows: int,
    started: float,
    outputs: list[Array] | Exception,
    seconds: float,
) -> None:
    """Gives each request its rows of the batch's outputs."""
    variant.executed(rows, len(jobs), seconds)
    if isinstance(outputs, Exception):
        log.error("%s failed on a batch of %d rows", variant.key, rows, exc_info=outputs)
    elif any(np.shape(output)[:1] != (rows,) for output in outputs):
        shapes = [np.shape(output) for output in outputs]
        log.error("%s gave shapes %s for a batch of %d rows", variant.key, shapes, rows)
        outputs = ValueError("wrong number of rows")
    offset = 0
    for job in jobs:
        if job.future.done():
            pass  # it expired while the batch ran
        elif started + seconds > job.deadline:
            _expire(job.future)
        elif isinstance(outputs, Exception):
            job.future.set_exception(
                InferenceError(f"{variant.key} failed on this batch. Try again, or pin another variant.")
            )
        else:
            part = outputs if job.rows == rows else [o[offset : offset + job.rows] for o in outputs]
            job.future.set_result(Completed(part, started - job.arrived, seconds, rows))
        offset += job.rows


def _expire(future: asyncio.Future[Completed]) -> None:
    if not future.done():
        future.set_exception(DeadlineError(_LATE))
