"""Metrics: each against scikit-learn, or against what can be counted by hand."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn import metrics as sklearn

from compression.signature import Array, Signature, TensorSpec
from variants.metrics import (
    METRICS,
    MetricError,
    check_metric,
    find_metric,
    metric_without_labels,
    predicted_classes,
)

a_few = settings(max_examples=30)
SEEDS = st.integers(0, 2**16)


def scores(seed: int, rows: int = 60, classes: int = 7) -> tuple[dict[str, Array], Array]:
    """Random class scores and labels of which the last class never occurs."""
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, classes - 1, rows)
    noisy = generator.normal(size=(rows, classes)) + 1.5 * np.eye(classes)[labels]
    return {"logits": noisy.astype(np.float32)}, labels


def numbers(seed: int, columns: int) -> tuple[dict[str, Array], Array]:
    generator = np.random.default_rng(seed)
    labels = generator.normal(5, 2, size=(40, columns))
    return {"y": labels + generator.normal(size=labels.shape)}, labels


@a_few
@given(SEEDS)
def test_classification_metrics_are_scikit_learns(seed: int) -> None:
    outputs, labels = scores(seed)
    answers = outputs["logits"].argmax(axis=1)
    expected = {
        "accuracy": sklearn.accuracy_score(labels, answers),
        "top5-accuracy": sklearn.top_k_accuracy_score(labels, outputs["logits"], k=5, labels=range(7)),
        "balanced-accuracy": sklearn.recall_score(labels, answers, labels=np.unique(labels), average="macro"),
        "macro-f1": sklearn.f1_score(labels, answers, average="macro"),
    }
    for name, value in expected.items():
        assert METRICS[name].of(outputs, labels) == pytest.approx(value), name


@a_few
@given(SEEDS, st.integers(1, 3))
def test_regression_metrics_are_scikit_learns(seed: int, columns: int) -> None:
    outputs, labels = numbers(seed, columns)
    assert METRICS["mse"].of(outputs, labels) == pytest.approx(
        sklearn.mean_squared_error(labels, outputs["y"])
    )
    assert METRICS["mae"].of(outputs, labels) == pytest.approx(
        sklearn.mean_absolute_error(labels, outputs["y"])
    )
    assert METRICS["r2"].of(outputs, labels) == pytest.approx(sklearn.r2_score(labels, outputs["y"]))


def test_r2_of_what_never_varies_is_one_only_when_it_is_met() -> None:
    labels = np.full((4, 1), 3.0)
    assert METRICS["r2"].of({"y": labels}, labels) == 1.0
    assert METRICS["r2"].of({"y": labels + 1}, labels) == 0.0


def test_worse_than_the_mean_counts_as_no_quality() -> None:
    assert METRICS["r2"].ratio(-0.5, 0.8) == 0.0


@pytest.mark.parametrize("layout", ["channels first", "channels last", "classes"])
def test_mean_iou_is_over_the_pixels_of_all_rows_and_leaves_unlabelled_ones_out(layout: str) -> None:
    generator = np.random.default_rng(0)
    labels = generator.integers(0, 3, (5, 4, 6))
    answers = np.where(generator.random(labels.shape) < 0.7, labels, generator.integers(0, 3, labels.shape))
    one_hot = np.eye(3)[answers]
    masks = {"channels first": one_hot.transpose(0, 3, 1, 2), "channels last": one_hot, "classes": answers}
    expected = sklearn.jaccard_score(labels.ravel(), answers.ravel(), average="macro")
    assert METRICS["mean-iou"].of({"mask": masks[layout]}, labels) == pytest.approx(expected)
    void = labels.copy()
    void[:, 0] = 255
    known = void != 255
    expected = sklearn.jaccard_score(void[known], answers[known], average="macro")
    if layout != "classes":
        assert METRICS["mean-iou"].of({"mask": masks[layout]}, void) == pytest.approx(expected)


def test_a_tagger_is_right_by_the_token() -> None:
    labels = np.array([[0, 1, 2], [2, 1, 0]])
    outputs = {"tags": np.eye(3)[[[0, 1, 2], [2, 1, 1]]]}
    assert METRICS["accuracy"].of(outputs, labels) == pytest.approx(5 / 6)
    assert METRICS["accuracy"].rows(outputs, labels).shape == (2, 1)


def test_answers_may_be_classes_already() -> None:
    assert METRICS["accuracy"].of({"label": np.array([1, 2, 0])}, np.array([1, 2, 2])) == pytest.approx(2 / 3)
    assert METRICS["accuracy"].of({"label": np.array([[1], [2]])}, np.array([1, 0])) == 0.5


def test_an_output_is_chosen_by_its_name() -> None:
    outputs, labels = scores(1)
    both = {"boxes": np.zeros((60, 4)), **outputs}
    chosen = find_metric("macro-f1@logits")
    assert chosen.of(both, labels) == METRICS["macro-f1"].of(outputs, labels)
    assert chosen.name == "macro-f1@logits"
    assert find_metric(chosen.without_labels).of(both, both) == 1.0


def test_closeness_is_averaged_over_all_outputs() -> None:
    reference = {"a": np.array([0.0, 2.0]), "b": np.array([[1.0], [1.0]]), "c": np.array([0.0, 4.0])}
    ours = reference | {"a": np.array([0.5, 2.5])}
    assert METRICS["fidelity"].of(ours, reference) == pytest.approx((0.5 + 1 + 1) / 3)
    assert METRICS["fidelity"].of(reference, reference) == 1.0


@pytest.mark.parametrize(
    ("name", "outputs", "labels", "said"),
    [
        ("accuracy", np.zeros((4, 1)), np.zeros(4, int), "no axis of class scores for labels"),
        ("top5-accuracy", np.zeros((4, 5)), np.zeros(4, int), "always 1"),
        ("mse", np.zeros((4, 2)), np.zeros(4), "differ in size"),
        ("mean-iou", np.zeros((4, 3, 8, 8)), np.zeros((4, 9, 9), int), "no axis of class scores"),
    ],
)
def test_what_does_not_fit_is_said(name: str, outputs: Array, labels: Array, said: str) -> None:
    with pytest.raises(MetricError, match=said):
        METRICS[name].of({"y": outputs}, labels)


SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2)),),
    (TensorSpec("scores", "float32", ("batch", 5)), TensorSpec("box", "float32", ("batch", 4))),
)


def test_a_metric_that_does_not_exist_is_refused_with_those_that_do() -> None:
    check_metric("mse@box", SIGNATURE)
    with pytest.raises(MetricError, match="There are accuracy, top5-accuracy"):
        check_metric("acuracy", SIGNATURE)
    with pytest.raises(MetricError, match="There are scores, box"):
        check_metric("mse@mask", SIGNATURE)


@pytest.mark.parametrize(
    ("dtype", "shape", "metric"),
    [
        ("float32", ("batch", 10), "agreement"),
        ("float32", ("batch", "classes"), "agreement"),
        ("int64", ("batch",), "agreement"),
        ("float32", ("batch", 1), "fidelity"),
        ("float32", ("batch",), "fidelity"),
        ("float32", ("batch", 3, 32, 32), "fidelity"),
    ],
)
def test_without_labels_the_first_output_says_what_kind_of_model_it_is(
    dtype: str, shape: tuple[int | str, ...], metric: str
) -> None:
    assert metric_without_labels(Signature((), (TensorSpec("y", dtype, shape),))) == metric


def test_the_class_axis_of_images_is_the_second_and_of_all_else_the_last() -> None:
    assert predicted_classes(np.zeros((2, 3, 4, 5))).shape == (2, 4, 5)
    assert predicted_classes(np.zeros((2, 3, 4))).shape == (2, 3)
    assert predicted_classes(np.zeros((2, 3))).shape == (2,)


@pytest.mark.parametrize("name", ["macro-f1", "balanced-accuracy"])
def test_classes_may_be_any_integers_where_answers_are_classes(name: str) -> None:
    metric, labels = find_metric(name), np.array([1, 1, -1, -1, 1, -1])
    for answers in (labels, np.ones(6, np.int64), np.array([-1, 1, 1, 1, 1, -1])):
        moved = metric.value(metric.rows({"y": (answers + 1) // 2}, (labels + 1) // 2).mean(axis=0))
        assert metric.value(metric.rows({"y": answers}, labels).mean(axis=0)) == pytest.approx(moved)


@pytest.mark.parametrize("name", ["accuracy", "macro-f1", "balanced-accuracy"])
@pytest.mark.parametrize("label", [3, -1])
def test_a_label_that_is_no_class_is_told(name: str, label: int) -> None:
    with pytest.raises(MetricError, match=rf"label {label} is none of the 3 classes that are scored, 0 to 2"):
        find_metric(name).rows({"y": np.eye(3, dtype=np.float32)}, np.array([0, 1, label]))


def test_the_best_five_do_not_hold_a_label_that_is_no_class() -> None:
    with pytest.raises(MetricError, match="label 8 is none of the 8 classes"):
        find_metric("top5-accuracy").rows({"y": np.eye(8, dtype=np.float32)}, np.arange(1, 9))
