"""Labels that come later: what of an answer waits for them, and what they say of it."""

import json
from typing import Any

import numpy as np
import pytest

from compression.signature import Signature, TensorSpec
from service.errors import BadRequestError
from service.rollout.evidence import Feedback
from service.rollout.labels import MOST_NUMBERS, judged, names_of, prediction
from variants.serving_spec import ServingSpec, transform

LOGITS = np.array([[0.1, 2.0, -1.0], [3.0, 0.0, 1.0]], np.float32)


def test_of_classes_the_class_of_each_row_waits() -> None:
    assert prediction("accuracy", {"logits": LOGITS}) == [1, 0]
    assert prediction("accuracy@second", {"first": -LOGITS, "second": LOGITS}) == [1, 0]


def test_of_numbers_the_numbers_wait() -> None:
    kept = prediction("mse", {"y": np.array([[1.5], [2.0]], np.float32)})
    assert kept == [[1.5], [2.0]]
    assert json.loads(json.dumps(kept)) == kept


def test_what_is_too_large_to_keep_does_not_wait() -> None:
    assert prediction("mse", {"y": np.zeros((1, MOST_NUMBERS))}) is not None
    assert prediction("mse", {"y": np.zeros((1, MOST_NUMBERS + 1))}) is None
    assert prediction("accuracy", {"logits": np.zeros((MOST_NUMBERS, 10))}) is not None  # classes are few


@pytest.mark.parametrize(
    ("predicted", "label", "correct"),
    [([3], 3, 1.0), ([3], [3], 1.0), ([3], 4, 0.0), ([3, 4], [3, 5], 0.5), ([3], 3.0, 1.0), ([3], True, 0.0)],
)
def test_classes_are_right_or_wrong_row_by_row(predicted: Any, label: Any, correct: float) -> None:
    assert judged("accuracy", predicted, label) == Feedback(1, correct=correct)


@pytest.mark.parametrize(
    ("predicted", "label", "correct"),
    [([1], "spam", 1.0), ([1], ["spam"], 1.0), ([1], "ham", 0.0), ([0, 1], ["ham", 1], 1.0), ([2], "7", 1.0)],
)
def test_classes_have_names_and_numbers(predicted: Any, label: Any, correct: float) -> None:
    assert judged("accuracy", predicted, label, ("ham", "spam", "7")) == Feedback(1, correct=correct)


def test_a_name_of_no_class_is_refused_with_those_that_there_are() -> None:
    with pytest.raises(BadRequestError, match=r'"eggs" is no class.* Send one of ham, spam, or its number\.'):
        judged("accuracy", [0], "eggs", ("ham", "spam"))
    with pytest.raises(BadRequestError, match=r"n0, n1, .*n9, \.\.\., or"):
        judged("accuracy", [0], "eggs", tuple(f"n{number}" for number in range(1000)))


@pytest.mark.parametrize(
    ("metric", "settings", "expected"),
    [
        ("accuracy", {}, ("ham", "spam")),
        ("accuracy@logits", {}, ("ham", "spam")),
        ("accuracy@other", {}, ()),
        ("accuracy@other", {"output": "other"}, ("ham", "spam")),
        ("mse", {}, ()),
    ],
)
def test_the_names_are_those_of_the_output_that_is_judged(
    metric: str, settings: dict[str, Any], expected: tuple[str, ...]
) -> None:
    outputs = tuple(TensorSpec(name, "float32", ("batch", 2)) for name in ("logits", "other"))
    signature = Signature((TensorSpec("x", "float32", ("batch", 3)),), outputs)
    names = transform("labels", names=("ham", "spam"), **settings)
    assert names_of(ServingSpec("m", signature, metric, "fp32", transforms=(names,))) == expected
    assert names_of(ServingSpec("m", signature, metric, "fp32")) == ()


@pytest.mark.parametrize("label", [[1.0, 2.0], [[1.0, 2.0]]])
def test_numbers_have_a_squared_error(label: Any) -> None:
    assert judged("mse", [[2.0, 4.0]], label) == Feedback(1, loss=2.5, loss_squares=6.25)


@pytest.mark.parametrize(
    ("predicted", "label", "named"),
    [
        ([3], "three", "no number"),
        ([3], {"class": 3}, "no number"),
        ([3], 10**310, "beyond 1e308"),
        ([3], [-(10**4000)], "beyond 1e308"),
        ([3], [[1], [2, 3]], "no number"),
        ([3], None, "not finite"),
        ([3], [3, 4], r"shape \[2\]; the answer has \[1\]"),
        ([3, 4], 3, "shape"),
        ([3], [[3]], "shape"),
        ([3], [], "shape"),
    ],
)
def test_a_label_of_another_form_is_refused(predicted: Any, label: Any, named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        judged("accuracy", predicted, label)


@pytest.mark.parametrize(
    ("label", "named"), [([float("nan")], "not finite"), ([1e200], "too large"), ([1e77], "too large")]
)
def test_an_error_that_could_not_be_added_up_is_refused(label: Any, named: str) -> None:
    with pytest.raises(BadRequestError, match=named):
        judged("mse", [1.0], label)
