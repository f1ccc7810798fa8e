"""Scenes: a model of two outputs, neither of them a class, through every technique that its recipes name."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from compression.base import PassContext, PassRefusedError
from compression.data import Splits
from compression.export import export
from compression.imitation import soft_pixels
from compression.inference import infer
from compression.model import TorchModel
from compression.pipeline import compress
from compression.recipe import Step
from compression.training import fit, predict, seeded
from variants.metrics import find_metric
from variants.zoo.scenes import SPEC

ROWS = {"train": 160, "calibration": 32, "validation": 40, "test": 40}
TRAINING = replace(SPEC.training, epochs=2)
# What a recipe of this model is expected to be skipped for.
SKIPPED = {"int8-dynamic": "no MatMul or Gemm"}
# A student learns to see more than the ground only from longer training.
UNTRIED = {"distilled"}


@pytest.fixture(scope="module")
def splits() -> Splits:
    return Splits(**{name: split.take(slice(0, ROWS[name])) for name, split in SPEC.splits().items()})


@pytest.fixture(scope="module")
def reference(splits: Splits) -> TorchModel:
    torch.set_num_threads(1)
    with seeded(0):
        untrained = TorchModel(SPEC.factory().eval(), SPEC.signature)  # type: ignore[union-attr]
    return fit(untrained, splits.train, splits.validation, TRAINING, seed=0, report=lambda *_: None).model


def test_scenes_show_one_to_three_digits_and_are_the_same_every_time(splits: Splits) -> None:
    for _, split in splits.items():
        assert split.labels is not None
        shown = {len(set(np.unique(mask)) - {0}) for mask in split.labels}
        assert shown <= {1, 2, 3}
        assert 0.0 <= split.inputs["image"].min() <= split.inputs["image"].max() <= 1.0
    assert {len(set(np.unique(mask)) - {0}) for mask in splits.train.labels} == {1, 2, 3}  # type: ignore[union-attr]


def test_two_outputs_are_exported_as_they_are(reference: TorchModel, splits: Splits) -> None:
    expected, given = predict(reference, splits.test), infer(export(reference), splits.test, 40)
    assert [array.shape for array in given] == [(40, 11, 32, 32), (40, 1)]
    for wanted, array in zip(expected, given, strict=True):
        assert np.allclose(wanted, array, atol=1e-3)
    outputs = dict(zip(("mask", "count"), given, strict=True))
    assert 0.0 < find_metric(SPEC.metric).of(outputs, splits.test.labels) <= 1.0  # type: ignore[arg-type]


def _briefly(step: Step) -> Step:
    settings = step.settings | ({"epochs": 1} if "epochs" in step.settings else {})
    return step.model_copy(update={"settings": settings})


@pytest.mark.parametrize("name", [recipe.name for recipe in SPEC.recipes if recipe.name not in UNTRIED])
def test_each_recipe_works_or_is_skipped_as_expected(
    name: str, reference: TorchModel, splits: Splits
) -> None:
    recipe = SPEC.recipe(name)
    brief = recipe.model_copy(update={"steps": tuple(map(_briefly, recipe.steps))})
    context = PassContext(splits, reference, SPEC.students, TRAINING, 0, lambda *_: None)
    if name in SKIPPED:
        with pytest.raises(PassRefusedError, match=SKIPPED[name]):
            compress(brief, reference, context)
    else:
        outputs = infer(compress(brief, reference, context).artifact, splits.test, 8)
        assert [array.shape for array in outputs] == [(8, 11, 32, 32), (8, 1)]


def test_a_student_that_says_what_its_teacher_says_has_nothing_to_learn() -> None:
    generator = torch.Generator().manual_seed(0)
    teacher = (torch.randn(2, 11, 4, 4, generator=generator), torch.randn(2, 1, generator=generator))
    other = (teacher[0].flip(1), teacher[1] + 1)
    assert float(soft_pixels(teacher, teacher, 4.0)) == pytest.approx(0.0, abs=1e-6)
    assert (
        float(soft_pixels(other, teacher, 4.0)) > float(soft_pixels((teacher[0], other[1]), teacher, 4.0)) > 0
    )
