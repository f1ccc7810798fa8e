from __future__ import annotations

import weakref
from collections.abc import Iterator, Sequence

import numpy as np
import pytest

from compression import calibration
from compression.base import PassContext
from compression.calibration import (
    BATCH,
    BINS,
    Calibration,
    CalibrationError,
    Calibrator,
    Histogram,
    activations,
)
from compression.data import Split
from compression.model import OnnxModel
from compression.qdq import OPERATORS, prepared, touched
from compression.signature import Array


@pytest.fixture(scope="module")
def ready(artifact: OnnxModel) -> OnnxModel:
    return prepared(artifact)


@pytest.fixture(scope="module")
def rows(context: PassContext) -> Split:
    return context.splits.calibration.take(slice(0, 100))


def histogram(values: Array, parts: int = 1) -> Histogram:
    made = Histogram(float(values.min()), float(values.max()))
    for part in np.array_split(values, parts):
        made.add(part)
    return made


@pytest.mark.parametrize("method", ["minmax", "entropy", "percentile"])
def test_no_more_than_two_batches_are_ever_held(
    method: Calibration, ready: OnnxModel, rows: Split, monkeypatch: pytest.MonkeyPatch
) -> None:
    tensors = touched(ready, OPERATORS)
    made: list[weakref.ref[Array]] = []
    most = 0

    def watched(model: OnnxModel, names: Sequence[str], split: Split) -> Iterator[dict[str, Array]]:
        nonlocal most
        for batch in activations(model, names, split):
            made.extend(weakref.ref(values) for values in batch.values())
            most = max(most, sum(reference() is not None for reference in made))
            yield batch

    monkeypatch.setattr(calibration, "activations", watched)
    Calibrator(method).ranges(ready, tensors, rows)
    assert len(made) >= len(rows) // BATCH * len(tensors)
    assert most <= 2 * len(tensors)


def test_extremes_are_those_of_all_rows(ready: OnnxModel, rows: Split) -> None:
    tensors = touched(ready, OPERATORS)
    ranges = Calibrator().ranges(ready, tensors, rows)
    (whole,) = activations(ready, tensors, rows, batch=len(rows))
    for name, values in whole.items():
        assert ranges[name] == pytest.approx((values.min(), values.max()), rel=1e-5, abs=1e-5)


def test_a_histogram_knows_neither_batches_nor_how_much_it_saw() -> None:
    values = np.random.default_rng(0).normal(size=10_000).astype(np.float32)
    whole, parts = histogram(values), histogram(values, parts=7)
    assert np.array_equal(whole.counts, parts.counts)
    assert whole.counts.sum() == len(values)
    assert len(whole.counts) == BINS


def test_percentiles_are_those_of_the_values() -> None:
    values = np.random.default_rng(0).normal(size=200_000)
    low, high = histogram(values).percentile(99.0)
    assert (low, high) == pytest.approx(np.percentile(values, [0.5, 99.5]), abs=0.01)
    assert histogram(values).percentile(100.0) == pytest.approx((values.min(), values.max()))


def test_zeros_count_towards_percentiles() -> None:
    values = np.concatenate([np.zeros(900), np.linspace(0.01, 1, 100)])
    low, high = histogram(values).percentile(90.0)
    assert low == pytest.approx(0.0, abs=1e-3)
    assert high == pytest.approx(0.5, abs=0.02)


def test_entropy_cuts_off_rare_outliers_and_keeps_what_is_even() -> None:
    draw = np.random.default_rng(0)
    rare = np.concatenate([np.abs(draw.normal(size=100_000)), [100.0]])
    low, high = histogram(rare).least_divergent(symmetric=False)
    assert low >= 0
    assert 3 < high < 20
    low, high = histogram(draw.uniform(-1, 1, 100_000)).least_divergent(symmetric=True)
    assert high - low > 1.9


def test_a_constant_activation_has_a_range() -> None:
    for value in (0.0, 3.0):
        made = histogram(np.full(10, value))
        assert made.percentile(99.0) == (value, value)
        assert made.least_divergent(symmetric=False) == (value, value)


def test_what_reaches_infinity_has_no_range_nor_an_input_that_is_no_number(ready: OnnxModel) -> None:
    endless = np.where(np.arange(64) < 3, -np.inf, np.ones((2, 64), np.float32)).astype(np.float32)
    assert Calibrator().ranges(ready, ["image"], Split({"image": endless})) == {}
    unknown = Split({"image": np.full((2, 64), np.nan, np.float32)})
    assert Calibrator().ranges(ready, ["image"], unknown) == {}  # the model may make something of it
    with pytest.raises(CalibrationError, match="not a number"):
        Calibrator().ranges(ready, ["logits"], unknown)
