"""What a model's inputs and answers look like on the calibration split, to compare traffic with. Torch-free.

Each row of an input or output becomes a few summaries (values, mean, spread, length); the distribution of
each over the split is kept as the shares of bins that the split itself fills evenly. Traffic is held against
them by the population stability index (Siddiqi 2006, Credit Risk Scorecards) and the Kolmogorov-Smirnov
distance. Every row weighs as much as any other, however many values it has.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from compression.signature import Array, TensorSpec
from variants.metrics import find_metric, predicted_classes, scores_axis
from variants.serving_spec import ServingSpec

FEWEST_ROWS = 100  # fewer say too little of a distribution
_MOST_BINS = 10
_FEWEST_BINS = 4
_ROWS_PER_BIN = 20
_MOST_VALUES = 512  # of a row; at fixed places, so that the split and traffic show the same ones
_MOST_CLASSES = 20
_PREDICTION = "prediction"
_CONFIDENCE = "confidence"

Floats = NDArray[np.float64]
# Values of one summary, and the row, counted from 0, that each belongs to.
Summary = tuple[Floats, NDArray[np.int64]]


@dataclass(frozen=True)
class Distribution:
    """How one summary was distributed.

    Attributes:
        signal: What it is of, as the metrics' label says it: `input:image` of all values, `input:image:mean`
            of the means of rows, `prediction`, `confidence`.
        edges: Upper ends of the bins but the last, which is open; a bin holds its upper end. Of classes the
            classes themselves, each in a bin of its own, and all others in the last.
        shares: Of the bins, with sum 1.
        is_classes: Whether the values are classes.
        rows: Rows behind the shares.
    """

    signal: str
    edges: tuple[float, ...]
    shares: tuple[float, ...]
    is_classes: bool
    rows: int

    def count(self, summary: Summary, rows: int) -> Floats:
        """Rows per bin, each row split evenly over its values; rows without a value count nowhere."""
        values, owners = summary
        edges = np.array(self.edges, np.float64)
        found = np.searchsorted(edges, values, side="left")
        if self.is_classes:
            known = edges[np.minimum(found, len(edges) - 1)] == values
            found = np.where(known, found, len(edges))
        weights = 1.0 / np.bincount(owners, minlength=rows)[owners]
        counts: Floats = np.bincount(found, weights=weights, minlength=len(self.shares)).astype(np.float64)
        return counts

    def stability_index(self, counts: Floats, rows: float) -> float:
        """Population stability index: about 0 where nothing moved, above 0.2 something did.

        What two samples of these sizes differ by on average is taken off (Yurdakul and Naranjo 2020,
        Statistical properties of the population stability index), so that few rows raise no alarm.

        Args:
            counts: Traffic's rows per bin, weighed in any way.
            rows: How many rows of equal weight they are worth.
        """
        ours = _smoothed(counts / counts.sum(), rows)
        theirs = _smoothed(np.array(self.shares), self.rows)
        index = float(((ours - theirs) * np.log(ours / theirs)).sum())
        filled = int(np.count_nonzero((counts > 0) | (np.array(self.shares) > 0)))
        return max(0.0, index - (filled - 1) * (1 / rows + 1 / self.rows))

    def distance(self, counts: Floats) -> float:
        """Kolmogorov-Smirnov distance, at the ends of the bins: 0 to 1."""
        return float(np.abs(np.cumsum(counts / counts.sum()) - np.cumsum(self.shares)).max())


@dataclass(frozen=True)
class Distributions:
    """All distributions of a model.

    Attributes:
        rows: Sha256 of the file that held the rows.
        inputs: One per signal.
        answers: One per signal, by `recipe@build`: a pruned variant is less sure of the same answers.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """

    rows: str
    inputs: tuple[Distribution, ...] = ()
    answers: dict[str, tuple[Distribution, ...]] = field(default_factory=dict)
    unknown: dict[str, int] = field(default_factory=dict)


def distributions(summaries: Mapping[str, Summary], rows: int) -> tuple[Distribution, ...]:
    """How each summary of so many rows is distributed; of fewer than `FEWEST_ROWS` nothing is said."""
    if rows < FEWEST_ROWS:
        return ()
    return tuple(
        _distribution(signal, summary, rows) for signal, summary in summaries.items() if len(summary[0])
    )


def of_inputs(
    spec: ServingSpec, inputs: Mapping[str, Array], unknown: Mapping[str, int]
) -> dict[str, Summary]:
    """The summaries of some rows' inputs, by signal.

    Args:
        spec: The model's.
        inputs: Arrays `(rows, ...)` by name, thinned or not.
        unknown: The token that stands for what a tokenizer does not know, by input.
    """
    found: dict[str, Summary] = {}
    for tensor in spec.signature.inputs:
        rows = thinned(tensor, inputs[tensor.name]).astype(np.float64)
        signal = f"input:{tensor.name}"
        if _is_sequence(tensor):
            found |= _of_sequences(signal, rows, unknown.get(tensor.name))
        else:
            found |= _of_values(signal, rows)
    return found


def of_answers(spec: ServingSpec, outputs: Mapping[str, Array]) -> dict[str, Summary]:
    """Classes and confidence of a classifier's answers; of all else the mean of each row."""
    judged = outputs[judged_output(spec)]
    if find_metric(spec.metric).answers is None:
        return {_PREDICTION: _per_row(judged.reshape(len(judged), -1).astype(np.float64).mean(axis=1))}
    classes = predicted_classes(judged).reshape(len(judged), -1)
    owners = np.repeat(np.arange(len(classes)), classes.shape[1])
    found: dict[str, Summary] = {_PREDICTION: (classes.ravel().astype(np.float64), owners)}
    if judged.dtype.kind == "f":
        found[_CONFIDENCE] = _per_row(_confidence(judged.astype(np.float64)))
    return found


def thinned(tensor: TensorSpec, array: Array) -> Array:
    """Rows `(rows, values)` with no more values than summaries look at; tokens stay whole."""
    flat = array.reshape(len(array), -1)
    if _is_sequence(tensor) or flat.shape[1] <= _MOST_VALUES:
        return flat
    return flat[:, np.linspace(0, flat.shape[1] - 1, _MOST_VALUES).astype(np.int64)]


def judged_output(spec: ServingSpec) -> str:
    """The output that the model's metric judges: the one it names, else the first."""
    return spec.metric.partition("@")[2] or spec.signature.outputs[0].name


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


def _confidence(scores: Floats) -> Floats:
    """The probability of each row's class, `(rows,)`, averaged where a row has several answers."""
    axis = scores_axis(scores.shape)
    if scores.min() < 0 or not np.allclose(scores.sum(axis=axis), 1.0, atol=1e-3):
        powers = np.exp(scores - scores.max(axis=axis, keepdims=True))
        scores = powers / powers.sum(axis=axis, keepdims=True)
    best: Floats = scores.max(axis=axis).reshape(len(scores), -1).mean(axis=1)
    return best


def _distribution(signal: str, summary: Summary, rows: int) -> Distribution:
    values, owners = summary
    is_classes = signal == _PREDICTION and bool((values == np.floor(values)).all())
    edges = _classes(values) if is_classes else _edges(values, rows)
    empty = Distribution(signal, edges, (0.0,) * (len(edges) + 1), is_classes, len(np.unique(owners)))
    counts = empty.count(summary, rows)
    return replace(empty, shares=tuple(float(share) for share in counts / counts.sum()))


def _edges(values: Floats, rows: int) -> tuple[float, ...]:
    """Ends of bins that the values fill as evenly as they can; the first and the last are open."""
    bins = int(np.clip(rows // _ROWS_PER_BIN, _FEWEST_BINS, _MOST_BINS))
    ends = np.quantile(values, np.linspace(0, 1, bins + 1)[1:-1], method="inverted_cdf")
    if ends[0] == (least := values.min()):  # many equal ones: what lies below them is something else
        ends = np.array([np.nextafter(least, -np.inf), *ends])
    return tuple(float(end) for end in np.unique(ends))


def _classes(values: Floats) -> tuple[float, ...]:
    """The most frequent classes, in their order."""
    classes, counts = np.unique(values, return_counts=True)
    most = np.argsort(-counts, kind="stable")[:_MOST_CLASSES]
    return tuple(float(kept) for kept in np.sort(classes[most]))


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
