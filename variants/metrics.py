"""Metrics: how good answers are, each a function of the mean of per-row statistics.

That makes one bootstrap serve them all: a resample is a vector of row weights, and a paired one uses the same
weights for both models (docs/decisions/0003). Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from compression.classes import class_axis
from compression.signature import Array, Signature

_LARGEST_RATIO = 1e6
_TOP = 5

Outputs = Mapping[str, Array]
Floats = NDArray[np.float64]
Integers = NDArray[np.int64]


class MetricError(ValueError):
    """A metric does not exist, or does not fit the outputs or labels; the message says what would."""


@dataclass(frozen=True)
class Metric:
    """A measure of quality.

    Attributes:
        name: Its name in specs and reports.
        higher_is_better: Direction.
        rows: Per-row statistics of shape `(rows, k)` from outputs and labels.
        value: The metric of mean statistics `(..., k)`, of shape `(...)`.
        without_labels: Name of the metric that takes its place where nothing is labelled.
        is_proportion: Whether the value is a share of rows that are right.
        answers: The class of each answer, from outputs and the labels' shape; None for numbers.
        needs_reference: Whether the reference's outputs, by name, take the labels' place.
    """

    name: str
    higher_is_better: bool
    rows: Callable[[Outputs, Any], Floats]
    value: Callable[[Floats], Floats]
    without_labels: str = "fidelity"
    is_proportion: bool = False
    answers: Callable[[Outputs, tuple[int, ...] | None], Integers] | None = None
    needs_reference: bool = False

    def of(self, outputs: Outputs, labels: Array | Outputs) -> float:
        """The metric of all rows together."""
        return float(self.value(self.rows(outputs, labels).mean(axis=0)))

    def ratio(self, value: Floats | float, reference: Floats | float) -> Floats:
        """Quality over the reference's, inverted where lower is better, so that more is always better.

        Over nothing at all it is `_LARGEST_RATIO`: JSON has no infinity, and a card must be readable. A value
        below zero, as R2 can have, counts as nothing.
        """
        over, under = (value, reference) if self.higher_is_better else (reference, value)
        over, under = np.maximum(over, 0.0, dtype=np.float64), np.maximum(under, 0.0, dtype=np.float64)
        even = np.where(over == under, 1.0, _LARGEST_RATIO)
        ratio = np.broadcast_to(even, np.broadcast(over, under).shape).copy()
        np.divide(over, under, out=ratio, where=over < under * _LARGEST_RATIO)
        return ratio


def find_metric(name: str) -> Metric:
    """The metric of this name; `NAME@OUTPUT` judges the output of that name instead of the first.

    Raises:
        MetricError: There is none.
    """
    base, _, output = name.partition("@")
    if base not in METRICS:
        raise MetricError(f'unknown metric "{name}". There are {", ".join(METRICS)}; @OUTPUT chooses one.')
    metric = METRICS[base]
    return metric if not output else _of_output(metric, name, output)


def check_metric(name: str, signature: Signature) -> None:
    """Checks that a metric exists and that the output it names does.

    Raises:
        MetricError: It does not.
    """
    find_metric(name)
    output, known = name.partition("@")[2], [spec.name for spec in signature.outputs]
    if output and output not in known:
        raise MetricError(f'metric "{name}" judges no output of this model. There are {", ".join(known)}.')


def metric_without_labels(signature: Signature) -> str:
    """The metric of a model that nothing else is known of.

    A first output `(batch, classes)` or of integers is taken for a classifier's, everything else for numbers.
    """
    first = signature.outputs[0]
    columns = first.shape[-1]
    scores = len(first.shape) == 2 and not (isinstance(columns, int) and columns < 2)
    return "agreement" if scores or np.dtype(first.dtype).kind in "iub" else "fidelity"


def first_output(outputs: Outputs) -> Array:
    """The output that single-output metrics judge: the first."""
    return next(iter(outputs.values()))


def predicted_classes(output: Array, labels_shape: tuple[int, ...] | None = None) -> Integers:
    """The class of each answer: integers as they are, else where scores are largest.

    Args:
        output: Scores with a class axis, or classes.
        labels_shape: Shape of the labels, which tells the class axis; without it the second axis holds the
            classes of images `(rows, classes, height, width)`, else the last.

    Raises:
        MetricError: No axis can hold classes.
    """
    if _is_classes(output):
        return output.astype(np.int64).reshape(labels_shape or output.shape)
    classes: Integers = output.argmax(axis=scores_axis(output.shape, labels_shape))
    return classes


def _is_classes(output: Array) -> bool:
    return output.dtype.kind in "iub"


def scores_axis(shape: tuple[int, ...], labels_shape: tuple[int, ...] | None = None) -> int:
    """The axis of an output of this shape that holds the scores of classes, as `predicted_classes` takes it.

    Raises:
        MetricError: No axis can.
    """
    axis = class_axis(shape, labels_shape)
    if axis is None:
        fits = "" if labels_shape is None else f" for labels {list(labels_shape)}"
        labels = "" if labels_shape is None else "Give one class number for each row or place; or choose"
        raise MetricError(
            f"an output of shape {list(shape)} has no axis of class scores{fits}. {labels or 'Choose'} the "
            "output that has with NAME@OUTPUT, or a metric for numbers."
        )
    return axis


def _of_output(metric: Metric, name: str, output: str) -> Metric:
    def rows(outputs: Outputs, labels: Any) -> Floats:
        truth = {output: labels[output]} if metric.needs_reference else labels
        return metric.rows({output: outputs[output]}, truth)

    def answers(outputs: Outputs, labels_shape: tuple[int, ...] | None) -> Integers:
        return predicted_classes(outputs[output], labels_shape)

    return replace(
        metric,
        name=name,
        rows=rows,
        without_labels=f"{metric.without_labels}@{output}",
        answers=metric.answers and answers,
    )


def _per_row(values: Array) -> Floats:
    """Means over everything but the rows, `(rows, 1)`."""
    means: Floats = values.astype(np.float64).reshape(len(values), -1).mean(axis=1, keepdims=True)
    return means


def _answers(outputs: Outputs, labels_shape: tuple[int, ...] | None) -> Integers:
    return predicted_classes(first_output(outputs), labels_shape)


def _correct(outputs: Outputs, labels: Array) -> Floats:
    output = first_output(outputs)
    right = (predicted_classes(output, labels.shape) == labels).reshape(len(labels), -1)
    return _share_of_known(right, _known_labels(output, labels))


def _among_top(outputs: Outputs, labels: Array) -> Floats:
    scores = first_output(outputs)
    axis = scores_axis(scores.shape, labels.shape)
    if scores.shape[axis] <= _TOP:
        raise MetricError(f"top5-accuracy of {scores.shape[axis]} classes is always 1. Use accuracy.")
    known = _known_labels(scores, labels)
    top = np.argpartition(-scores.astype(np.float64), _TOP - 1, axis=axis).take(range(_TOP), axis=axis)
    right = (top == np.expand_dims(labels, axis)).any(axis=axis)
    return _share_of_known(right.reshape(len(labels), -1), known)


def _share_of_known(right: NDArray[np.bool_], known: NDArray[np.bool_]) -> Floats:
    """How much of what is labelled in each row is right, `(rows, 1)`."""
    counts = known.sum(axis=1, keepdims=True)
    if not counts.all():
        row = int(np.flatnonzero(counts == 0)[0])
        raise MetricError(f"nothing in row {row} is labelled with a class. Leave such rows out.")
    share: Floats = (right & known).sum(axis=1, keepdims=True) / counts
    return share


def labelled(metric: Metric, outputs: Outputs, labels: Array) -> NDArray[np.bool_]:
    """Which labels are classes that the metric's output could answer: others mark what is not labelled.

    Args:
        metric: With answers that are classes.
        outputs: Of the model, by name.
        labels: `(rows, ...)`.

    Returns:
        Of the shape of the labels.
    """
    name = metric.name.partition("@")[2]
    known = _known_labels(outputs[name] if name else first_output(outputs), labels)
    return known.reshape(labels.shape)


def _known_labels(output: Array, labels: Array) -> NDArray[np.bool_]:
    """Which labels are classes, `(rows, labels)`; where answers are classes, all but negative ones.

    Raises:
        MetricError: A row's only label is none.
    """
    flat = labels.reshape(len(labels), -1)
    if _is_classes(output):
        return (flat >= 0) | (flat.shape[1] == 1)
    return _known(flat, output.shape[scores_axis(output.shape, labels.shape)])


def _class_counts(outputs: Outputs, labels: Array) -> tuple[Floats, Floats, Floats]:
    """Per row `(rows, classes)`: how often a class is the label, is answered, and is both.

    Of pixels and the like, labels outside the classes are left out, such as 255 for what is not labelled. A
    row's only label has to be a class: answers that are classes themselves may be any integers.

    Raises:
        MetricError: A row's label is none of the classes that are scored.
    """
    output = first_output(outputs)
    answers = predicted_classes(output, labels.shape).reshape(len(labels), -1)
    truth = labels.astype(np.int64).reshape(len(labels), -1)
    is_dense = truth.shape[1] > 1
    if not _is_classes(output):
        classes = output.shape[scores_axis(output.shape, labels.shape)]
    elif is_dense:
        classes = int(max(answers.max(), truth.max())) + 1
    else:
        numbers, places = np.unique(np.stack([truth, answers]), return_inverse=True)
        truth, answers = places.reshape(2, *truth.shape)
        classes = len(numbers)
    known = _known(truth, classes)
    return (
        _count(truth, classes, known),
        _count(answers, classes, known),
        _count(truth, classes, known & (truth == answers)),
    )


def _known(labels: Array, classes: int) -> NDArray[np.bool_]:
    """Which of the labels `(rows, labels)` are classes.

    Raises:
        MetricError: A row's only label is none.
    """
    known: NDArray[np.bool_] = (labels >= 0) & (labels < classes)
    if labels.shape[1] == 1 and not known.all():
        raise MetricError(
            f"label {labels[~known][0]} is none of the {classes} classes that are scored, "
            f"0 to {classes - 1}. Number classes from 0."
        )
    return known


def _count(values: Integers, classes: int, chosen: NDArray[np.bool_]) -> Floats:
    row = np.arange(len(values))[:, None] * classes
    counts = np.bincount((row + values)[chosen], minlength=len(values) * classes)
    return counts.reshape(len(values), classes).astype(np.float64)


def _recall_rows(outputs: Outputs, labels: Array) -> Floats:
    labelled, _, both = _class_counts(outputs, labels)
    return np.concatenate([both, labelled], axis=1)


def _f1_rows(outputs: Outputs, labels: Array) -> Floats:
    labelled, answered, both = _class_counts(outputs, labels)
    return np.concatenate([2 * both, labelled + answered], axis=1)


def _iou_rows(outputs: Outputs, labels: Array) -> Floats:
    labelled, answered, both = _class_counts(outputs, labels)
    return np.concatenate([both, labelled + answered - both], axis=1)


def _mean_share(means: Floats) -> Floats:
    """Mean over classes of the first half of the statistics over the second, where that is not zero."""
    parts, wholes = np.split(means, 2, axis=-1)
    present = wholes > 0
    mean: Floats = _ratios(parts, wholes).sum(axis=-1) / np.maximum(present.sum(axis=-1), 1)
    return mean


def _differences(outputs: Outputs, labels: Array) -> Floats:
    """Answers less labels, `(rows, values)`."""
    output = first_output(outputs)
    if output.size != labels.size:
        raise MetricError(
            f"outputs {list(output.shape)} and labels {list(labels.shape)} differ in size. Choose the output "
            "that the labels are of with NAME@OUTPUT."
        )
    rows = len(labels)
    return output.astype(np.float64).reshape(rows, -1) - labels.astype(np.float64).reshape(rows, -1)


def _squared_error(outputs: Outputs, labels: Array) -> Floats:
    return _per_row(np.square(_differences(outputs, labels)))


def _absolute_error(outputs: Outputs, labels: Array) -> Floats:
    return _per_row(np.abs(_differences(outputs, labels)))


def _variance_rows(outputs: Outputs, labels: Array) -> Floats:
    errors = np.square(_differences(outputs, labels))
    truth = labels.astype(np.float64).reshape(len(labels), -1)
    centred = truth - truth.mean(axis=0)  # a shift changes no variance, and keeps its digits
    return np.concatenate([errors, centred, np.square(centred)], axis=1)


def _explained(means: Floats) -> Floats:
    """R2 of each value, averaged; of values that never vary 1 when they are met exactly, else 0."""
    errors, centres, squares = np.split(means, 3, axis=-1)
    variances = np.maximum(squares - np.square(centres), 0.0)
    explained = np.where(errors == 0, 1.0, 0.0)
    np.subtract(1.0, _ratios(errors, variances), out=explained, where=variances > 0)
    mean: Floats = explained.mean(axis=-1)
    return mean


def _agreeing(outputs: Outputs, reference: Outputs) -> Floats:
    ours, theirs = first_output(outputs), first_output(reference)
    return _per_row(predicted_classes(ours) == predicted_classes(theirs))


def _deviation_rows(outputs: Outputs, reference: Outputs) -> Floats:
    """Per output: distance from the reference, and the reference's distance from its own mean."""
    errors, spreads = [], []
    for name in outputs:
        ours, theirs = outputs[name].astype(np.float64), reference[name].astype(np.float64)
        errors.append(_per_row(np.abs(ours - theirs)))
        spreads.append(_per_row(np.abs(theirs - theirs.mean(axis=0))))
    return np.concatenate([*errors, *spreads], axis=1)


def _closeness(means: Floats) -> Floats:
    """One less the relative absolute error of each output, averaged; no less than 0."""
    errors, spreads = np.split(means, 2, axis=-1)
    close = np.where(errors == 0, 1.0, 0.0)
    np.subtract(1.0, _ratios(errors, spreads), out=close, where=spreads > 0)
    mean: Floats = np.maximum(close, 0.0).mean(axis=-1)
    return mean


def _ratios(parts: Floats, wholes: Floats) -> Floats:
    """Parts of wholes, 0 where the whole is."""
    ratios: Floats = np.divide(parts, wholes, out=np.zeros_like(parts), where=wholes > 0)
    return ratios


def _only(means: Floats) -> Floats:
    only: Floats = np.take(means, 0, axis=-1)
    return only


METRICS: dict[str, Metric] = {
    metric.name: metric
    for metric in (
        Metric("accuracy", True, _correct, _only, "agreement", is_proportion=True, answers=_answers),
        Metric(
            "top5-accuracy", True, _among_top, _only, "agreement", is_proportion=True, answers=_answers
        ),
        # The mean of the classes' recalls, also called macro recall.
        Metric("balanced-accuracy", True, _recall_rows, _mean_share, "agreement", answers=_answers),
        Metric("macro-f1", True, _f1_rows, _mean_share, "agreement", answers=_answers),
        Metric("mean-iou", True, _iou_rows, _mean_share, "agreement", answers=_answers),
        Metric("mse", False, _squared_error, _only),
        Metric("mae", False, _absolute_error, _only),
        Metric("r2", True, _variance_rows, _explained),
        # Against the reference instead of labels.
        Metric(
            "agreement", True, _agreeing, _only, "agreement",
            is_proportion=True, answers=_answers, needs_reference=True,
        ),
        Metric("fidelity", True, _deviation_rows, _closeness, needs_reference=True),
    )
}  # fmt: skip
