"""Golden rows: what rounding explains, and what must be measured again."""

from __future__ import annotations

import numpy as np
import pytest

from compression.signature import Array
from variants.golden import deviation, is_trusted, tolerance

GOLDEN: dict[str, Array] = {"logits": np.array([[-1.0, 1.0], [1.0, -1.0]], np.float32)}


def test_a_deviation_is_a_share_of_the_spread() -> None:
    assert deviation(GOLDEN, GOLDEN) == 0.0
    assert deviation({"logits": GOLDEN["logits"] + np.float32(0.5)}, GOLDEN) == pytest.approx(0.5)
    tenfold = {"logits": 10 * GOLDEN["logits"]}
    assert deviation({"logits": tenfold["logits"] + np.float32(0.5)}, tenfold) == pytest.approx(0.05)


def test_the_worst_output_counts() -> None:
    two = GOLDEN | {"label": np.array([1, 0, 0, 1])}
    assert deviation(two | {"label": np.array([1, 0, 0, 0])}, two) == 0.25


@pytest.mark.parametrize("wrong", [np.nan, np.inf])
def test_what_is_not_finite_on_one_side_is_as_far_off_as_json_allows(wrong: float) -> None:
    assert deviation({"logits": np.full((2, 2), wrong, np.float32)}, GOLDEN) == 1e6
    holes = {"logits": np.full((2, 2), wrong, np.float32)}
    assert deviation(holes, holes) == 0.0


def test_another_shape_is_as_far_off() -> None:
    assert deviation({"logits": np.zeros((1, 2), np.float32)}, GOLDEN) == 1e6


def test_low_precision_is_allowed_more() -> None:
    full = tolerance("f32", {"float32": 100})
    assert full < tolerance("f32", {"int8": 100, "float32": 4})
    assert full < tolerance("bf16", {"float32": 100})
    assert full < tolerance("f32", {})  # an artifact of an older build does not say


def test_what_was_measured_here_is_trusted_and_what_was_not_is_not() -> None:
    assert is_trusted(0.0009, None, 0.001)
    assert not is_trusted(0.2, None, 0.001)
    assert is_trusted(0.2, 0.19, 0.001)
    assert not is_trusted(0.4, 0.19, 0.001)
