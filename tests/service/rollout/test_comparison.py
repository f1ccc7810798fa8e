"""Answers to the same request, compared by what the model's metric is about."""

from __future__ import annotations

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from service.rollout.comparison import compare
from service.rollout.evidence import UNBOUNDED, Comparisons

a_few = settings(max_examples=50)

SCORES = np.array([[2.0, 1.0, 0.0], [0.0, 3.0, 1.0]], np.float32)
FINITE = arrays(np.float32, (3, 4), elements=st.floats(-(2.0**100), 2.0**100, width=32))
ANY = arrays(np.float64, (3, 4), elements=st.floats())


@a_few
@given(FINITE)
def test_an_answer_equals_itself(answer: np.ndarray) -> None:
    same = compare("accuracy", {"y": answer}, {"y": answer})
    assert (same.n, same.agreement, same.max_abs) == (1, 1.0, 0.0)
    assert same.cosine == pytest.approx(1.0)


@a_few
@given(ANY, ANY)
@pytest.mark.filterwarnings("ignore:overflow encountered:RuntimeWarning")
def test_any_answers_compare_to_figures_that_json_can_hold(ours: np.ndarray, theirs: np.ndarray) -> None:
    found = compare("accuracy", {"y": theirs}, {"y": ours})
    assert 0 <= found.agreement <= 1
    assert 0 <= found.cosine <= 1
    json.dumps([found.agreement, found.cosine, found.max_abs], allow_nan=False)


def test_agreement_is_the_share_of_rows_with_the_same_class() -> None:
    other = SCORES.copy()
    other[1] = [9.0, 3.0, 1.0]
    found = compare("macro-f1", {"y": SCORES}, {"y": other})
    assert found.agreement == 0.5
    assert found.max_abs == 9.0
    assert 0.5 < found.cosine < 1


def test_a_metric_names_the_output_that_agrees() -> None:
    primary = {"box": np.zeros((2, 4), np.float32), "scores": SCORES}
    candidate = {"box": np.ones((2, 4), np.float32), "scores": SCORES}
    found = compare("accuracy@scores", primary, candidate)
    assert (found.agreement, found.cosine, found.max_abs) == (1.0, pytest.approx(0.5), 1.0)


def test_numbers_do_not_agree_but_point_the_same_way() -> None:
    found = compare("fidelity", {"y": np.array([[3.0, 4.0]])}, {"y": np.array([[6.0, 8.0]])})
    assert found == Comparisons(1, 0.0, pytest.approx(1.0), 4.0)


def test_classes_given_as_integers_agree_where_they_are_equal() -> None:
    found = compare("accuracy", {"y": np.array([1, 2, 3, 3])}, {"y": np.array([1, 2, 0, 3])})
    assert (found.agreement, found.max_abs) == (0.75, 3.0)


def test_opposite_answers_share_no_direction() -> None:
    assert compare("mse", {"y": SCORES}, {"y": -SCORES}).cosine == 0.0


def test_zeros_are_alike_and_unlike_anything_else() -> None:
    zeros = np.zeros((2, 3))
    assert compare("mse", {"y": zeros}, {"y": zeros}).cosine == 1.0
    assert compare("mse", {"y": SCORES}, {"y": zeros}).cosine == 0.0


def test_a_nan_of_the_candidate_alone_is_a_difference_without_bound() -> None:
    broken = SCORES.copy()
    broken[0, 0] = np.nan
    found = compare("accuracy", {"y": SCORES}, {"y": broken})
    assert found.agreement == 0.5
    assert found.cosine < 0.6
    assert found.max_abs == UNBOUNDED


def test_values_that_are_not_finite_in_both_are_alike() -> None:
    broken = SCORES.astype(np.float64)
    broken[0, 0], broken[1, 2] = np.nan, -np.inf
    assert compare("accuracy", {"y": broken}, {"y": broken.copy()}) == Comparisons(
        1, 1.0, pytest.approx(1.0), 0.0
    )


def test_other_outputs_or_shapes_are_wholly_different() -> None:
    nothing_alike = Comparisons(1, 0.0, 0.0, UNBOUNDED)
    assert compare("accuracy", {"y": SCORES}, {"z": SCORES}) == nothing_alike
    assert compare("accuracy", {"y": SCORES}, {"y": SCORES[:1]}) == nothing_alike
    assert compare("accuracy", {"y": SCORES}, {}) == nothing_alike
