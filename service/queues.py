"""What waits for a device, in which order it runs, and when each of it would be done.

The order is earliest deadline first over all variants; a batch takes as many requests of one queue as its
first one's deadline allows. Requests of priority `batch` run when no other waits, and have a share of the
device's time besides; copies for a comparison run when nothing else waits. `Backlog.next_batch` decides for
real and `Backlog.forecast` plays the same decisions forward, so that requests are admitted on what will
happen, not on the length of a queue.
"""

from __future__ import annotations

import asyncio
from bisect import bisect_right, insort
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass
from enum import IntEnum
from math import inf
from operator import attrgetter
from typing import Generic, Protocol, TypeVar

from compression.signature import Array

# Of the device's time for priority `batch`, while others wait too.
BATCH_SHARE = 0.125

T = TypeVar("T")


class Priority(IntEnum):
    """Who goes first."""

    INTERACTIVE = 0
    BATCH = 1
    SHADOW = 2


class Executable(Protocol):
    """What the scheduler needs of a loaded variant."""

    key: str
    max_batch_rows: int

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch."""

    def predict_ms(self, rows: int) -> float:
        """Predicted time of a batch, as this host runs now."""

    def profiled_ms(self, rows: int) -> float:
        """Time of a batch by the profile."""

    def cancel(self) -> None:
        """Ends the batch that runs, if any, without answers; from another thread."""

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        """Requests of the same key can share a batch."""

    def executed(self, rows: int, requests: int, seconds: float, held_s: float, ok: bool) -> None:
        """Told of each batch: how long it ran, how long it held the device, and whether it gave answers."""

    def cut_off(self, rows: int, held_s: float) -> None:
        """Told of each batch that was ended because nobody waited for it any more."""

    def is_well(self) -> bool:
        """Whether it answers a row that is known to be good; from any thread."""


@dataclass(slots=True, eq=False)
class Turn:
    """A place in a queue: by deadline, then by number; it is given up at `until`, which may be earlier."""

    deadline: float
    number: float
    rows: int
    until: float

    def __lt__(self, other: Turn) -> bool:
        if self.deadline == other.deadline:
            return self.number < other.number
        return self.deadline < other.deadline


@dataclass(slots=True, eq=False)
class Job(Turn, Generic[T]):
    """A request that waits, or a part of one; of its parts only the first counts."""

    inputs: Mapping[str, Array]
    bytes: int
    arrived: float
    future: asyncio.Future[T]
    counts: int = 1
    has_timer: bool = False
    begun: float | None = None


J = TypeVar("J", bound=Turn)


class Queue(Generic[J]):
    """The waiting requests of one variant and priority that can share batches, earliest deadline first.

    Attributes:
        waits_ms: Predicted time of all that waits here, as of the last change: it is asked for more often.
    """

    __slots__ = ("jobs", "priority", "rows", "variant", "waits_ms")

    def __init__(self, variant: Executable, priority: Priority) -> None:
        self.variant = variant
        self.priority = priority
        self.jobs: list[J] = []
        self.rows = 0
        self.waits_ms = 0.0

    @property
    def head(self) -> J:
        """The request of the earliest deadline."""
        return self.jobs[0]

    def push(self, job: J) -> None:
        """Adds a request where its deadline belongs."""
        if not self.jobs or self.jobs[-1].deadline < job.deadline or self.jobs[-1] < job:
            self.jobs.append(job)
        else:
            insort(self.jobs, job)
        self.rows += job.rows
        self.waits_ms = self._batches_ms(self.rows)

    def pop(self, count: int, rows: int) -> list[J]:
        """Takes the first requests out, which have so many rows together."""
        jobs, self.jobs = self.jobs[:count], self.jobs[count:]
        self.rows -= rows
        self.waits_ms = self._batches_ms(self.rows) if self.jobs else 0.0
        return jobs

    def more_ms(self, rows: int) -> float:
        """Predicted time that so many rows more would add."""
        return self._batches_ms(self.rows + rows) - self.waits_ms

    def _batches_ms(self, rows: int) -> float:
        most = self.variant.max_batch_rows
        if rows <= most:
            return self.variant.predict_ms(rows)
        full, rest = divmod(rows, most)
        return full * self.variant.predict_ms(most) + (self.variant.predict_ms(rest) if rest else 0.0)

    def work_before_ms(self, deadline: float, rows: int) -> float:
        """Predicted time of what surely runs here until a request of so many rows is done, it included."""
        place = bisect_right(self.jobs, deadline, key=attrgetter("deadline"))
        before = place if self.rows == len(self.jobs) else sum([job.rows for job in self.jobs[:place]])
        return self._batches_ms(before + rows)

    def fit(self, now: float, margin: float) -> tuple[int, int]:
        """Requests of the next batch, and their rows: the first, and what the time of all has room for.

        Args:
            now: When it would begin.
            margin: How much longer than predicted it may take.
        """
        jobs, variant = self.jobs, self.variant
        first = jobs[0]
        if self.priority is Priority.SHADOW:
            return 1, first.rows  # who comes meanwhile waits for no more than one
        if self.rows <= variant.max_batch_rows and (
            now + variant.predict_ms(self.rows) * margin / 1e3 <= min([job.until for job in jobs])
        ):
            return len(jobs), self.rows
        rows, end, until = first.rows, 1, first.until
        while end < len(jobs):
            more, until = rows + jobs[end].rows, min(until, jobs[end].until)
            if more > variant.max_batch_rows or now + variant.predict_ms(more) * margin / 1e3 > until:
                break
            rows, end = more, end + 1
        return end, rows

    def copy(self) -> Queue[Turn]:
        """The same requests, to play with."""
        copy = Queue[Turn](self.variant, self.priority)
        copy.jobs, copy.rows, copy.waits_ms = list(self.jobs), self.rows, self.waits_ms
        return copy


Queues = dict[Hashable, Queue[J]]


class Backlog(Generic[T]):
    """Everything that waits for one device.

    Args:
        margin: How much longer than predicted a batch may well take now, as a factor: what is promised holds
            even then.
    """

    def __init__(self, margin: Callable[[], float] = lambda: 1.0) -> None:
        self._margin = margin
        self.queues: Queues[Job[T]] = {}  # none of them is empty
        self._owed_ms = 0.0  # to priority `batch`

    def push(self, key: Hashable, variant: Executable, priority: Priority, job: Job[T]) -> None:
        """Adds a request to its queue."""
        queue = self.queues.get(key)
        if queue is None:
            queue = self.queues[key] = Queue(variant, priority)
        queue.push(job)

    def work_ms(self) -> float:
        """Predicted time of all that waits."""
        return sum([queue.waits_ms for queue in self.queues.values()])

    @property
    def is_pressing(self) -> bool:
        """Whether anything but copies waits."""
        return any([queue.priority is not Priority.SHADOW for queue in self.queues.values()])

    def next_batch(self, now: float) -> tuple[Executable, Priority, list[Job[T]]] | None:
        """Takes the most urgent batch out; requests that expired or were abandoned may be in it."""
        if not self.queues:
            return None
        queue, jobs, self._owed_ms = _take(self.queues, self._owed_ms, now, self._margin())
        return queue.variant, queue.priority, jobs

    def clear(self) -> list[Job[T]]:
        """Takes everything out."""
        jobs = [job for queue in self.queues.values() for job in queue.jobs]
        self.queues.clear()
        return jobs

    def forecast(
        self,
        key: Hashable,
        variant: Executable,
        priority: Priority,
        rows: int,
        deadline: float,
        free_at: float,
    ) -> float:
        """When a request that comes now would be done.

        Args:
            key: Of its queue.
            variant: What is to answer it.
            priority: Who goes before it.
            rows: Its rows.
            deadline: On the scheduler's clock.
            free_at: When the device is free.

        Returns:
            A time on the scheduler's clock; infinity when it would make late what waits already and would
            be in time without it.
        """
        margin = self._margin()
        alone_s = variant.predict_ms(rows) * margin / 1e3
        if not self.queues:
            return free_at + alone_s
        own = self.queues.get(key)
        more_s = own.more_ms(rows) * margin / 1e3 if own else alone_s
        finish = free_at + self.work_ms() * margin / 1e3 + more_s
        earliest = min(queue.head.deadline for queue in self.queues.values())
        if finish <= min(deadline, earliest):
            return finish  # in whatever order
        at_least = free_at + (own.work_before_ms(deadline, rows) * margin / 1e3 if own else alone_s)
        if at_least > deadline:
            return at_least  # whatever the others do
        return self._play(key, variant, priority, Turn(deadline, inf, rows, deadline), free_at, alone_s)

    def _play(
        self,
        key: Hashable,
        variant: Executable,
        priority: Priority,
        newcomer: Turn,
        now: float,
        alone_s: float,
    ) -> float:
        """Plays the device's decisions forward with the newcomer among what waits."""
        queues = {known: queue.copy() for known, queue in self.queues.items()}
        queues.setdefault(key, Queue[Turn](variant, priority)).push(newcomer)
        owed_ms, answer, margin = self._owed_ms, inf, self._margin()
        while queues:
            queue, jobs, owed_ms = _take(queues, owed_ms, now, margin)
            now += queue.variant.predict_ms(sum([job.rows for job in jobs])) * margin / 1e3
            if newcomer in jobs:
                answer = now
                if answer > newcomer.deadline:
                    return answer
            # What ran before the newcomer is as late as it would be without it.
            promised = queue.priority is not Priority.SHADOW
            if promised and answer < inf and any([0 < now - job.deadline <= alone_s for job in jobs]):
                return inf
            if answer < inf and _are_unhurried(queues, now, margin):
                return answer
        return answer


def _are_unhurried(queues: Queues[J], now: float, margin: float) -> bool:
    """Whether everything is in time, in whatever order it runs."""
    if not queues:
        return True
    work_ms = sum(queue.waits_ms for queue in queues.values())
    return now + work_ms * margin / 1e3 <= min(queue.head.deadline for queue in queues.values())


def _take(queues: Queues[J], owed_ms: float, now: float, margin: float) -> tuple[Queue[J], list[J], float]:
    """The next batch, taken out of its queue, and what is owed to priority `batch` then."""
    first: dict[Priority, Hashable] = {}
    for key, queue in queues.items():
        best = first.get(queue.priority)
        if best is None or queue.head < queues[best].head:
            first[queue.priority] = key
    key = first[min(first)]
    patient = first.get(Priority.BATCH)
    both_wait = patient is not None and key != patient
    if patient is not None and both_wait and owed_ms >= queues[patient].variant.predict_ms(1):
        key = patient
    queue = queues[key]
    count, rows = queue.fit(now, margin)
    took_ms = queue.variant.predict_ms(rows)
    if not both_wait:
        owed_ms = 0.0
    elif key == patient:
        owed_ms = max(0.0, owed_ms - took_ms)
    else:
        owed_ms += took_ms * BATCH_SHARE / (1 - BATCH_SHARE)
    jobs = queue.pop(count, rows)
    if not queue.jobs:
        del queues[key]
    return queue, jobs, owed_ms
