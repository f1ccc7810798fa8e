from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.data import Split, Splits
from compression.distillation import Distillation, DistillationSettings
from compression.export import export
from compression.imitation import soft_cross_entropy, teacher_objective
from compression.losses import Batch, TrainingError
from compression.model import OnnxModel, TorchModel
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.signature import Signature, TensorSpec
from compression.training import Training, fit, predict, seeded
from tests.compression.small_digits import DIGITS, digits_net, silent

IMAGES = Signature((TensorSpec("image", "float32", ("batch", 8, 8, 1)),), DIGITS.outputs)


def as_images(split: Split) -> Split:
    return replace(split, inputs={"image": split.inputs["image"].reshape(-1, 8, 8, 1)})


def distillation(**settings: object) -> Distillation:
    return Distillation(DistillationSettings.model_validate({"student": "small", "epochs": 3, **settings}))


def test_a_fresh_student_learns_from_the_teacher(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    distill = distillation(epochs=5)
    distill.requires(reference, context)
    student = distill.run(reference, context)
    facts = distill.ensures(reference, student, context)
    assert facts["student_parameters"] < facts["teacher_parameters"]
    assert facts["agreement"] > 0.9 > facts["chance"]
    distill.holds(facts, export(student))
    with pytest.raises(BrokenPromiseError, match="A later step replaced what distill made"):
        distill.holds(facts, artifact)


def tagged(last: bool, digits: Splits) -> tuple[Signature, Splits]:
    """Digits with a label for each of their rows, and logits that have the classes last or second."""

    def rows(split: Split) -> Split:
        dark = (split.inputs["image"].reshape(-1, 8, 8).mean(2) > 0.3).astype(np.int64)
        return Split(split.inputs, dark + dark[:, ::-1])

    shape = ("batch", 8, 3) if last else ("batch", 3, 8)
    signature = Signature(DIGITS.inputs, (TensorSpec("logits", "float32", shape),))
    return signature, Splits(**{name: rows(split) for name, split in digits.items()})


class Tags(nn.Module):
    """Three classes for each of eight rows."""

    def __init__(self, last: bool, width: int) -> None:
        super().__init__()
        self.last, self.layers = last, nn.Sequential(nn.Linear(64, width), nn.ReLU(), nn.Linear(width, 24))

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        scores = self.layers(image).reshape(-1, 8, 3)
        return scores if self.last else scores.transpose(1, 2)


@pytest.mark.parametrize("last", [True, False])
def test_classes_of_several_places_are_taught_along_their_own_axis(last: bool, context: PassContext) -> None:
    signature, splits = tagged(last, context.splits)
    training = Training(epochs=8, learning_rate=1e-2)
    with seeded(0):
        untaught = TorchModel(Tags(last, 64).eval(), signature)
    teacher = fit(untaught, splits.train, splits.validation, training, seed=0, report=silent).model
    task = replace(
        context,
        splits=splits,
        reference=teacher,
        training=training,
        students={"small": lambda: Tags(last, 16)},
        checkpoints=None,
    )
    distill = distillation(epochs=8, alpha=1.0)
    facts = distill.ensures(teacher, distill.run(teacher, task), task)
    assert facts["agreement"] > 0.9 > facts["chance"]


def test_labels_that_no_axis_of_classes_fits_are_refused(splits: Splits) -> None:
    signature, tags = tagged(False, splits)
    with seeded(0):
        model = TorchModel(Tags(False, 16).eval(), signature)
    of_rows = replace(tags.train, labels=np.zeros(len(tags.train), np.int64))
    with pytest.raises(TrainingError, match="no axis of class scores for labels of shape"):
        fit(model, of_rows, tags.validation, Training(epochs=1), seed=0, report=silent)


def test_labels_are_not_needed(reference: TorchModel, context: PassContext) -> None:
    bare = {name: replace(getattr(context.splits, name), labels=None) for name in ("train", "validation")}
    unlabelled = replace(context, splits=replace(context.splits, **bare))
    distill = distillation()
    distill.requires(reference, unlabelled)
    student = distill.run(reference, unlabelled)
    assert distill.ensures(reference, student, unlabelled)["agreement"] > 0.3


def test_a_pruned_model_is_taught_further(reference: TorchModel, context: PassContext) -> None:
    pruned = StructuredPruning(StructuredPruningSettings(epochs=0)).run(reference, context)
    distill = distillation(student="current", epochs=2)
    distill.requires(pruned, context)
    taught = distill.run(pruned, context)
    facts = distill.ensures(pruned, taught, context)
    assert facts["student_parameters"] == sum(weight.numel() for weight in pruned.module.parameters())


def test_a_student_that_learned_nothing_breaks_the_promise(
    reference: TorchModel, context: PassContext
) -> None:
    distill = distillation()
    with seeded(context.seed):
        untaught = TorchModel(context.students["small"](), DIGITS)
    with pytest.raises(BrokenPromiseError, match="weights did not change"):
        distill.ensures(reference, untaught, context)
    with torch.no_grad():
        for weight in untaught.module.parameters():
            weight.zero_()
    with pytest.raises(BrokenPromiseError, match="agrees with its teacher on"):
        distill.ensures(reference, untaught, context)


def test_it_is_refused_without_a_teacher_a_student_or_an_imitation(
    reference: TorchModel, context: PassContext
) -> None:
    with pytest.raises(PassRefusedError, match="no reference"):
        distillation().requires(reference, replace(context, reference=None))
    with pytest.raises(PassRefusedError, match='has no student "large"'):
        distillation(student="large").requires(reference, context)
    with pytest.raises(PassRefusedError, match="cannot be imitated"):
        distillation().requires(reference, replace(context, training=Training(loss="triplet")))
    with pytest.raises(PassRefusedError, match="Use a smaller student"):
        distillation().requires(reference, replace(context, students={"small": lambda: digits_net()}))
    with pytest.raises(PassRefusedError, match="its own teacher"):
        distillation(student="current").requires(reference, context)


def test_the_soft_loss_is_zero_for_the_teacher_itself_and_keeps_its_scale_when_softened() -> None:
    teacher = torch.tensor([[4.0, 1.0, 0.0]])
    student = torch.tensor([[0.1, 0.0, 0.2]], requires_grad=True)
    assert float(soft_cross_entropy((teacher,), (teacher,), 4.0)) == pytest.approx(0.0, abs=1e-6)
    sizes = []
    for temperature in (8.0, 80.0):
        (gradient,) = torch.autograd.grad(soft_cross_entropy((student,), (teacher,), temperature), student)
        sizes.append(float(gradient.norm()))
    assert sizes[0] == pytest.approx(sizes[1], rel=0.2)


def test_a_regressor_imitates_outputs(splits: Splits, context: PassContext) -> None:
    with seeded(0):
        teacher = TorchModel(nn.Sequential(nn.Linear(64, 64), nn.Tanh(), nn.Linear(64, 10)).eval(), DIGITS)
    task = replace(
        context,
        reference=teacher,
        students={"small": lambda: nn.Sequential(nn.Linear(64, 16), nn.Tanh(), nn.Linear(16, 10))},
        training=Training(loss="mse", learning_rate=1e-2),
        splits=replace(
            splits,
            **{name: Split(split.inputs, predict(teacher, split)[0]) for name, split in splits.items()},
        ),
    )
    distill = distillation(epochs=6)
    distill.requires(teacher, task)
    facts = distill.ensures(teacher, distill.run(teacher, task), task)
    assert facts["agreement"] > 0.5
    assert np.isclose(facts["chance"], 0.0)


def test_the_teacher_sees_what_the_student_sees(reference: TorchModel, context: PassContext) -> None:
    images = replace(reference, module=nn.Sequential(nn.Flatten(), reference.module), signature=IMAGES)
    splits = Splits(**{name: as_images(split) for name, split in context.splits.items()})
    augmented = Training(augmentation="crop-flip")
    task = replace(context, reference=images, splits=splits, training=augmented)
    rows = torch.arange(4)
    shown = torch.from_numpy(splits.train.inputs["image"][rows].copy()).flip(2)
    batch = Batch(rows, (shown,), None)
    for training, own in ((augmented, shown), (Training(), shown.flip(2))):
        objective = teacher_objective(replace(task, training=training), alpha=1.0)
        with torch.no_grad():
            answers = images.module.eval()(own)
        assert float(objective.train((answers,), batch)) == pytest.approx(0.0, abs=1e-5)
        assert float(objective.train((answers.flip(0),), batch)) > 0.1


def test_a_teacher_without_weight_is_not_asked(context: PassContext) -> None:
    objective = teacher_objective(replace(context, reference=None), alpha=0.0)
    assert objective.key == context.training.loss


def test_the_same_student_without_a_teacher_is_a_baseline(
    reference: TorchModel, context: PassContext
) -> None:
    alone = distillation(alpha=0.0)
    alone.requires(reference, context)
    student = alone.run(reference, context)
    assert alone.ensures(reference, student, context)["taught"] is False
    with seeded(context.seed):
        untaught = TorchModel(context.students["small"](), DIGITS)
    trained = context.fit(untaught, epochs=3, from_scratch=True)
    assert student.weights_digest() == trained.weights_digest()
    bare = replace(context, splits=replace(context.splits, train=replace(context.splits.train, labels=None)))
    with pytest.raises(PassRefusedError, match="nothing to learn from but labels"):
        alone.requires(reference, bare)


def test_a_width_needs_a_student_that_comes_in_several(reference: TorchModel, context: PassContext) -> None:
    wide = Distillation(DistillationSettings(student="small", width=8))
    with pytest.raises(PassRefusedError, match='"small" comes in one width'):
        wide.requires(reference, context)
    several = replace(context, students={"net": lambda width=8: digits_net((width, 16, 16), 16)})
    for width, channels in ((None, 8), (4, 4)):
        student = Distillation(DistillationSettings(student="net", width=width))._student(reference, several)
        assert student.module[1].out_channels == channels  # type: ignore[index]
