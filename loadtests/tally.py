"""Counts of what happened to requests: raw material of the report."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.answers import Answer
from loadtests.capacity import Capacity
from loadtests.targets import Target

# One request: when it was meant to start, how much later it was sent, how long it took from its intended
# start and how long in the gateway (NaN: not stated), the status (0: no answer), whether the answer was good,
# whether degraded, whether right (1), wrong (0) or not judged (-1), which row it sent, and who answered and
# for which tier (indices into `names`, -1 for nobody).
ROW = np.dtype(
    [
        ("at_s", "<f8"),
        ("late_ms", "<f4"),
        ("latency_ms", "<f4"),
        ("gateway_ms", "<f4"),
        ("status", "<i2"),
        ("good", "?"),
        ("degraded", "?"),
        ("right", "i1"),
        ("row", "<i4"),
        ("variant", "<i2"),
        ("tier", "<i2"),
    ]
)
Rows = NDArray[Any]

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
        requests: Each request under load, as a tuple of `ROW`.
        names: Variants and tiers that `requests` refers to.
    """

    keep_times: bool = True
    latencies_ms: list[float] = field(default_factory=list)
    gateway_ms: list[float] = field(default_factory=list)
    variants: Counter[str] = field(default_factory=Counter)
    judged: int = 0
    correct: int = 0
    failures: Counter[str] = field(default_factory=Counter)
    first_alike: dict[str, str] = field(default_factory=dict)
    requests: list[tuple[Any, ...]] = field(default_factory=list)
    names: dict[str, int] = field(default_factory=dict)

    @property
    def rows(self) -> Rows:
        """Each request under load, as an array of `ROW`."""
        return np.array(self.requests, ROW)

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
        self.requests.clear()
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

    def sent(self, target: Target, answer: Answer | None, label: int | None, **request: Any) -> None:
        """Keeps a request as a row.

        Args:
            target: What was asked.
            answer: A good answer; None when there was none.
            label: The class of the row that was sent, where known.
            **request: `at_s`, `late_ms`, `latency_ms`, `gateway_ms`, `status` and `row` of `ROW`.
        """
        variant = answer.variant if answer else target.name if target.kind == "variant" else None
        request |= {
            "good": answer is not None,
            "degraded": answer is not None and answer.degraded,
            "right": -1 if answer is None or label is None else answer.choice == label,
            "variant": -1 if variant is None else self._code(variant),
            "tier": self._code(target.name) if target.kind == "tier" else -1,
        }
        self.requests.append(tuple(request[name] for name in ROW.names or ()))

    def _code(self, name: str) -> int:
        return self.names.setdefault(name, len(self.names))


def tally_of(parts: Sequence[Mapping[str, Any]]) -> Tally:
    """One tally of what several load generators sent: `rows` as bytes, `names`, and `failures` by reason."""
    whole = Tally()
    for part in parts:
        rows = np.frombuffer(part["rows"], ROW).copy()
        codes = np.array(
            [whole.names.setdefault(n, len(whole.names)) for n in part["names"]] + [-1], np.int16
        )
        rows["variant"], rows["tier"] = codes[rows["variant"]], codes[rows["tier"]]
        whole.requests += rows.tolist()
        for reason, count in part["failures"].items():
            alike = whole.first_alike.setdefault(_NUMBER.sub("#", reason), reason)
            whole.failures[alike] += count
    whole.requests.sort()
    rows = whole.rows
    good = rows[rows["good"]]
    names = list(whole.names)
    whole.latencies_ms = good["latency_ms"].tolist()
    whole.gateway_ms = good["gateway_ms"][~np.isnan(good["gateway_ms"])].tolist()
    codes, counts = np.unique(good["variant"], return_counts=True)
    whole.variants = Counter({names[code]: int(n) for code, n in zip(codes, counts, strict=True)})
    whole.judged = int((good["right"] >= 0).sum())
    whole.correct = int((good["right"] == 1).sum())
    return whole


@dataclass(frozen=True, slots=True)
class Usage:
    """What processes used in a while.

    Attributes:
        cpu_s: Processor time of all of them, in seconds.
        rss_bytes: The most memory that all of them held at once; pages that they share count once for each.
        processes: How many there were.
    """

    cpu_s: float
    rss_bytes: int
    processes: int


@dataclass(frozen=True, slots=True)
class Load:
    """What came of loading one target for a while.

    Attributes:
        tally: What happened to its requests.
        seconds: Length of the window in which answers counted.
        client_cpu: Share of one processor that the load generator used; near 1, it was the bottleneck.
        machine_cpu: Share of all processors of the load generator's machine that were busy.
        server: What the gateway's processes used; None when it runs elsewhere.
        digest: Of the schedule that was sent; None for a closed loop.
    """

    tally: Tally
    seconds: float
    client_cpu: float
    machine_cpu: float
    server: Usage | None = None
    digest: str | None = None


@dataclass(frozen=True, slots=True)
class Measurement:
    """Everything measured of one target.

    Attributes:
        target: What was measured.
        test: The pass over the test split.
        load: The load; None when only the test split was wanted.
        capacity: The highest rate at which the objective holds; None when it was not searched.
    """

    target: Target
    test: Tally
    load: Load | None
    capacity: Capacity | None = None
