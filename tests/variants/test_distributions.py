"""Distributions of rows: general over signatures, blind to row order and company, awake to shifts."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.signature import Array, Signature, TensorSpec
from variants.distributions import (
    FEWEST_ROWS,
    Distribution,
    distributions,
    of_answers,
    of_inputs,
    thinned,
)
from variants.serving_spec import ServingSpec

IMAGE = TensorSpec("x", "float32", ("batch", 4))
TOKENS = TensorSpec("ids", "int64", ("batch", "sequence"))
LOGITS = TensorSpec("logits", "float32", ("batch", 3))


def spec(
    *inputs: TensorSpec, outputs: tuple[TensorSpec, ...] = (LOGITS,), metric: str = "accuracy"
) -> ServingSpec:
    return ServingSpec("m", Signature(inputs, outputs), metric, "fp32")


def normal(rows: int, seed: int = 0, width: int = 4) -> Array:
    return np.random.default_rng(seed).normal(size=(rows, width)).astype(np.float32)


def of_images(rows: Array) -> dict[str, Distribution]:
    found = distributions(of_inputs(spec(IMAGE), {"x": rows}, {}), len(rows))
    return {distribution.signal: distribution for distribution in found}


def score(known: Distribution, rows: Array) -> float:
    summary = of_inputs(spec(IMAGE), {"x": rows}, {})[known.signal]
    return known.stability_index(known.count(summary, len(rows)), len(rows))


def test_signals_of_numbers_are_values_means_and_spreads() -> None:
    found = of_images(normal(400))
    assert found.keys() == {"input:x", "input:x:mean", "input:x:spread"}
    for distribution in found.values():
        assert sum(distribution.shares) == pytest.approx(1)
        assert len(distribution.shares) == len(distribution.edges) + 1
        assert max(distribution.shares) < 0.15  # ten bins, evenly filled


@given(st.integers(200, 2000), st.integers(1, 10_000))
def test_more_of_the_same_is_no_shift(rows: int, seed: int) -> None:
    known = of_images(normal(400))
    assert all(score(distribution, normal(rows, seed)) < 0.2 for distribution in known.values())


@pytest.mark.parametrize(
    ("shift", "signals"),
    [
        (lambda x: x + 1.0, {"input:x", "input:x:mean"}),
        (lambda x: x * 3.0, {"input:x", "input:x:spread"}),
        (lambda x: np.zeros_like(x), {"input:x", "input:x:mean", "input:x:spread"}),
    ],
)
def test_a_shift_shows_in_what_it_shifts(shift: object, signals: set[str]) -> None:
    known = of_images(normal(400))
    moved = shift(normal(300, 1))  # type: ignore[operator]
    assert signals <= {signal for signal, distribution in known.items() if score(distribution, moved) > 0.2}


def test_values_beside_a_constant_are_a_shift_on_either_side() -> None:
    known = of_images(np.full((200, 4), 7.0, np.float32))["input:x"]
    assert score(known, np.full((300, 4), 7.0, np.float32)) < 0.01
    for other in (6.9, 7.1):
        assert score(known, np.full((300, 4), other, np.float32)) > 1


def test_few_rows_have_no_distribution() -> None:
    assert distributions(of_inputs(spec(IMAGE), {"x": normal(FEWEST_ROWS - 1)}, {}), FEWEST_ROWS - 1) == ()


def test_values_that_are_not_finite_are_left_out() -> None:
    rows = normal(300)
    rows[:150, 0], rows[150:200] = np.nan, np.inf
    found = of_images(rows)
    assert found["input:x"].rows == 250
    assert found["input:x:mean"].rows == 100


def test_padding_changes_no_signal_of_tokens() -> None:
    generator = np.random.default_rng(0)
    ids = generator.integers(1, 1000, (300, 16))
    ids[np.arange(16) >= generator.integers(1, 17, (300, 1))] = 0
    wide = np.concatenate([ids, np.zeros((300, 48), np.int64)], axis=1)
    short, long = (of_inputs(spec(TOKENS), {"ids": tokens}, {"ids": 100}) for tokens in (ids, wide))
    assert short.keys() == {"input:ids", "input:ids:length", "input:ids:unknown"}
    for signal in short:
        assert np.array_equal(short[signal][0], long[signal][0])
    assert short["input:ids:length"][0].max() == 16


def test_the_share_of_unknown_tokens_is_a_signal() -> None:
    ids = np.array([[5, 9, 9, 0], [5, 6, 7, 8]])
    assert of_inputs(spec(TOKENS), {"ids": ids}, {"ids": 9})["input:ids:unknown"][0].tolist() == [2 / 3, 0]


def test_long_rows_are_thinned_to_the_same_places_every_time() -> None:
    wide = TensorSpec("x", "float32", ("batch", 3, 100, 100))
    rows = np.random.default_rng(0).normal(size=(4, 3, 100, 100))
    thin = thinned(wide, rows)
    assert thin.shape == (4, 512)
    assert np.array_equal(thinned(wide, thin), thin)
    assert np.array_equal(thinned(wide, rows[2:3])[0], thin[2])


def test_answers_are_classes_and_confidence() -> None:
    logits = np.array([[9.0, 0, 0], [0, 9, 0], [1, 1, 1]], np.float32)
    found = of_answers(spec(IMAGE), {"logits": logits})
    assert found["prediction"][0].tolist() == [0, 1, 0]
    assert found["confidence"][0] == pytest.approx([0.9998, 0.9998, 1 / 3], abs=1e-3)
    probabilities = np.array([[0.7, 0.2, 0.1]], np.float32)
    assert of_answers(spec(IMAGE), {"logits": probabilities})["confidence"][0] == pytest.approx([0.7])


def test_answers_that_are_numbers_are_told_by_their_mean() -> None:
    output = TensorSpec("y", "float32", ("batch", 2))
    found = of_answers(spec(IMAGE, outputs=(output,), metric="mse"), {"y": np.array([[1.0, 3.0]])})
    assert {name: values.tolist() for name, (values, _) in found.items()} == {"prediction": [2.0]}


def test_a_class_per_pixel_counts_as_a_share_of_its_row() -> None:
    output = TensorSpec("mask", "float32", ("batch", 2, 2, 2))
    scores = np.zeros((200, 2, 2, 2), np.float32)
    scores[:, 1, 0, 0] = 5  # one pixel in four is of class 1
    made = distributions(of_answers(spec(IMAGE, outputs=(output,), metric="mean-iou"), {"mask": scores}), 200)
    mix = next(distribution for distribution in made if distribution.signal == "prediction")
    assert mix.edges == (0.0, 1.0)
    assert mix.shares == (0.75, 0.25, 0.0)


def test_a_class_that_was_never_seen_is_a_shift() -> None:
    classes = TensorSpec("y", "int64", ("batch",))
    model = spec(IMAGE, outputs=(classes,))
    (known,) = distributions(of_answers(model, {"y": np.arange(200) % 4}), 200)
    for values, shifted in (
        (np.arange(300) % 4, False),
        (np.arange(300) % 5, True),
        (np.arange(300) % 3, True),
    ):
        counts = known.count(of_answers(model, {"y": values})["prediction"], 300)
        assert (known.stability_index(counts, 300) > 0.2) is shifted


def test_the_distance_is_the_largest_gap_between_shares_that_add_up() -> None:
    known = Distribution("s", (1.0, 2.0), (0.5, 0.25, 0.25), False, 100)
    assert known.distance(np.array([0.0, 0.0, 8.0])) == 0.75
    assert known.distance(np.array([2.0, 1.0, 1.0])) == 0
