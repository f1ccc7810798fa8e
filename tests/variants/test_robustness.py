"""Perturbations: what they disturb, what they leave alone, and that they do it the same way each time."""

from __future__ import annotations

import numpy as np
import pytest

from compression.data import Split
from compression.signature import Array
from variants.robustness import (
    PERTURBATIONS,
    Perturbation,
    Robustness,
    disturb,
    kind_of,
    perturbations,
)

PICTURES = np.random.default_rng(0).integers(0, 256, (4, 16, 16, 3)).astype(np.uint8)
LAYOUTS: dict[str, Array] = {
    "bytes": PICTURES,
    "floats": PICTURES.astype(np.float32) / 255,
    "normalized": PICTURES.astype(np.float32) / 64 - 2,
    "halves": (PICTURES / 255).astype(np.float16),
    "channels first": PICTURES.transpose(0, 3, 1, 2),
}
EACH = [(each, severity) for each in PERTURBATIONS["image"] for severity in each.severities]


@pytest.mark.parametrize("rows", LAYOUTS.values(), ids=LAYOUTS)
@pytest.mark.parametrize(("perturbation", "severity"), EACH, ids=lambda value: getattr(value, "name", value))
def test_pictures_come_back_disturbed_in_their_own_range(
    rows: Array, perturbation: Perturbation, severity: float
) -> None:
    split = Split({"image": rows, "size": np.ones((4, 2), np.float32)}, np.arange(4))
    after = disturb(split, perturbation, severity)
    assert after.inputs["image"].dtype == rows.dtype
    assert after.inputs["image"].shape == rows.shape
    assert rows.min() <= after.inputs["image"].min()
    assert after.inputs["image"].max() <= rows.max()
    assert not np.array_equal(after.inputs["image"], rows)
    assert np.array_equal(after.inputs["size"], split.inputs["size"])
    again = disturb(split, perturbation, severity)
    assert np.array_equal(after.inputs["image"], again.inputs["image"])


def test_blur_smooths_contrast_fades_and_noise_roughens() -> None:
    split = Split({"image": LAYOUTS["floats"]})

    def deviation(name: str) -> float:
        perturbation = next(each for each in PERTURBATIONS["image"] if each.name == name)
        return float(disturb(split, perturbation, perturbation.severities[-1]).inputs["image"].std())

    before = float(split.inputs["image"].std())
    assert deviation("gaussian-blur") < before
    assert deviation("contrast") == pytest.approx(0.15 * before, rel=0.1)
    assert deviation("gaussian-noise") > before


@pytest.mark.parametrize(
    "rows",
    [
        np.zeros((2, 64), np.float32),
        np.zeros((2, 16, 16, 3), np.int64),
        np.zeros((2, 12, 64, 64), np.float32),
        np.zeros((2, 4, 4, 3), np.uint8),
        np.zeros((2, 128), np.int64),
    ],
)
def test_what_is_no_picture_is_left_alone(rows: Array) -> None:
    assert kind_of(rows) is None
    assert perturbations({"x": rows}) == []


def test_rows_are_taken_from_the_whole_split() -> None:
    split = Split({"x": np.arange(1000)})
    assert split.spread(3).inputs["x"].tolist() == [0, 499, 999]
    assert len(split.take(slice(0, 2)).spread(128)) == 2


def test_the_drop_is_a_multiple_of_the_references() -> None:
    assert Robustness("contrast", 0.15, 128, 0.9, 0.6, 0.9, 0.8).drop_ratio == pytest.approx(3.0)
    assert Robustness("contrast", 0.15, 128, 0.9, 0.6, 0.9, 0.9).drop_ratio is None
