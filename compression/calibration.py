"""Ranges of activations from data that streams by: memory holds one batch, and one histogram per tensor."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx
import torch

from compression.base import CompressionError
from compression.data import Split
from compression.inference import open_session
from compression.model import OnnxModel
from compression.signature import Array

BATCH = 16
BINS = 4096
LEVELS = 256
# Thresholds that the entropy method tries, down to this share of the largest magnitude.
CANDIDATES = 128
SMALLEST_THRESHOLD = 1 / 16
# Stands for a probability of zero, of which no logarithm exists.
NEARLY_ZERO = 1e-12

Calibration = Literal["minmax", "entropy", "percentile"]
Range = tuple[float, float]
Ranges = Mapping[str, Range]


class CalibrationError(CompressionError):
    """A range cannot be established from the rows that were given."""


@dataclass(frozen=True)
class Calibrator:
    """How the range of an activation follows from what is seen of it.

    Attributes:
        method: Its extremes; or the range that loses least information when it is rounded to 256 levels
            (Migacz 2017, "8-bit Inference with TensorRT"); or all but its outliers.
        percentile: How many percent of the values the percentile method keeps. Half of the others lie
            beyond either end.
        symmetric: Whether levels are spread evenly around zero, which the entropy method then weighs.
    """

    method: Calibration = "minmax"
    percentile: float = 99.99
    symmetric: bool = False

    def ranges(self, model: OnnxModel, tensors: Sequence[str], split: Split) -> dict[str, Range]:
        """The range of each float tensor over a split, read once for extremes and again for histograms.

        A tensor that reaches infinity, such as attention's scores behind their mask, has none.

        Raises:
            CalibrationError: An activation is not a number.
        """
        limits = _extremes(model, tensors, split)
        if self.method == "minmax":
            return limits
        histograms = {name: Histogram(*ends) for name, ends in limits.items()}
        for batch in activations(model, list(limits), split):
            for name, values in batch.items():
                histograms[name].add(values)
        if self.method == "percentile":
            return {name: histogram.percentile(self.percentile) for name, histogram in histograms.items()}
        return {name: histogram.least_divergent(self.symmetric) for name, histogram in histograms.items()}


class Histogram:
    """How often values fell into equal bins between two limits: as large after a million as after ten.

    Args:
        low: The least of all values.
        high: The greatest of them.
    """

    def __init__(self, low: float, high: float) -> None:
        self.low, self.high = low, high
        self.counts = np.zeros(BINS, np.int64)
        self.zeros = 0

    def add(self, values: Array) -> None:
        """Counts values; exact zeros apart, as every range has a level for zero."""
        others = values[values != 0].astype(np.float64)
        self.zeros += values.size - others.size
        self.counts += np.bincount(self._bins(others), minlength=BINS)

    def percentile(self, percent: float) -> Range:
        """The range that leaves (100 - percent) / 2 percent of the values beyond either end."""
        counts = self.counts.copy()
        counts[self._bins(np.zeros(1))[0]] += self.zeros
        shares = np.cumsum(counts) / max(int(counts.sum()), 1)
        cut = (100 - percent) / 200
        first = int(np.searchsorted(shares, cut, side="right"))
        last = int(np.searchsorted(shares, 1 - cut))
        edges = self._edges()
        return float(edges[min(first, BINS - 1)]), float(edges[min(last, BINS - 1) + 1])

    def least_divergent(self, symmetric: bool) -> Range:
        """The range whose rounding to 256 levels has the least Kullback-Leibler divergence."""
        largest = max(abs(self.low), abs(self.high))
        candidates = [
            (max(self.low, -threshold), min(self.high, threshold))
            for threshold in np.linspace(largest, largest * SMALLEST_THRESHOLD, CANDIDATES)
        ]
        costs = [self._divergence(low, high, symmetric) for low, high in candidates]
        low, high = candidates[int(np.argmin(costs))]
        return float(low), float(high)

    def _divergence(self, low: float, high: float, symmetric: bool) -> float:
        """Of the values, outliers moved to the ends, from what 256 levels can tell of them."""
        edges = self._edges()
        middles = (edges[:-1] + edges[1:]) / 2
        first, last = np.searchsorted(middles, (low, high))
        if last - first < 2:
            return np.inf
        inside = self.counts[first:last].astype(np.float64)
        clipped = inside.copy()
        clipped[0] += self.counts[:first].sum()
        clipped[-1] += self.counts[last:].sum()
        bottom, top = (-max(-low, high), max(-low, high)) if symmetric else (min(low, 0.0), max(high, 0.0))
        level = ((middles[first:last] - bottom) / (top - bottom) * LEVELS).astype(np.int64)
        level = np.clip(level, 0, LEVELS - 1)
        # Within a level all that occurred is told apart no more: it is equally likely.
        occurs = clipped > 0
        sums = np.bincount(level, weights=inside, minlength=LEVELS)
        kinds = np.bincount(level[occurs], minlength=LEVELS)
        rounded = np.where(occurs, sums[level] / np.maximum(kinds[level], 1), 0.0)
        if not rounded.any():
            return np.inf
        seen, told = clipped[occurs] / clipped.sum(), rounded[occurs] / rounded.sum()
        return float(np.sum(seen * np.log(seen / np.maximum(told, NEARLY_ZERO))))

    def _bins(self, values: Array) -> Array:
        width = (self.high - self.low) / BINS
        if width == 0:
            return np.zeros(len(values), np.int64)
        return np.clip((values - self.low) / width, 0, BINS - 1).astype(np.int64)

    def _edges(self) -> Array:
        return np.linspace(self.low, self.high, BINS + 1)


def activations(
    model: OnnxModel, tensors: Sequence[str], split: Split, batch: int = BATCH
) -> Iterator[dict[str, Array]]:
    """The values of tensors inside a graph, inputs and outputs included, for one batch of rows at a time."""
    fed = [spec.name for spec in model.signature.inputs]
    wanted = [name for name in tensors if name not in fed]
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    given = {value.name for value in proto.graph.output}
    proto.graph.output.extend(
        onnx.ValueInfoProto(name=name) for name in dict.fromkeys(wanted) if name not in given
    )
    session = open_session(proto, threads=torch.get_num_threads())  # what a build may use of the cores
    for inputs in split.batches(batch):
        arrays = {name: inputs[name] for name in fed}
        values = session.run(wanted, arrays) if wanted else []
        yield {
            **{name: arrays[name] for name in tensors if name in arrays},
            **dict(zip(wanted, values, strict=True)),
        }


def _extremes(model: OnnxModel, tensors: Sequence[str], split: Split) -> dict[str, Range]:
    limits: dict[str, Range] = {}
    for batch in activations(model, tensors, split):
        for name, values in batch.items():
            low, high = limits.get(name, (np.inf, -np.inf))
            limits[name] = (
                float(np.minimum(low, values.min(initial=np.inf))),
                float(np.maximum(high, values.max(initial=-np.inf))),
            )
    given = {spec.name for spec in model.signature.inputs}  # a model may take NaN for what is missing
    for name, ends in limits.items():
        if np.isnan(ends).any() and name not in given:
            raise CalibrationError(f'activation "{name}" is not a number. Mend the model or its data.')
    return {name: ends for name, ends in limits.items() if np.isfinite(ends).all()}
