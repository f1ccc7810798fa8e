"""How close two variants' answers to the same request are."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from compression.signature import Array
from service.rollout.evidence import UNBOUNDED, Comparisons
from variants.metrics import find_metric, predicted_classes

Outputs = Mapping[str, Array]
Floats = NDArray[np.float64]


def judges_classes(metric: str) -> bool:
    """Whether a model's metric is one of classes, so that answers can agree."""
    return find_metric(metric).answers is not None


def compare(metric: str, primary: Outputs, candidate: Outputs) -> Comparisons:
    """Compares a candidate's answer with the primary's.

    Values that are not finite in both, at the same places and alike, are equal. Where only one is, the row
    disagrees, its cosine is 0 and the difference has no bound; so it is with outputs that are missing or of
    another shape.

    Args:
        metric: Name of the model's metric; metrics of classes also count how many rows have the same class.
        primary: Arrays `(rows, ...)` by output name.
        candidate: The same of the candidate.

    Returns:
        One sample. Cosine similarity is the mean over rows and outputs, negative ones counted as 0.
    """
    if primary.keys() != candidate.keys() or any(primary[k].shape != candidate[k].shape for k in primary):
        return Comparisons(1, 0.0, 0.0, UNBOUNDED)
    pairs = [_numbers(primary[name], candidate[name]) for name in primary]
    pairs = [(theirs, ours) for theirs, ours in pairs if theirs.size]
    if not pairs:
        return Comparisons(1, 1.0, 1.0, 0.0)
    return Comparisons(
        1,
        _agreement(metric, primary, candidate) if judges_classes(metric) else 0.0,
        float(np.mean([_cosine(*pair).mean() for pair in pairs])),
        max(_max_abs(*pair) for pair in pairs),
    )


def _numbers(theirs: Array, ours: Array) -> tuple[Floats, Floats]:
    """Both as `(rows, values)`, with 0 where they are alike in not being finite."""
    theirs, ours = (array.astype(np.float64).reshape(len(array) if array.ndim else 1, -1)
                    for array in (theirs, ours))  # fmt: skip
    alike = ~np.isfinite(theirs) & ((theirs == ours) | (np.isnan(theirs) & np.isnan(ours)))
    return np.where(alike, 0.0, theirs), np.where(alike, 0.0, ours)


def _agreement(metric: str, primary: Outputs, candidate: Outputs) -> float:
    name = metric.partition("@")[2] or next(iter(primary))
    theirs, ours = primary[name], candidate[name]
    same = np.equal(predicted_classes(theirs), predicted_classes(ours)).reshape(len(theirs), -1).mean(axis=1)
    sound = np.isfinite(_rows(theirs)).all(axis=1) == np.isfinite(_rows(ours)).all(axis=1)
    return float((same * sound).mean())


def _rows(array: Array) -> Floats:
    rows: Floats = array.astype(np.float64).reshape(len(array), -1)
    return rows


def _cosine(theirs: Floats, ours: Floats) -> Floats:
    """Cosine similarity per row, 0..1; of two rows of zeros 1."""
    sound = np.logical_and(np.isfinite(theirs).all(axis=1), np.isfinite(ours).all(axis=1))
    theirs, ours = (_unit(np.where(sound[:, None], array, 0.0)) for array in (theirs, ours))
    products = np.clip((theirs * ours).sum(axis=1), 0.0, 1.0)
    both_zero = ~theirs.any(axis=1) & ~ours.any(axis=1)
    return np.where(sound, np.where(both_zero, 1.0, products), 0.0)


def _unit(rows: Floats) -> Floats:
    """Rows of length 1; scaled by their largest value first, so that no square overflows."""
    largest = np.abs(rows).max(axis=1, keepdims=True)
    scaled = np.divide(rows, largest, out=np.zeros_like(rows), where=largest > 0)
    length = np.sqrt(np.square(scaled).sum(axis=1, keepdims=True))
    unit: Floats = np.divide(scaled, length, out=scaled, where=length > 0)
    return unit


def _max_abs(theirs: Floats, ours: Floats) -> float:
    if not (np.isfinite(theirs).all() and np.isfinite(ours).all()):
        return UNBOUNDED
    return float(min(np.abs(theirs - ours).max(), UNBOUNDED))
