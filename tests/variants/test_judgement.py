"""Judgement: one artifact's answers against labels and against the reference's, computed once."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from compression.data import Split
from variants.confusion import confusion
from variants.judgement import Answers, ReferenceAnswers, judge

GENERATOR = np.random.default_rng(0)
CENTRES = GENERATOR.integers(0, 256, (3, 16, 16, 3))


def pictures(rows: int, labelled: bool = True) -> Split:
    labels = GENERATOR.integers(0, 3, rows)
    noise = GENERATOR.normal(scale=30, size=(rows, 16, 16, 3))
    images = np.clip(CENTRES[labels] + noise, 0, 255).astype(np.uint8)
    return Split({"image": images}, labels if labelled else None)


def nearest(split: Split) -> Answers:
    """Scores by the distance to each class's picture."""
    distance = np.abs(split.inputs["image"][:, None].astype(float) - CENTRES).mean(axis=(2, 3, 4))
    return {"scores": -distance, "closest": distance.min(axis=1, keepdims=True)}


def forgetful(split: Split) -> Answers:
    """As `nearest`, but it never answers the last class."""
    answers = nearest(split)
    scores = answers["scores"].copy()
    scores[:, 2] = -1e3
    return answers | {"scores": scores}


def test_everything_is_judged_at_once(tmp_path: Path) -> None:
    validation, test = pictures(60), pictures(90)
    quality = judge("accuracy", forgetful, ReferenceAnswers(tmp_path, nearest), validation, test)
    assert quality.metric == "accuracy"
    assert quality.validation.rows == 60
    assert quality.validation.ratio < 0.9
    assert quality.validation.significant
    assert test.labels is not None
    assert quality.confusion["test"] == confusion(forgetful(test)["scores"].argmax(axis=1), test.labels)
    assert {each.perturbation for each in quality.robustness} == {
        "gaussian-noise",
        "gaussian-blur",
        "contrast",
    }
    faded = quality.robustness[-1]
    assert faded.rows == 60
    assert faded.value <= faded.clean < faded.reference_clean == 1.0


def test_the_references_answers_are_computed_once(tmp_path: Path) -> None:
    validation, test = pictures(20), pictures(20)
    asked = []

    def counted(split: Split) -> Answers:
        asked.append(len(split))
        return nearest(split)

    one = judge("accuracy", nearest, ReferenceAnswers(tmp_path, counted), validation, test)
    first = len(asked)
    assert judge("accuracy", nearest, ReferenceAnswers(tmp_path, counted), validation, test) == one
    assert len(asked) == first


def test_without_labels_the_reference_is_right(tmp_path: Path) -> None:
    validation, test = pictures(40, labelled=False), pictures(40, labelled=False)
    quality = judge("macro-f1", forgetful, ReferenceAnswers(tmp_path, nearest), validation, test)
    assert quality.metric == "agreement"
    assert quality.test.value == quality.agreement < 1.0
    assert all(label == answer for label in (0, 1) for answer in quality.confusion["test"][label])
    assert 2 not in {answer for row in quality.confusion["test"].values() for answer in row}


def identity(split: Split) -> Answers:
    return {"y": split.inputs["x"]}


def test_numbers_have_no_confusion(tmp_path: Path) -> None:
    rows = Split({"x": np.arange(8.0)}, np.arange(8.0))
    reference = ReferenceAnswers(tmp_path, identity)
    quality = judge("mae", lambda split: {"y": split.inputs["x"] + 1}, reference, rows, rows)
    assert quality.confusion == {}
    assert quality.robustness == []
    assert quality.test.value == pytest.approx(1.0)


def test_answers_that_are_not_finite_are_refused(tmp_path: Path) -> None:
    rows = Split({"x": np.zeros(4)}, np.zeros(4))
    with pytest.raises(ValueError, match="not finite"):
        judge("mse", lambda _: {"y": np.full(4, np.nan)}, ReferenceAnswers(tmp_path, identity), rows, rows)
