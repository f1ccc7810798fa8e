"""How good a model's answers are on one split: an estimate with its interval, and against the reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from compression.signature import Array
from variants.intervals import (
    LEVEL,
    bootstrap_p_value,
    mcnemar,
    paired_ratio_low,
    percentile_interval,
    resample,
    wilson,
)
from variants.metrics import Floats, Metric, Outputs, find_metric

_SAME, _TINY = 0.01, 1e-12


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
        p_value: How likely so large a difference from the reference is by chance; None when unknown.
    """

    value: float
    low: float
    high: float
    ratio: float
    ratio_low: float
    rows: int
    p_value: float | None = None

    @property
    def significant(self) -> bool:
        """Whether chance alone is a poor explanation of the difference from the reference."""
        return self.p_value is not None and self.p_value < 1 - LEVEL


def judged_by(metric: Metric, labels: Array | None) -> Metric:
    """The metric that can be measured: without labels, the one that compares with the reference."""
    return metric if labels is not None else find_metric(metric.without_labels)


def truth(metric: Metric, reference: Outputs, labels: Array | None) -> Array | Outputs:
    """What a metric that can be measured holds answers against: the labels, or the reference's outputs."""
    if metric.needs_reference or labels is None:
        return reference
    return labels


def quality_ratio(metric: Metric, outputs: Outputs, reference: Outputs, labels: Array | None) -> float:
    """Quality over the reference's on the same rows, 1 for as good; without labels, the agreement with it."""
    metric = judged_by(metric, labels)
    against = truth(metric, reference, labels)
    return float(metric.ratio(metric.of(outputs, against), metric.of(reference, against)))


def estimate(
    metric: Metric, outputs: Outputs, reference: Outputs, labels: Array | None, seed: int = 0
) -> Estimate:
    """Measures outputs against labels, and against the reference's outputs on the same rows.

    Shares of rows have Wilson's interval, Agresti and Min's for the paired ratio and McNemar's exact test:
    they do not collapse where every row is right. Other metrics have the percentile bootstrap's, paired for
    the ratio; where no row differs from the reference's, the ratio has that of a share of rows that agree.

    Args:
        metric: The measure.
        outputs: Arrays `(rows, ...)` by name.
        reference: The reference's for the same rows.
        labels: Array `(rows, ...)`; None judges the agreement with the reference instead.
        seed: Decides the bootstrap's resamples.

    Raises:
        MetricError: The metric does not fit the outputs or labels.
    """
    metric = judged_by(metric, labels)
    against = truth(metric, reference, labels)
    rows, reference_rows = metric.rows(outputs, against), metric.rows(reference, against)
    value, base = float(metric.value(rows.mean(axis=0))), float(metric.value(reference_rows.mean(axis=0)))
    if metric.is_proportion and _is_binary(rows) and _is_binary(reference_rows):
        low, high = wilson(value, len(rows))
        ratio_low = paired_ratio_low(rows[:, 0], reference_rows[:, 0])
        p_value = mcnemar(rows[:, 0], reference_rows[:, 0])
    else:
        values, ratios = _resampled(metric, rows, reference_rows, seed)
        (low, high), ratio_low = percentile_interval(values), percentile_interval(ratios)[0]
        p_value = bootstrap_p_value(ratios)
        if np.array_equal(rows, reference_rows):  # of which resamples know nothing but that
            ratio_low = paired_ratio_low(np.ones(len(rows)), np.ones(len(rows)))
    ratio = float(metric.ratio(value, base))
    return Estimate(value, low, high, ratio, ratio_low, len(rows), p_value)


def agreement(metric: Metric, outputs: Outputs, reference: Outputs, labels: Array | None = None) -> float:
    """Share of answers that are the reference's: the same class, where the metric judges classes.

    Numbers agree when they differ by less than 1% of the reference's spread; all outputs count.
    """
    if metric.answers is not None:
        shape = None if labels is None else labels.shape
        return float((metric.answers(outputs, shape) == metric.answers(reference, shape)).mean())
    shares = [_same(outputs[name], theirs).reshape(-1) for name, theirs in reference.items()]
    return float(np.concatenate(shares).mean())


def max_abs_error(outputs: Outputs, reference: Outputs) -> float:
    """The largest absolute difference over all outputs and rows."""
    return max(
        float(np.max(np.abs(outputs[name].astype(np.float64) - reference[name].astype(np.float64))))
        for name in reference
    )


def _same(given: Array, expected: Array) -> NDArray[np.bool_]:
    same: NDArray[np.bool_] = given == expected
    if expected.dtype.kind == "f":
        difference = np.abs(given.astype(np.float64) - expected)
        same = difference <= _SAME * np.std(expected, dtype=np.float64) + _TINY
    return same


def _is_binary(rows: Floats) -> bool:
    return bool(np.isin(rows, (0.0, 1.0)).all())


def _resampled(metric: Metric, rows: Floats, reference: Floats, seed: int) -> list[Floats]:
    """Values and paired ratios of bootstrap resamples."""

    def statistic(weights: Floats) -> tuple[Floats, Floats]:
        ours = metric.value(weights @ rows)
        return ours, metric.ratio(ours, metric.value(weights @ reference))

    return resample(len(rows), seed, statistic)
