"""How good a model's answers are: metrics, and intervals around them.

Every metric is a function of the mean of per-row statistics. That makes one bootstrap serve them all: a
resample is a matrix of row weights, and a paired one uses the same weights for both models.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray

from compression.signature import Array

RESAMPLES = 2000
LEVEL = 0.95
_Z = 1.959964  # the normal quantile of a two-sided 95% interval
_RESAMPLE_BLOCK = 64
_LARGEST_RATIO = 1e6

Outputs = Mapping[str, Array]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        name: Its name in specs and reports.
        higher_is_better: Direction.
        rows: Per-row statistics of shape `(rows, k)` from outputs and labels.
        value: The metric of mean statistics `(..., k)`, of shape `(...)`.
        is_proportion: Whether the value is a share of rows, for which Wilson's interval is exact enough
            where the bootstrap's collapses (every row right).
    """

    name: str
    higher_is_better: bool
    rows: Callable[[Outputs, Array], Floats]
    value: Callable[[Floats], Floats]
    is_proportion: bool = False

    def of(self, outputs: Outputs, labels: Array) -> float:
        """The metric of all rows together."""
        return float(self.value(self.rows(outputs, labels).mean(axis=0)))

    def ratio(self, value: Floats | float, reference: Floats | float) -> Floats:
        """Quality over the reference's, inverted where lower is better, so that more is always better.

        Over nothing at all it is `_LARGEST_RATIO`: JSON has no infinity, and a card must be readable.
        """
        over, under = (value, reference) if self.higher_is_better else (reference, value)
        over, under = np.asarray(over, np.float64), np.asarray(under, np.float64)
        even = np.where(over == under, 1.0, _LARGEST_RATIO)
        ratio = np.broadcast_to(even, np.broadcast(over, under).shape).copy()
        np.divide(over, under, out=ratio, where=over < under * _LARGEST_RATIO)
        return ratio


@dataclass(frozen=True)
class Estimate:
    """A quality with its 95% interval, and against the reference on the same rows.

    Attributes:
        value: The metric.
        low: Lower end of the interval of the value.
        high: Upper end.
        ratio: Quality over the reference's.
        ratio_low: Lower end of the paired interval of the ratio.
        rows: Rows that it was measured on.
    """

    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    rows: int


def first_output(outputs: Outputs) -> Array:
    """The output that single-output metrics judge: the first."""
    return next(iter(outputs.values()))


def _correct(outputs: Outputs, labels: Array) -> Floats:
    correct: Floats = (first_output(outputs).argmax(axis=-1) == labels).astype(np.float64)
    return correct.reshape(-1, 1)


def _squared_error(outputs: Outputs, labels: Array) -> Floats:
    error = first_output(outputs).astype(np.float64).reshape(len(labels), -1) - labels.reshape(
        len(labels), -1
    )
    squared: Floats = np.square(error).mean(axis=1, keepdims=True)
    return squared


def _only(means: Floats) -> Floats:
    only: Floats = np.take(means, 0, axis=-1)
    return only


METRICS: dict[str, Metric] = {
    "accuracy": Metric("accuracy", True, _correct, _only, is_proportion=True),
    "mse": Metric("mse", False, _squared_error, _only),
}


def estimate(metric: Metric, outputs: Outputs, reference: Outputs, labels: Array, seed: int = 0) -> Estimate:
    """Measures outputs against labels, and against the reference's outputs on the same rows.

    Proportions have Wilson's interval (1927) and Agresti and Min's for the paired ratio (2005), which do not
    collapse where every row is right; others the percentile bootstrap's (Efron 1979), paired for the ratio.
    """
    rows, reference_rows = metric.rows(outputs, labels), metric.rows(reference, labels)
    value = float(metric.value(rows.mean(axis=0)))
    if metric.is_proportion:
        (low, high), ratio_low = wilson(value, len(rows)), paired_ratio_low(rows[:, 0], reference_rows[:, 0])
    else:
        values, ratios = _resample(metric, rows, reference_rows, seed)
        (low, high), ratio_low = _interval(values), _interval(ratios)[0]
    return Estimate(
        value=value,
        low=low,
        high=high,
        ratio=float(metric.ratio(value, float(metric.value(reference_rows.mean(axis=0))))),
        ratio_low=ratio_low,
        rows=len(rows),
    )


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's score interval of a share of rows, at 95%."""
    centre = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z / (1 + _Z**2 / rows) * sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_ratio_low(rows: Floats, reference: Floats) -> float:
    """Lower end of the 95% interval of the ratio of two shares of the same rows, each 0 or 1 per row.

    Agresti and Min (2005): Wald's interval of the paired difference, with half a row added to each of the
    four outcomes. Where no row differs it stays below 1 by what so few rows cannot rule out.
    """
    only_ours = float(np.sum((rows == 1) & (reference == 0))) + 0.5
    only_theirs = float(np.sum((rows == 0) & (reference == 1))) + 0.5
    count = len(rows) + 2.0
    difference = (only_ours - only_theirs) / count
    deviation = sqrt(only_ours + only_theirs - count * difference**2) / count
    base = float(reference.mean())
    return max(0.0, (base + difference - _Z * deviation) / base) if base else 0.0


def agreement(outputs: Outputs, reference: Outputs) -> float:
    """Share of rows in which the first output has its maximum in the same place as the reference's.

    Outputs of one value per row agree when they differ by less than 1% of the reference's spread.
    """
    ours, theirs = first_output(outputs), first_output(reference)
    if ours.ndim > 1 and ours.shape[-1] > 1:
        return float((ours.argmax(axis=-1) == theirs.argmax(axis=-1)).mean())
    return float((np.abs(ours - theirs) <= 0.01 * (np.std(theirs) + 1e-12)).mean())


def max_abs_error(outputs: Outputs, reference: Outputs) -> float:
    """The largest absolute difference over all outputs and rows."""
    return max(
        float(np.max(np.abs(outputs[name].astype(np.float64) - reference[name].astype(np.float64))))
        for name in reference
    )


def _resample(metric: Metric, rows: Floats, reference: Floats, seed: int) -> tuple[Floats, Floats]:
    """Values and paired ratios of `RESAMPLES` bootstrap resamples, in blocks that bound memory."""
    generator = np.random.default_rng(seed)
    count = len(rows)
    values, ratios = [], []
    for start in range(0, RESAMPLES, _RESAMPLE_BLOCK):
        size = min(_RESAMPLE_BLOCK, RESAMPLES - start)
        weights = generator.multinomial(count, np.full(count, 1 / count), size=size) / count
        ours = metric.value(weights @ rows)
        values.append(ours)
        ratios.append(metric.ratio(ours, metric.value(weights @ reference)))
    return np.concatenate(values), np.concatenate(ratios)


def _interval(samples: Floats) -> tuple[float, float]:
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)
