"""Counts of what happened to requests: raw material of the report."""

from __future__ import annotations

import re
from collections import Counter
from dataclasses import dataclass, field

from loadtests.answers import Answer
from loadtests.targets import Target

_NUMBER = re.compile(r"\d+(\.\d+)?")
_SHOWN = 200


@dataclass(slots=True)
class Tally:
    """Counts what happened to the requests of one target.

    Attributes:
        keep_times: Whether to keep the time of every answer, which a test without an end must not.
        latencies_ms: Time of each good answer, as the client saw it.
        gateway_ms: Queue and inference of each good answer, as the gateway stated it.
        variants: Good answers by the variant that gave them.
        judged: Good answers to rows with a label.
        correct: Those whose class is the label.
        failures: Requests without a good answer, by reason.
        first_alike: The reason that stands for those that differ from it in numbers only.
    """

    keep_times: bool = True
    latencies_ms: list[float] = field(default_factory=list)
    gateway_ms: list[float] = field(default_factory=list)
    variants: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    correct: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_alike: dict[str, str] = field(default_factory=dict)

    @property
    def accuracy(self) -> float | None:
        """Share of the judged rows that were right; None when none was judged."""
        return self.correct / self.judged if self.judged else None

    def forget(self) -> None:
        """Starts to count anew."""
        self.latencies_ms.clear()
        self.gateway_ms.clear()
        self.variants.clear()
        self.failures.clear()
        self.first_alike.clear()
        self.judged = self.correct = 0

    def answered(
        self, answer: Answer, label: int | None, latency_ms: float, gateway_ms: float | None
    ) -> None:
        """Counts a good answer."""
        if self.keep_times:
            self.latencies_ms.append(latency_ms)
            if gateway_ms is not None:
                self.gateway_ms.append(gateway_ms)
        self.variants[answer.variant] += 1
        if label is not None:
            self.judged += 1
            self.correct += answer.choice == label

    def failed(self, reason: str) -> None:
        """Counts a request without a good answer; reasons that differ in numbers only count as the first."""
        alike = _NUMBER.sub("#", reason)
        self.failures[self.first_alike.setdefault(alike, reason[:_SHOWN])] += 1


@dataclass(frozen=True, slots=True)
class Load:
    """What came of loading one target for a while.

    Attributes:
        tally: What happened to its requests.
        seconds: Length of the window in which answers counted.
        client_cpu: Share of one processor that the load generator used; near 1, it was the bottleneck.
        machine_cpu: Share of all processors of the load generator's machine that were busy.
    """

    tally: Tally
    seconds: float
    client_cpu: float
    machine_cpu: float


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything measured of one target.

    Attributes:
        target: What was measured.
        test: The pass over the test split.
        load: The load; None when only the test split was wanted.
    """

    target: Target
    test: Tally
    load: Load | None
