"""Live figures of all workers, from the files that they write their metrics to."""

from __future__ import annotations

import os
import time
from collections import defaultdict, deque
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from prometheus_client import REGISTRY, CollectorRegistry
from prometheus_client.metrics_core import Metric
from prometheus_client.multiprocess import MultiProcessCollector

WINDOW_S = 60.0
_SAMPLE_EVERY_S = 5.0
_FRESH_S = 0.5
_OUTCOMES = ("ok", "late", "rejected", "failed", "client_error")

Buckets = dict[float, float]  # cumulative counts by upper bound, seconds


@dataclass
class Totals:
    """What was counted of one model since its gateway started.

    Attributes:
        requests: By variant, tier and outcome.
        durations: Buckets by variant and tier.
        degraded: By the variant that answered.
        rows: Rows in batches that ran, by variant.
        batches: Batches that ran, by variant.
        depth: Requests that wait now, by variant.
    """

    requests: dict[tuple[str, str, str], float] = field(default_factory=lambda: defaultdict(float))
    durations: dict[tuple[str, str], Buckets] = field(default_factory=lambda: defaultdict(dict))
    degraded: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    rows: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    batches: dict[str, float] = field(default_factory=lambda: defaultdict(float))
    depth: dict[str, float] = field(default_factory=lambda: defaultdict(float))

    def add(self, name: str, labels: Mapping[str, str], value: float) -> None:
        """Adds a sample, if it is of interest."""
        variant = labels.get("variant", "")
        match name:
            case "mipgate_requests_total":
                self.requests[variant, labels["tier"], labels["outcome"]] += value
            case "mipgate_request_duration_seconds_bucket":
                buckets, bound = self.durations[variant, labels["tier"]], float(labels["le"])
                buckets[bound] = buckets.get(bound, 0.0) + value
            case "mipgate_degraded_total":
                self.degraded[labels["to"]] += value
            case "mipgate_batch_size_sum":
                self.rows[variant] += value
            case "mipgate_batch_size_count":
                self.batches[variant] += value
            case "mipgate_queue_depth":
                self.depth[variant] += value


Sample = tuple[float, dict[str, Totals]]  # seconds on a monotonic clock, and totals by model


def read_totals(metrics: Iterable[Metric]) -> dict[str, Totals]:
    """The totals of every model."""
    totals: dict[str, Totals] = defaultdict(Totals)
    for metric in metrics:
        for sample in metric.samples:
            if "model" in sample.labels:
                totals[sample.labels["model"]].add(sample.name, sample.labels, sample.value)
    return dict(totals)


def all_workers() -> Iterable[Metric]:
    """The metrics of all workers; of this process where it is the only one."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return list(REGISTRY.collect())
    return list(MultiProcessCollector(CollectorRegistry()).collect())  # type: ignore[no-untyped-call]


class Sampler:
    """Keeps what the totals were over the last minute, so that any worker can tell rates."""

    def __init__(
        self,
        read: Callable[[], Iterable[Metric]] = all_workers,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._read = read
        self._clock = clock
        self._samples: deque[Sample] = deque()

    def sample(self) -> None:
        """Takes a sample when it is time; called twice a second. Blocks for some milliseconds."""
        if not self._samples or self._clock() - self._samples[-1][0] >= _SAMPLE_EVERY_S:
            self._take()

    def live(self, model: str) -> dict[str, Any]:
        """The figures of one model over the last minute, or since this worker began to look. Blocks."""
        if not self._samples or self._clock() - self._samples[-1][0] >= _FRESH_S:
            self._take()
        (before, then), (after, now) = self._samples[0], self._samples[-1]
        return figures(then.get(model, Totals()), now.get(model, Totals()), after - before)

    def _take(self) -> None:
        now = self._clock()
        while len(self._samples) > 1 and self._samples[1][0] <= now - WINDOW_S:
            self._samples.popleft()
        if len(self._samples) > 1 and now - self._samples[-2][0] < _SAMPLE_EVERY_S:
            self._samples.pop()  # it was taken for somebody who asked in between
        self._samples.append((now, read_totals(self._read())))


def figures(then: Totals, now: Totals, seconds: float) -> dict[str, Any]:
    """What happened between two moments, as the API tells it."""
    counts = {key: max(0.0, value - then.requests.get(key, 0.0)) for key, value in now.requests.items()}
    durations = {key: _grown(then.durations.get(key, {}), value) for key, value in now.durations.items()}
    answered = sum(count for (_, _, outcome), count in counts.items() if outcome == "ok")
    tiers = sorted({tier for _, tier, _ in counts})
    variants = sorted({variant for variant, _, _ in counts if variant} | now.depth.keys())
    return {
        "window_s": round(seconds, 1),
        "requests_per_s": _rate(sum(counts.values()), seconds),
        "tiers": {tier: _tier(tier, counts, durations, seconds) for tier in tiers},
        "variants": {
            name: {
                "rps": _rate(ok := _sum(counts, variant=name, outcome="ok"), seconds),
                "share": round(ok / answered, 4) if answered else 0.0,
                **_percentiles([b for (variant, _), b in durations.items() if variant == name]),
                "queue_depth": int(now.depth.get(name, 0.0)),
                "batch_mean": _mean(
                    now.rows.get(name, 0.0) - then.rows.get(name, 0.0),
                    now.batches.get(name, 0.0) - then.batches.get(name, 0.0),
                ),
                "degraded": int(max(0.0, now.degraded.get(name, 0.0) - then.degraded.get(name, 0.0))),
            }
            for name in variants
        },
    }


def _tier(
    tier: str,
    counts: Mapping[tuple[str, str, str], float],
    durations: Mapping[tuple[str, str], Buckets],
    seconds: float,
) -> dict[str, Any]:
    return {
        "rps": _rate(_sum(counts, tier=tier), seconds),
        **_percentiles([b for (_, of), b in durations.items() if of == tier]),
        **{outcome: int(_sum(counts, tier=tier, outcome=outcome)) for outcome in _OUTCOMES},
        "variants": {
            variant: int(count)
            for (variant, of, outcome), count in sorted(counts.items())
            if of == tier and outcome == "ok" and count
        },
    }


def _sum(
    counts: Mapping[tuple[str, str, str], float],
    variant: str | None = None,
    tier: str | None = None,
    outcome: str | None = None,
) -> float:
    return sum(
        count
        for (of_variant, of_tier, of_outcome), count in counts.items()
        if variant in (None, of_variant) and tier in (None, of_tier) and outcome in (None, of_outcome)
    )


def _grown(then: Buckets, now: Buckets) -> Buckets:
    return {bound: max(0.0, count - then.get(bound, 0.0)) for bound, count in now.items()}


def _percentiles(histograms: list[Buckets]) -> dict[str, float | None]:
    together: Buckets = defaultdict(float)
    for buckets in histograms:
        for bound, count in buckets.items():
            together[bound] += count
    return {"p50_ms": quantile_ms(together, 0.5), "p99_ms": quantile_ms(together, 0.99)}


def quantile_ms(buckets: Buckets, share: float) -> float | None:
    """A quantile by linear interpolation within its bucket, as Prometheus does it; None without requests."""
    bounds = sorted(buckets)
    if not bounds or not buckets[bounds[-1]]:
        return None
    rank = share * buckets[bounds[-1]]
    lower, below = 0.0, 0.0
    for bound in bounds:
        if buckets[bound] >= rank:
            if bound == float("inf"):
                break
            within = (rank - below) / (buckets[bound] - below) if buckets[bound] > below else 1.0
            return round((lower + (bound - lower) * within) * 1e3, 3)
        lower, below = bound, buckets[bound]
    return round(lower * 1e3, 3)


def _rate(count: float, seconds: float) -> float:
    return round(count / seconds, 2) if seconds > 0 else 0.0


def _mean(total: float, count: float) -> float | None:
    return round(total / count, 2) if count > 0 else None
