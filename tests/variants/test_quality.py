"""Quality: metrics against hand-made answers, intervals against what is known of them."""

from __future__ import annotations

import json
from math import comb, inf, nan

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from compression.signature import Array
from variants import document
from variants.intervals import bootstrap_p_value, mcnemar, paired_ratio_low, wilson
from variants.metrics import METRICS
from variants.quality import Estimate, agreement, estimate, max_abs_error

ACCURACY, MSE = METRICS["accuracy"], METRICS["mse"]
a_few = settings(max_examples=20)


def answers(classes: Array | list[int], of: int = 3) -> dict[str, Array]:
    """Logits whose largest is at these classes."""
    return {"logits": np.eye(of, dtype=np.float32)[np.asarray(classes)]}


def values(*numbers: float) -> dict[str, Array]:
    return {"y": np.array(numbers, np.float32)[:, None]}


# ---- metrics


def test_accuracy_is_the_share_of_right_answers() -> None:
    measured = estimate(ACCURACY, answers([0, 1, 2, 0]), answers([0, 1, 2, 1]), np.array([0, 1, 2, 1]))
    assert (measured.value, measured.ratio, measured.rows) == (0.75, 0.75, 4)


def test_mse_is_the_mean_of_squares_and_less_is_better() -> None:
    labels = np.array([1.0, 2.0, 3.0])
    ours, theirs = values(3, 4, 5), values(2, 3, 4)
    measured = estimate(MSE, ours, theirs, labels)
    assert measured.value == pytest.approx(4.0)
    assert measured.ratio == pytest.approx(0.25)
    assert estimate(MSE, theirs, ours, labels).ratio == pytest.approx(4.0)


def test_mse_takes_several_values_per_row() -> None:
    outputs = {"y": np.zeros((2, 2, 2), np.float32)}
    measured = estimate(MSE, outputs, outputs, np.ones((2, 2, 2)))
    assert measured.value == pytest.approx(1.0)


def test_single_output_metrics_judge_the_first_output() -> None:
    outputs = answers([0, 1]) | {"other": np.zeros((2, 3), np.float32)}
    assert estimate(ACCURACY, outputs, outputs, np.array([0, 1])).value == 1.0


# ---- ratios

RIGHT = st.lists(st.booleans(), min_size=1, max_size=50).map(lambda right: np.array(right, np.float64))


@a_few
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2)), min_size=1, max_size=60), st.integers(0, 99))
def test_the_same_predictions_have_a_ratio_of_exactly_one(rows: list[tuple[int, int]], seed: int) -> None:
    predicted, labels = np.array(rows).T
    measured = estimate(ACCURACY, answers(predicted), answers(predicted), labels, seed)
    assert measured.ratio == 1.0
    # So few rows cannot rule out a difference: the bound is below 1, and comes nearer as rows are added.
    assert measured.ratio_low < 1.0
    assert measured.low - 1e-12 <= measured.value <= measured.high + 1e-12


@a_few
@given(st.lists(st.floats(-1e3, 1e3, width=32), min_size=1, max_size=40))
def test_the_same_predictions_have_an_error_ratio_of_exactly_one(numbers: list[float]) -> None:
    labels = np.zeros(len(numbers))
    measured = estimate(MSE, values(*numbers), values(*numbers), labels)
    assert measured.ratio == 1.0
    assert measured.ratio_low < 1.0


@a_few
@given(RIGHT, RIGHT, st.integers(0, 99))
def test_an_estimate_depends_on_its_seed_alone(ours: Array, theirs: Array, seed: int) -> None:
    count = min(len(ours), len(theirs))
    labels = np.zeros(count, int)
    one, other = (answers((1 - right[:count]).astype(int)) for right in (ours, theirs))
    assert estimate(ACCURACY, one, other, labels, seed) == estimate(ACCURACY, one, other, labels, seed)


@given(st.floats(0, 1e6), st.floats(0, 1e6))
def test_more_is_better_in_every_ratio(one: float, other: float) -> None:
    for metric in METRICS.values():
        better, worse = (max, min) if metric.higher_is_better else (min, max)
        good, bad = better(one, other), worse(one, other)
        assert metric.ratio(good, bad) >= 1.0
        assert metric.ratio(bad, good) <= 1.0
        assert metric.ratio(good, good) == 1.0


@pytest.mark.parametrize("metric", METRICS.values(), ids=lambda metric: metric.name)
@pytest.mark.parametrize(("ours", "theirs"), [(0.0, 0.5), (0.5, 0.0), (0.0, 0.0), (1e-320, 1.0)])
def test_a_ratio_is_a_number_that_json_has(metric: object, ours: float, theirs: float) -> None:
    """A reference without a single right answer, or a variant without an error, must not break the card."""
    ratio = float(metric.ratio(ours, theirs))  # type: ignore[attr-defined]
    measured = Estimate(ours, ours, ours, ratio, ratio, 1)
    assert document.parse(Estimate, json.dumps(document.to_json(measured), allow_nan=False)) == measured


# ---- intervals


@pytest.mark.parametrize(
    ("right", "rows", "low", "high"),
    [(9, 10, 0.5958, 0.9821), (10, 10, 0.7225, 1.0), (0, 10, 0.0, 0.2775), (5, 10, 0.2366, 0.7634)],
)
def test_wilsons_interval_is_the_textbooks(right: int, rows: int, low: float, high: float) -> None:
    assert wilson(right / rows, rows) == pytest.approx((low, high), abs=5e-5)


@given(st.integers(1, 5000).flatmap(lambda rows: st.tuples(st.integers(0, rows), st.just(rows))))
def test_wilsons_interval_holds_the_share_and_stays_a_share(counts: tuple[int, int]) -> None:
    right, rows = counts
    low, high = wilson(right / rows, rows)
    assert 0 <= low <= right / rows + 1e-12
    assert right / rows - 1e-12 <= high <= 1
    wide = wilson(right / rows, 4 * rows)
    assert wide[1] - wide[0] < high - low


@pytest.mark.parametrize("share", [0.5, 0.9, 0.975])
def test_wilsons_interval_covers_about_as_often_as_it_says(share: float) -> None:
    rows = 360
    chance = [comb(rows, k) * share**k * (1 - share) ** (rows - k) for k in range(rows + 1)]
    intervals = [wilson(k / rows, rows) for k in range(rows + 1)]
    covered = sum(p for p, (low, high) in zip(chance, intervals, strict=True) if low <= share <= high)
    assert 0.93 < covered < 0.97


def test_the_paired_lower_bound_is_rarely_above_the_truth() -> None:
    """Answers that agree on most rows, as a variant's and its reference's do; the true ratio is 0.95."""
    generator = np.random.default_rng(1)
    rows, samples, misses = 300, 60, 0
    labels = np.zeros(rows, int)
    for _ in range(samples):
        theirs = generator.random(rows) < 0.9
        ours = theirs & (generator.random(rows) < 0.95)
        measured = estimate(ACCURACY, answers((~ours).astype(int)), answers((~theirs).astype(int)), labels)
        assert measured.ratio_low <= measured.ratio <= 1.0
        misses += measured.ratio_low > 0.95
    assert misses <= 6  # 2.5% are expected: 1.5 of 60


def test_the_pairing_makes_the_bound_tight() -> None:
    """One answer of 300 differs: the ratio is known far better than either accuracy."""
    theirs = (np.arange(300) % 10 == 0).astype(int)
    ours = theirs.copy()
    ours[1] = 1
    measured = estimate(ACCURACY, answers(ours), answers(theirs), np.zeros(300, int))
    assert measured.ratio == pytest.approx(269 / 270)
    assert measured.ratio_low > 0.985
    assert measured.low < 0.87


def test_what_never_differs_is_not_certain_by_any_metric() -> None:
    rows, labels = answers([0, 1, 2, 0] * 15), np.array([0, 1, 2, 1] * 15)
    for metric in ("accuracy", "macro-f1", "mse"):
        measured = estimate(METRICS[metric], rows, rows, np.eye(3)[labels] if metric == "mse" else labels)
        assert measured.ratio == 1.0
        assert 0.9 < measured.ratio_low < 1.0


def test_an_error_has_an_interval_around_it() -> None:
    generator = np.random.default_rng(0)
    labels: NDArray[np.float64] = generator.normal(size=200)
    outputs = {"y": (labels + generator.normal(size=200)).astype(np.float32)}
    measured = estimate(MSE, outputs, outputs, labels)
    assert measured.low < measured.value < measured.high


# ---- against the reference


def test_agreement_is_the_share_of_equal_answers() -> None:
    assert agreement(ACCURACY, answers([0, 1, 2, 2]), answers([0, 1, 2, 1])) == 0.75
    assert agreement(ACCURACY, answers([0, 1]), answers([0, 1])) == 1.0


def test_single_values_agree_when_they_are_close_for_their_spread() -> None:
    reference = {"y": np.array([0.0, 100.0, 0.0, 100.0])}
    assert agreement(MSE, {"y": np.array([0.4, 100.4, 0.0, 90.0])}, reference) == 0.75
    column = {"y": reference["y"][:, None]}
    assert agreement(MSE, column, column) == 1.0


def test_numbers_of_half_the_width_have_a_spread() -> None:
    reference = {"y": np.array([-300.0, 300.0] * 100, np.float16)}
    assert agreement(MSE, {"y": -reference["y"]}, reference) == 0.0


def test_all_numbers_of_all_outputs_count() -> None:
    reference = {"y": np.array([0.0, 100.0]), "z": np.array([[1.0, 2.0], [3.0, 4.0]])}
    assert agreement(MSE, reference | {"y": np.array([0.0, 50.0])}, reference) == pytest.approx(5 / 6)


def test_pixels_agree_one_by_one() -> None:
    masks = np.zeros((1, 2, 4, 4))
    masks[:, 0] = 1
    other = masks.copy()
    other[0, :, 0, 0] = [0, 1]
    assert agreement(METRICS["mean-iou"], {"mask": other}, {"mask": masks}) == 15 / 16


def test_the_largest_error_is_over_all_outputs() -> None:
    reference = {"a": np.array([1.0, 2.0]), "b": np.array([0, 250], np.uint8)}
    given_ = {"a": np.array([1.0, 2.5]), "b": np.array([3, 250], np.uint8)}
    assert max_abs_error(given_, reference) == 3.0
    assert max_abs_error(reference, reference) == 0.0


def test_no_metric_value_is_taken_from_nothing() -> None:
    assert not {inf, nan} & set(wilson(0.5, 1))


def test_the_bound_of_a_paired_ratio_is_agresti_and_mins() -> None:
    # 100 pairs: 80 both right, 5 only ours, 10 only theirs, 5 neither.
    ours = np.repeat([1.0, 1.0, 0.0, 0.0], [80, 5, 10, 5])
    theirs = np.repeat([1.0, 0.0, 1.0, 0.0], [80, 5, 10, 5])
    difference = (5.5 - 10.5) / 102
    deviation = np.sqrt(16 - 102 * difference**2) / 102
    expected = (0.9 + difference - 1.959964 * deviation) / 0.9
    assert paired_ratio_low(ours, theirs) == pytest.approx(expected)


@given(st.integers(20, 2000))
def test_more_rows_that_do_not_differ_rule_out_more(rows: int) -> None:
    right = np.ones(rows)
    assert paired_ratio_low(right, right) < paired_ratio_low(np.ones(rows + 50), np.ones(rows + 50)) < 1.0


# ---- is the difference more than chance?


def test_mcnemars_exact_p_value_is_the_textbooks() -> None:
    # 1 and 9 discordant rows of 50: twice the binomial tail (1 + 10) / 2^10.
    ours = np.repeat([1.0, 0.0, 1.0], [1, 9, 40])
    theirs = np.repeat([0.0, 1.0, 1.0], [1, 9, 40])
    assert mcnemar(ours, theirs) == pytest.approx(2 * 11 / 1024)
    assert mcnemar(theirs, ours) == mcnemar(ours, theirs)
    assert mcnemar(ours, ours) == 1.0


@given(st.integers(0, 500), st.integers(0, 500))
def test_a_p_value_is_a_probability(only_ours: int, only_theirs: int) -> None:
    ours = np.repeat([1.0, 0.0, 1.0], [only_ours, only_theirs, 1])
    theirs = np.repeat([0.0, 1.0, 1.0], [only_ours, only_theirs, 1])
    assert 0.0 <= mcnemar(ours, theirs) <= 1.0


def test_a_drop_of_one_row_is_chance_and_one_of_thirty_is_not() -> None:
    labels = np.zeros(300, int)
    theirs = np.zeros(300, int)
    for lost, significant in ((1, False), (30, True)):
        ours = theirs.copy()
        ours[:lost] = 1
        assert estimate(ACCURACY, answers(ours), answers(theirs), labels).significant is significant


def test_an_error_that_grows_in_every_row_is_significant_and_noise_is_not() -> None:
    generator = np.random.default_rng(0)
    labels: NDArray[np.float64] = generator.normal(size=200)
    theirs = labels + generator.normal(size=200)
    noise = generator.normal(scale=0.01, size=200)
    worse = labels + 1.3 * (theirs - labels)
    reference = {"y": theirs}
    assert estimate(MSE, {"y": worse}, reference, labels).significant
    assert not estimate(MSE, {"y": theirs + noise}, reference, labels).significant
    assert estimate(MSE, reference, reference, labels).p_value == 1.0


def test_a_bootstrap_never_says_impossible() -> None:
    assert bootstrap_p_value(np.full(2000, 0.5)) == pytest.approx(2 / 2001)


# ---- without labels


def test_without_labels_a_classifier_is_judged_by_its_agreement() -> None:
    measured = estimate(METRICS["macro-f1"], answers([0, 1, 2, 0]), answers([0, 1, 2, 1]), None)
    assert (measured.value, measured.ratio, measured.rows) == (0.75, 0.75, 4)
    assert measured.p_value == 1.0


def test_without_labels_numbers_are_judged_by_their_relative_error() -> None:
    theirs = {"y": np.array([0.0, 1.0, 2.0, 3.0])}  # on average 1 from their mean
    ours = {"y": theirs["y"] + 0.1}
    measured = estimate(MSE, ours, theirs, None)
    assert measured.value == pytest.approx(0.9)
    assert measured.ratio == pytest.approx(0.9)
    assert estimate(MSE, theirs, theirs, None).ratio == 1.0
