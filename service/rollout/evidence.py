"""What was seen of each arm: counts that add up, whichever worker saw them and in whichever order."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

# Latencies fall into buckets that grow by 2.2%, from one microsecond to 18 minutes.
BUCKETS_PER_OCTAVE = 32
_SHORTEST_S = 1e-6
_LAST = 30 * BUCKETS_PER_OCTAVE - 1
_MOST_APART = 10_000  # latencies that wait for their buckets: many at once take a fraction of the time
# What stands for a difference without a bound: JSON has no infinity.
UNBOUNDED = 1e300


def bucket(seconds: float) -> int:
    """The bucket that a latency falls into."""
    return int(_buckets(seconds))


def _buckets(seconds: float | Sequence[float]) -> Any:
    """The buckets that latencies fall into, as an array of integers."""
    octaves = np.log2(np.maximum(seconds, _SHORTEST_S) / _SHORTEST_S)
    return np.minimum(BUCKETS_PER_OCTAVE * octaves, _LAST).astype(int)


def lower_edge_s(index: float) -> float:
    """Where a bucket begins, in seconds; halves lie inside."""
    return float(_SHORTEST_S * 2.0 ** (index / BUCKETS_PER_OCTAVE))


@dataclass(frozen=True, slots=True)
class Histogram:
    """Latencies by bucket.

    Attributes:
        counts: How many fell into each bucket, where any did.
    """

    counts: Mapping[int, int] = field(default_factory=dict)

    @classmethod
    def of(cls, seconds: Sequence[float]) -> Histogram:
        """Latencies as they were measured."""
        found, counts = np.unique(_buckets(seconds), return_counts=True)
        return cls(dict(zip(found.tolist(), counts.tolist(), strict=True)))

    @property
    def total(self) -> int:
        """How many latencies there are."""
        return sum(self.counts.values())

    def merged(self, other: Histogram) -> Histogram:
        """Both together."""
        counts = dict(self.counts)
        for index, count in other.counts.items():
            counts[index] = counts.get(index, 0) + count
        return Histogram(counts)

    def quantile_s(self, share: float) -> float | None:
        """The latency, in seconds, that this share of requests did not exceed; None where there are none."""
        rank, seen = share * self.total, 0
        for index in sorted(self.counts):
            seen += self.counts[index]
            if seen >= rank:
                return lower_edge_s(index + 0.5)
        return None

    def within(self, seconds: float) -> int:
        """How many were surely no longer than this: whole buckets below it."""
        last = bucket(seconds)
        return sum(count for index, count in self.counts.items() if index < last)

    def to_json(self) -> list[list[int]]:
        """Pairs of bucket and count."""
        return [[index, self.counts[index]] for index in sorted(self.counts)]

    @classmethod
    def from_json(cls, pairs: Iterable[Iterable[int]]) -> Histogram:
        """Reads what `to_json` wrote."""
        return cls({index: count for index, count in pairs})


@dataclass(frozen=True, slots=True)
class Comparisons:
    """Answers to the same requests beside the primary's: one request is one sample, whatever its rows.

    Attributes:
        n: Requests that both answered.
        agreement: Sum of the shares of rows with the same class.
        cosine: Sum of the mean cosine similarities, each 0..1.
        max_abs: The largest difference of two numbers so far.
    """

    n: int = 0
    agreement: float = 0.0
    cosine: float = 0.0
    max_abs: float = 0.0

    def merged(self, other: Comparisons) -> Comparisons:
        """Both together."""
        return Comparisons(
            self.n + other.n,
            self.agreement + other.agreement,
            self.cosine + other.cosine,
            max(self.max_abs, other.max_abs),
        )


@dataclass(frozen=True, slots=True)
class Feedback:
    """What labels said that came later: one request is one sample.

    Attributes:
        n: Requests with a label.
        correct: Sum of the shares of rows that were right, for metrics of classes.
        loss: Sum of the mean losses, for metrics of numbers.
        loss_squares: Sum of their squares.
    """

    n: int = 0
    correct: float = 0.0
    loss: float = 0.0
    loss_squares: float = 0.0

    def merged(self, other: Feedback) -> Feedback:
        """Both together."""
        return Feedback(
            self.n + other.n,
            self.correct + other.correct,
            self.loss + other.loss,
            self.loss_squares + other.loss_squares,
        )


@dataclass(frozen=True, slots=True)
class ArmEvidence:
    """What was seen of one arm, in all or since it was last written down.

    Attributes:
        requests: Requests that the arm was given, failed ones included.
        errors: Of these, those whose inference failed.
        timeouts: Those on which the runtime still worked when the arm's time was over.
        non_finite: Those whose answer held NaN or infinities.
        retries: Those that another variant answered instead.
        misses: Those whose turn did not come in the arm's time, or whose client did not wait. One that
            failed is not among them: a request has one outcome.
        latency: From arrival to answer; of what another answered because the arm was late, no less than the
            arm's time. What it failed has none. In a shadow, the runtime's time of what ran alone.
        comparisons: Copies beside the primary's answers.
        feedback: Delayed labels.
    """

    requests: int = 0
    errors: int = 0
    timeouts: int = 0
    non_finite: int = 0
    retries: int = 0
    misses: int = 0
    latency: Histogram = field(default_factory=Histogram)
    comparisons: Comparisons = field(default_factory=Comparisons)
    feedback: Feedback = field(default_factory=Feedback)

    @property
    def failures(self) -> int:
        """Requests that the arm could not answer: errors, timeouts, and answers that are not finite."""
        return self.errors + self.timeouts + self.non_finite

    @property
    def asked(self) -> int:
        """Requests that its variant had a turn at in time: only those can fail."""
        return self.requests - self.misses

    def merged(self, other: ArmEvidence) -> ArmEvidence:
        """Both together."""
        return ArmEvidence(
            self.requests + other.requests,
            self.errors + other.errors,
            self.timeouts + other.timeouts,
            self.non_finite + other.non_finite,
            self.retries + other.retries,
            self.misses + other.misses,
            self.latency.merged(other.latency),
            self.comparisons.merged(other.comparisons),
            self.feedback.merged(other.feedback),
        )

    def to_json(self) -> dict[str, Any]:
        """All counts, by name."""
        counts = {name: getattr(self, name) for name in _COUNTS}
        return counts | {
            "latency": self.latency.to_json(),
            "comparisons": {name: getattr(self.comparisons, name) for name in _COMPARISONS},
            "feedback": {name: getattr(self.feedback, name) for name in _FEEDBACK},
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> ArmEvidence:
        """Reads what `to_json` wrote."""
        return cls(
            **{name: document[name] for name in _COUNTS},
            latency=Histogram.from_json(document["latency"]),
            comparisons=Comparisons(**document["comparisons"]),
            feedback=Feedback(**document["feedback"]),
        )


Evidence = Mapping[str, ArmEvidence]  # by the arm's name

_COUNTS = ("requests", "errors", "timeouts", "non_finite", "retries", "misses")
_COMPARISONS = ("n", "agreement", "cosine", "max_abs")
_FEEDBACK = ("n", "correct", "loss", "loss_squares")


def merge(parts: Iterable[Evidence]) -> dict[str, ArmEvidence]:
    """The evidence of several workers or times together."""
    merged: dict[str, ArmEvidence] = {}
    for part in parts:
        for arm, evidence in part.items():
            merged[arm] = merged[arm].merged(evidence) if arm in merged else evidence
    return merged


class ArmTally:
    """Collects the evidence of one arm in one worker, cheaply, until it is taken.

    Its counts are plain attributes: `tally.errors += 1`.
    """

    __slots__ = ("_latency", "_seconds", "comparisons", "errors", "feedback", "misses", "non_finite",
                 "requests", "retries", "timeouts")  # fmt: skip

    def __init__(self) -> None:
        self._clear()

    def _clear(self) -> None:
        self.requests = self.errors = self.timeouts = self.non_finite = self.retries = self.misses = 0
        self._seconds: list[float] = []
        self._latency = Histogram()
        self.comparisons = Comparisons()
        self.feedback = Feedback()

    def answered(self, seconds: float) -> None:
        """Counts a request that was answered so long after its arrival."""
        self.requests += 1
        self._seconds.append(seconds)
        if len(self._seconds) == _MOST_APART:  # nobody takes them while the database is away
            self._fold()

    def compared(self, comparison: Comparisons) -> None:
        """Counts a copy that was compared."""
        self.comparisons = self.comparisons.merged(comparison)

    def _fold(self) -> None:
        self._latency = self._latency.merged(Histogram.of(self._seconds))
        self._seconds = []

    def take(self) -> ArmEvidence:
        """What was collected since the last time, which begins anew."""
        self._fold()
        taken = ArmEvidence(
            self.requests,
            self.errors,
            self.timeouts,
            self.non_finite,
            self.retries,
            self.misses,
            self._latency,
            self.comparisons,
            self.feedback,
        )
        self._clear()
        return taken
