"""What a model's inputs and answers looked like on the calibration split, to compare traffic with. Torch-free.

Each row of an input or output becomes a few summaries (values, mean, spread, length, ...); the distribution of
each over the split is kept as the shares of bins that the split itself fills evenly. Traffic is held against
them by the population stability index (Siddiqi 2006, Credit Risk Scorecards) and the Kolmogorov-Smirnov
distance. Every row weighs as much as any other, however many values it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from compression.data import Split
from compression.signature import Array, TensorSpec
from variants.metrics import class_axis, find_metric, first_output, predicted_classes
from variants.serving_spec import ServingSpec

FEWEST_ROWS = 100  # fewer say too little of a distribution
_MOST_BINS = 10
_ROWS_PER_BIN = 20
_MOST_VALUES = 512  # of a row; at fixed places, so that the split and traffic show the same ones
_MOST_CLASSES = 20
_PREDICTION = "prediction"
_CONFIDENCE = "confidence"

Floats = NDArray[np.float64]
# Values of one summary and the row, counted from 0, that each belongs to.
Summary = tuple[Floats, NDArray[np.int64]]


@dataclass(frozen=True)
class Distribution:
    """How one summary was distributed.

    Attributes:
        signal: What it is of, as the metrics' label says it: `input:image` of all values, `input:image:mean`
            of the means of rows, `prediction`, `confidence`.
        edges: Upper ends of the bins but the last, which is open; a bin holds its upper end. Of classes the
            classes themselves, each in a bin of its own and all others in the last.
        shares: Of the bins, with sum 1.
        is_classes: Whether the values are classes.
        rows: Rows behind the shares.
    """

    signal: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    is_classes: bool
    rows: int

    @cached_property
    def _edges(self) -> Floats:
        return np.array(self.edges, np.float64)

    def count(self, summary: Summary, rows: int) -> tuple[Floats, int]:
        """The rows per bin, each row split evenly over its values, and how many rows have any value."""
        values, owners = summary
        found = np.searchsorted(self._edges, values, side="left")
        if self.is_classes:
            last = len(self._edges)
            known = self._edges[np.minimum(found, last - 1)] == values
            found = np.where(known & (found < last), found, last)
        sizes = np.bincount(owners, minlength=rows)
        weights = 1.0 / sizes[owners]
        counts: Floats = np.bincount(found, weights=weights, minlength=len(self.shares)).astype(np.float64)
        return counts, int((sizes > 0).sum())

    def stability_index(self, counts: Floats, rows: float) -> float:
        """Population stability index of traffic: 0 where nothing moved, above 0.2 is worth a look.

        Args:
            counts: Traffic's rows per bin.
            rows: How many rows that many weighed counts are worth.
        """
        ours = _smoothed(counts / counts.sum(), rows)
        theirs = _smoothed(np.array(self.shares), self.rows)
        return float(((ours - theirs) * np.log(ours / theirs)).sum())

    def distance(self, counts: Floats) -> float:
        """Kolmogorov-Smirnov distance, at the edges of the bins: 0 to 1."""
        return float(np.abs(np.cumsum(counts / counts.sum()) - np.cumsum(self.shares)).max())


@dataclass(frozen=True)
class Distributions:
    """All distributions of a model.

    Attributes:
        source: Digest of the rows and of the reference whose answers these are.
        rows: Rows of the calibration split.
        of: One per signal.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """

    source: str
    rows: int
    of: tuple[Distribution, ...]
    unknown: dict[str, int] = field(default_factory=dict)


def distributions(
    spec: ServingSpec,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    source: str,
    unknown: dict[str, int],
) -> Distributions:
    """The distributions of these rows; of fewer than `FEWEST_ROWS` there are none.

    Args:
        spec: The model's.
        inputs: Arrays `(rows, ...)` by input name.
        outputs: What the reference answers to them.
        source: Tells these rows and this reference from others.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """
    rows = len(next(iter(inputs.values())))
    if rows < FEWEST_ROWS:
        return Distributions(source, rows, ())
    found = summaries(spec, inputs, outputs, unknown).items()
    made = [_distribution(signal, summary, rows) for signal, summary in found if len(summary[0])]
    return Distributions(source, rows, tuple(made), unknown)


def summaries(
    spec: ServingSpec,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    unknown: Mapping[str, int],
) -> dict[str, Summary]:
    """The summaries of some rows, by signal."""
    found: dict[str, Summary] = {}
    for tensor in spec.signature.inputs:
        rows = thinned(tensor, inputs[tensor.name]).astype(np.float64)
        signal = f"input:{tensor.name}"
        if _is_sequence(tensor):
            found |= _of_sequences(signal, rows, unknown.get(tensor.name))
        else:
            found |= _of_values(signal, rows)
    return found | _of_outputs(spec, outputs)


def thinned(tensor: TensorSpec, array: Array) -> Array:
    """Rows `(rows, values)` with no more values than summaries look at; tokens stay whole."""
    flat = array.reshape(len(array), -1)
    if _is_sequence(tensor) or flat.shape[1] <= _MOST_VALUES:
        return flat
    return flat[:, np.linspace(0, flat.shape[1] - 1, _MOST_VALUES).astype(np.int64)]


def _of_values(signal: str, rows: Floats) -> dict[str, Summary]:
    finite = np.isfinite(rows)
    found = {signal: _chosen(rows, finite)}
    if rows.shape[1] > 1:
        whole = rows[finite.all(axis=1)]
        found[f"{signal}:mean"] = _per_row(whole.mean(axis=1))
        found[f"{signal}:spread"] = _per_row(whole.std(axis=1))
    return found


def _of_sequences(signal: str, rows: Floats, unknown: int | None) -> dict[str, Summary]:
    """Of tokens; zeros pad, and how many of them depends on a row's company."""
    there = rows != 0
    lengths = there.sum(axis=1)
    found = {signal: _chosen(rows, there), f"{signal}:length": _per_row(lengths)}
    if unknown is not None:
        found[f"{signal}:unknown"] = _per_row((rows == unknown).sum(axis=1) / np.maximum(lengths, 1))
    return found


def _of_outputs(spec: ServingSpec, outputs: Mapping[str, Array]) -> dict[str, Summary]:
    """Classes and confidence of a classifier; the mean of each row for all else."""
    ours = {tensor.name: outputs[tensor.name] for tensor in spec.signature.outputs}
    metric = find_metric(spec.metric)
    judged = ours.get(spec.metric.partition("@")[2], first_output(ours))
    if metric.answers is None:
        return {_PREDICTION: _per_row(judged.reshape(len(judged), -1).astype(np.float64).mean(axis=1))}
    classes = predicted_classes(judged).reshape(len(judged), -1)
    owners = np.repeat(np.arange(len(classes)), classes.shape[1])
    found: dict[str, Summary] = {_PREDICTION: (classes.ravel().astype(np.float64), owners)}
    if judged.dtype.kind == "f":
        found[_CONFIDENCE] = _per_row(_confidence(judged))
    return found


def _confidence(scores: Array) -> Floats:
    """The probability of each row's class, `(rows,)`, averaged where a row has several answers."""
    axis = class_axis(scores)
    values = scores.astype(np.float64)
    if values.min() < 0 or not np.allclose(values.sum(axis=axis), 1.0, atol=1e-3):
        values = np.exp(values - values.max(axis=axis, keepdims=True))
        values /= values.sum(axis=axis, keepdims=True)
    best: Floats = values.max(axis=axis).reshape(len(values), -1).mean(axis=1)
    return best


def _distribution(signal: str, summary: Summary, rows: int) -> Distribution:
    values, _ = summary
    is_classes = signal == _PREDICTION and bool((values == np.floor(values)).all())
    edges = _classes(values) if is_classes else _edges(values, rows)
    empty = Distribution(signal, edges, (0.0,) * (len(edges) + 1), is_classes, rows)
    counts, used = empty.count(summary, rows)
    return replace(empty, shares=tuple(float(share) for share in counts / counts.sum()), rows=used)


def _edges(self) -> Floats:
        return np.array(self.edges, np.float64)

    def count(self, summary: Summary, rows: int) -> tuple[Floats, int]:
        """The rows per bin, each row split evenly over its values, and how many rows have any value."""
        values, owners = summary
        found = np.searchsorted(self._edges, values, side="left")
        if self.is_classes:
            last = len(self._edges)
            known = self._edges[np.minimum(found, last - 1)] == values
            found = np.where(known & (found < last), found, last)
        sizes = np.bincount(owners, minlength=rows)
        weights = 1.0 / sizes[owners]
        counts: Floats = np.bincount(found, weights=weights, minlength=len(self.shares)).astype(np.float64)
        return counts, int((sizes > 0).sum())

    def stability_index(self, counts: Floats, rows: float) -> float:
        """Population stability index of traffic: 0 where nothing moved, above 0.2 is worth a look.

        Args:
            counts: Traffic's rows per bin.
            rows: How many rows that many weighed counts are worth.
        """
        ours = _smoothed(counts / counts.sum(), rows)
        theirs = _smoothed(np.array(self.shares), self.rows)
        return float(((ours - theirs) * np.log(ours / theirs)).sum())

    def distance(self, counts: Floats) -> float:
        """Kolmogorov-Smirnov distance, at the edges of the bins: 0 to 1."""
        return float(np.abs(np.cumsum(counts / counts.sum()) - np.cumsum(self.shares)).max())


@dataclass(frozen=True)
class Distributions:
    """All distributions of a model.

    Attributes:
        source: Digest of the rows and of the reference whose answers these are.
        rows: Rows of the calibration split.
        of: One per signal.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """

    source: str
    rows: int
    of: tuple[Distribution, ...]
    unknown: dict[str, int] = field(default_factory=dict)


def distributions(
    spec: ServingSpec,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    source: str,
    unknown: dict[str, int],
) -> Distributions:
    """The distributions of these rows; of fewer than `FEWEST_ROWS` there are none.

    Args:
        spec: The model's.
        inputs: Arrays `(rows, ...)` by input name.
        outputs: What the reference answers to them.
        source: Tells these rows and this reference from others.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """
    rows = len(next(iter(inputs.values())))
    if rows < FEWEST_ROWS:
        return Distributions(source, rows, ())
    found = summaries(spec, inputs, outputs, unknown).items()
    made = [_distribution(signal, summary, rows) for signal, summary in found if len(summary[0])]
    return Distributions(source, rows, tuple(made), unknown)


def summaries(
    spec: ServingSpec,
    inputs: Mapping[str, Array],
    outputs: Mapping[str, Array],
    unknown: Mapping[str, int],
) -> dict[str, Summary]:
    """The summaries of some rows, by signal."""
    found: dict[str, Summary] = {}
    for tensor in spec.signature.inputs:
        rows = thinned(tensor, inputs[tensor.name]).astype(np.float64)
        signal = f"input:{tensor.name}"
        if _is_sequence(tensor):
            found |= _of_sequences(signal, rows, unknown.get(tensor.name))
        else:
            found |= _of_values(signal, rows)
    return found | _of_outputs(spec, outputs)


def thinned(tensor: TensorSpec, array: Array) -> Array:
    """Rows `(rows, values)` with no more values than summaries look at; tokens stay whole."""
    flat = array.reshape(len(array), -1)
    if _is_sequence(tensor) or flat.shape[1] <= _MOST_VALUES:
        return flat
    return flat[:, np.linspace(0, flat.shape[1] - 1, _MOST_VALUES).astype(np.int64)]


def _of_values(signal: str, rows: Floats) -> dict[str, Summary]:
    finite = np.isfinite(rows)
    found = {signal: _chosen(rows, finite)}
    if rows.shape[1] > 1:
        whole = rows[finite.all(axis=1)]
        found[f"{signal}:mean"] = _per_row(whole.mean(axis=1))
        found[f"{signal}:spread"] = _per_row(whole.std(axis=1))
    return found


def _of_sequences(signal: str, rows: Floats, unknown: int | None) -> dict[str, Summary]:
    """Of tokens; zeros pad, and how many of them depends on a row's company."""
    there = rows != 0
    lengths = there.sum(axis=1)
    found = {signal: _chosen(rows, there), f"{signal}:length": _per_row(lengths)}
    if unknown is not None:
        found[f"{signal}:unknown"] = _per_row((rows == unknown).sum(axis=1) / np.maximum(lengths, 1))
    return found


def _of_outputs(spec: ServingSpec, outputs: Mapping[str, Array]) -> dict[str, Summary]:
    """Classes and confidence of a classifier; the mean of each row for all else."""
    ours = {tensor.name: outputs[tensor.name] for tensor in spec.signature.outputs}
    metric = find_metric(spec.metric)
    judged = ours.get(spec.metric.partition("@")[2], first_output(ours))
    if metric.answers is None:
        return {_PREDICTION: _per_row(judged.reshape(len(judged), -1).astype(np.float64).mean(axis=1))}
    classes = predicted_classes(judged).reshape(len(judged), -1)
    owners = np.repeat(np.arange(len(classes)), classes.shape[1])
    found: dict[str, Summary] = {_PREDICTION: (classes.ravel().astype(np.float64), owners)}
    if judged.dtype.kind == "f":
        found[_CONFIDENCE] = _per_row(_confidence(judged))
    return found


def _confidence(scores: Array) -> Floats:
    """The probability of each row's class, `(rows,)`, averaged where a row has several answers."""
    axis = class_axis(scores)
    values = scores.astype(np.float64)
    if values.min() < 0 or not np.allclose(values.sum(axis=axis), 1.0, atol=1e-3):
        values = np.exp(values - values.max(axis=axis, keepdims=True))
        values /= values.sum(axis=axis, keepdims=True)
    best: Floats = values.max(axis=axis).reshape(len(values), -1).mean(axis=1)
    return best


def _distribution(signal: str, summary: Summary, rows: int) -> Distribution | None:
    values, _ = summary
    if not len(values):
        return None
    is_classes = signal == _PREDICTION and bool(np.equal(values, np.floor(values)).all())
    edges = _classes(values) if is_classes else _edges(values, rows)
    empty = Distribution(signal, edges, (0.0,) * (len(edges) + 1), is_classes, rows)
    counts, used = empty.count(summary, rows)
    shares = tuple(round(float(share), 9) for share in counts / counts.sum())
    return Distribution(signal, edges, shares, is_classes, used)


def _edges(values: Floats, rows: int) -> tuple[float, ...]:
    """Ends of bins that the values fill evenly, as far as they can, and of all that lies below and above."""
    bins = int(np.clip(rows // _ROWS_PER_BIN, 4, _MOST_BINS))
    inner = np.quantile(values, np.linspace(0, 1, bins + 1), method="inverted_cdf")
    ends = np.unique(np.concatenate([[np.nextafter(inner[0], -np.inf)], inner]))
    return tuple(float(end) for end in ends)


def _classes(values: Floats) -> tuple[float, ...]:
    """The most frequent classes, in their order."""
    classes, counts = np.unique(values, return_counts=True)
    return tuple(float(c) for c in np.sort(classes[np.argsort(-counts, kind="stable")[:_MOST_CLASSES]]))


def _smoothed(shares: Floats, rows: float) -> Floats:
    """Shares as if each bin had held half a row more, so that an empty one is no infinity."""
    smoothed: Floats = (shares * rows + 0.5) / (rows + 0.5 * len(shares))
    return smoothed


def _per_row(values: Array) -> Summary:
    return values.astype(np.float64), np.arange(len(values))


def _chosen(rows: Floats, chosen: NDArray[np.bool_]) -> Summary:
    return rows[chosen], np.nonzero(chosen)[0]


def _is_sequence(tensor: TensorSpec) -> bool:
    """Whether it holds tokens, or what goes with them: integers of a length that varies."""
    return np.dtype(tensor.dtype).kind in "iu" and any(isinstance(axis, str) for axis in tensor.row_shape)
