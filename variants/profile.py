"""What belongs to variant x runtime x host: quality there, latency per batch size, load time, memory."""

from __future__ import annotations

from bisect import bisect_left
from dataclasses import dataclass, field
from math import exp, log

from variants.confusion import Cells
from variants.quality import Estimate
from variants.robustness import Robustness

BATCH_SIZES = (1, 2, 4, 8, 16, 32)
_RANKING_BATCHES = (1, 8)


@dataclass(frozen=True)
class Latency:
    """Percentiles of the time of one call, in milliseconds."""

    p50: float
    p95: float
    p99: float

    @property
    def jitter(self) -> float:
        """How far the slowest calls are from the usual ones: (p99 - p50) / p50."""
        return (self.p99 - self.p50) / self.p50 if self.p50 else 0.0


@dataclass(frozen=True)
class Quality:
    """Quality on the runtime that was measured.

    Attributes:
        validation: What selection reads.
        test: What is only reported.
        agreement: Share of test rows whose answer is the reference's.
        max_abs_error: Largest difference from the reference's outputs on test.
        metric: The metric that was measured: without labels another than the model's own.
        confusion: By split, how often a classifier answers what for which label.
        robustness: Quality on disturbed validation rows, where inputs can be disturbed.
    """

    validation: Estimate
    test: Estimate
    agreement: float
    max_abs_error: float
    metric: str = ""
    confusion: dict[str, Cells] = field(default_factory=dict)
    robustness: list[Robustness] = field(default_factory=list)


@dataclass(frozen=True)
class Profile:
    """How a variant does on one runtime of one host.

    Attributes:
        runtime: Name of the engine, such as `onnxruntime-cpu`.
        precision: Arithmetic that floating operations run in: `f32` or `bf16`.
        threads: Threads that one call may use.
        load_s: Seconds to open a session.
        memory_bytes: Resident memory that the session added to a fresh process.
        latency_ms: Percentiles by batch size.
        quality: Quality there.
        taken: ISO 8601 time, UTC.
        golden_deviation: Largest difference from the golden rows' outputs when quality was measured, as
            `variants.golden.deviation` has it; None when it was not recorded.
        judged_with: Digest of the metric, the reference and the rows that quality is about: with others it is
            another figure. Empty when it was not recorded.
    """

    runtime: str
    precision: str
    threads: int
    load_s: float
    memory_bytes: int
    latency_ms: dict[int, Latency]
    quality: Quality
    taken: str
    golden_deviation: float | None = None
    judged_with: str = ""

    def predict_ms(self, rows: int) -> float:
        """Median time of a call with this many rows.

        Between profiled batch sizes it is interpolated; beyond the largest it grows in proportion.
        """
        sizes = sorted(self.latency_ms)
        if rows > sizes[-1]:
            return self.latency_ms[sizes[-1]].p50 * rows / sizes[-1]
        position = bisect_left(sizes, rows)
        upper = sizes[position]
        if upper == rows or position == 0:
            return self.latency_ms[upper].p50
        lower = sizes[position - 1]
        share = (rows - lower) / (upper - lower)
        return self.latency_ms[lower].p50 * (1 - share) + self.latency_ms[upper].p50 * share

    def cost_ms(self, batch: int | None = None) -> float:
        """Time per row that ranks runtimes: at the given batch size, else the geometric mean of 1 and 8."""
        batches = (batch,) if batch else _RANKING_BATCHES
        return exp(sum(log(self.predict_ms(size) / size) for size in batches) / len(batches))
