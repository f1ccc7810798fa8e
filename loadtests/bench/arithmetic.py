"""From recorded rounds to medians and ratios: pure. A peer that did not answer is a hole, not a win."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

MIN_ROUNDS = 3


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the closed-loop client against one contender.

    Attributes:
        requests: Answers that came.
        seconds: How long it ran.
        p50_ms: Median latency.
        p99_ms: 99th percentile of latency.
        bad_answers: Answers whose status was an error.
        socket_errors: Connections, reads, writes that failed or timed out.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad_answers: int = 0
    socket_errors: int = 0

    @property
    def requests_per_s(self) -> float:
        """Throughput."""
        return self.requests / self.seconds

    @property
    def tail(self) -> float:
        """The 99th percentile over the median."""
        return self.p99_ms / self.p50_ms

    @property
    def flaw(self) -> str | None:
        """Why the run says nothing about speed, or None."""
        if not self.requests or not self.p50_ms:
            return "no answers"
        if self.bad_answers:
            return f"{self.bad_answers} of {self.requests} answers were errors"
        return f"{self.socket_errors} socket errors" if self.socket_errors else None


Round = Mapping[str, Sample | None]
"""One run of each contender; None where it was not there."""

Rounds = Sequence[Mapping[str, Round]]
"""Rounds of several cases, such as `json, 16 connections`."""


class Spread(TypedDict):
    """A median with the least and the greatest of the rounds that it comes from."""

    median: float
    low: float
    high: float


class Figures(TypedDict):
    """What the rounds of one contender say; None where one of its rounds is void, with the reason."""

    requests_per_s: Spread | None
    p50_ms: Spread | None
    p99_ms: Spread | None
    void: str | None


def case(rounds: Rounds, name: str) -> list[Round]:
    """The rounds of one case."""
    return [each.get(name, {}) for each in rounds]


def spread(values: Sequence[float]) -> Spread:
    """Median, least and greatest."""
    return {"median": median(values), "low": min(values), "high": max(values)}


def figures(name: str, rounds: Sequence[Round]) -> Figures:
    """Medians of one contender."""
    if void := why_void(name, rounds):
        return {"requests_per_s": None, "p50_ms": None, "p99_ms": None, "void": void}
    samples = [sample for each in rounds if (sample := each.get(name)) is not None]
    return {
        "requests_per_s": spread([sample.requests_per_s for sample in samples]),
        "p50_ms": spread([sample.p50_ms for sample in samples]),
        "p99_ms": spread([sample.p99_ms for sample in samples]),
        "void": None,
    }


def why_void(name: str, rounds: Sequence[Round]) -> str | None:
    """One flawed round voids a contender: what was dropped or refused there was not worked on."""
    for number, each in enumerate(rounds, 1):
        sample = each.get(name)
        if sample is None:
            return f"did not answer in round {number}"
        if sample.flaw:
            return f"{sample.flaw} in round {number}"
    return None if rounds else "no rounds"


def throughput(sample: Sample) -> float:
    """Requests per second, as a value to compare."""
    return sample.requests_per_s


def tail(sample: Sample) -> float:
    """p99 over p50, as a value to compare."""
    return sample.tail


def ratios(
    ours: Sequence[Round],
    our_name: str,
    theirs: Sequence[Round],
    their_name: str,
    value: Callable[[Sample], float] = throughput,
) -> list[float]:
    """Our value over theirs, paired by round; empty where either is void."""
    if why_void(our_name, ours) or why_void(their_name, theirs):
        return []
    return [
        value(our) / value(their)
        for left, right in zip(ours, theirs, strict=True)
        if (our := left[our_name]) is not None and (their := right[their_name]) is not None
    ]


def best(names: Sequence[str], rounds: Sequence[Round]) -> str | None:
    """The contender of these with the highest median throughput; None when all are void."""
    known = {name: speed["median"] for name in names if (speed := figures(name, rounds)["requests_per_s"])}
    return max(known, key=lambda name: known[name]) if known else None


@dataclass(frozen=True, slots=True)
class Outcome:
    """What came of one open loop.

    Attributes:
        offered: Requests that were due.
        seconds: Length of the time in which they were due.
        in_time: Answered before their deadline, counted from when they were due.
        late: Answered later than that, or told that it is too late (504), or never.
        rejected: Refused at once (503).
        failed: Any other answer.
        degraded: Of those in time, answered below their floor, as they allowed.
        correct: Of those in time, with the right class.
        p50_ms: Median latency of those that were answered.
        p99_ms: Its 99th percentile.
        client_lag_ms: 99th percentile of how much later than due requests were sent.
    """

    offered: int
    seconds: float
    in_time: int
    late: int
    rejected: int
    failed: int
    degraded: int
    correct: int
    p50_ms: float | None
    p99_ms: float | None
    client_lag_ms: float

    @property
    def goodput(self) -> float:
        """Answers in time per second."""
        return self.in_time / self.seconds

    @property
    def misses(self) -> float:
        """Share of what was offered that got no answer in time."""
        return (self.offered - self.in_time) / self.offered

    @property
    def late_of_admitted(self) -> float:
        """Share of what was not refused that came late."""
        admitted = self.offered - self.rejected
        return self.late / admitted if admitted else 0.0

    @property
    def accuracy(self) -> float | None:
        """Share of the answers in time that were right."""
        return self.correct / self.in_time if self.in_time else None
