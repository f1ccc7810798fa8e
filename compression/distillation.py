"""A small student that learns from the reference's answers instead of labels alone."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field
from torch import Tensor
from torch.nn import functional

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.data import Split
from compression.inspection import parameters
from compression.losses import Batch, Loss, Outputs
from compression.model import Form, OnnxModel, TorchModel
from compression.signature import Array
from compression.training import (
    Autocast,
    Objective,
    Training,
    labels_objective,
    lay_out,
    outputs_of,
    predict,
    seeded,
)

# The student that is the model that came in.
CURRENT = "current"

# How far the student is from the teacher: (student's outputs, teacher's outputs, temperature) -> scalar.
Imitation = Callable[[Outputs, Outputs, float], Tensor]
# What a teacher says to a batch.
Answers = Callable[[Batch], Outputs]


class DistillationSettings(Settings):
    """Settings of `distill`.

    Attributes:
        student: One of the spec's students by name, trained from scratch; `current` teaches the model
            that came in, such as a pruned one, further.
        temperature: Softens teacher and student alike, so that the teacher's doubts are seen.
        alpha: Weight of the teacher; the labels weigh `1 - alpha`. Without labels only the teacher counts.
        epochs: Passes over the training split; None for as many as the model's training has.
        learning_rate: Peak learning rate; None for the model's own from scratch and a third of it further.
    """

    student: str
    temperature: float = Field(default=4.0, gt=0.0)
    alpha: float = Field(default=0.7, gt=0.0, le=1.0)
    epochs: int | None = Field(default=None, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)


def soft_cross_entropy(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    """Divergence of the softened classes of the first output, scaled by the temperature squared.

    Hinton et al. 2015, section 2: the scale keeps the gradients as large as those of the hard labels.
    """
    return (
        temperature**2
        * functional.kl_div(
            functional.log_softmax(student[0].float() / temperature, dim=-1),
            functional.log_softmax(teacher[0] / temperature, dim=-1),
            log_target=True,
            reduction="none",
        )
        .sum(-1)
        .mean()
    )


def output_mse(student: Outputs, teacher: Outputs, temperature: float) -> Tensor:
    """Mean squared distance of all outputs; numbers that are no logits have no temperature."""
    distances = [functional.mse_loss(a.float(), b) for a, b in zip(student, teacher, strict=True)]
    return torch.stack(distances).mean()


IMITATIONS: dict[str, Imitation] = {
    "cross_entropy": soft_cross_entropy,
    "mse": output_mse,
}


def teacher_objective(context: PassContext, temperature: float = 4.0, alpha: float = 0.7) -> Objective:
    """What a student of the reference minimizes: the teacher's softened answers beside the labels.

    For `PassContext.fit`. The teacher answers each split once, when it is first asked; where training rows
    are augmented or shrunk, it answers every batch as the student sees it (Beyer et al. 2022, "Knowledge
    Distillation: A Good Teacher Is Patient and Consistent").

    Args:
        context: Holds the teacher as `reference`, and the training whose loss says how it is imitated.
        temperature: Softens teacher and student alike.
        alpha: Weight of the teacher; the labels weigh `1 - alpha`. 0 asks the teacher nothing. Without labels
            only the teacher counts.

    Raises:
        PassRefusedError: There is no reference, or nothing says how its answers are imitated.
    """
    training, splits = context.training, context.splits
    labelled = labels_objective(training)
    if alpha == 0.0:
        return labelled
    teacher, imitation = teacher_of(context), imitation_of(training)

    def blend(answers: Answers, against_labels: Loss, weight: float) -> Loss:
        def loss(outputs: Outputs, batch: Batch) -> Tensor:
            soft = weight * imitation(outputs, answers(batch), temperature)
            return soft if weight == 1.0 else soft + (1.0 - weight) * against_labels(outputs, batch)

        return loss

    changing = training.augmentation is not None or training.small_images > 0
    answers = _Watching(teacher, training) if changing else _Remembering(teacher, splits.train)
    return Objective(
        blend(answers, labelled.train, 1.0 if splits.train.labels is None else alpha),
        blend(
            _Remembering(teacher, splits.validation),
            labelled.validation,
            1.0 if splits.validation.labels is None else alpha,
        ),
        f"soft {[teacher.weights_digest(), temperature, alpha]} beside {labelled.key}",
    )


def teacher_of(context: PassContext) -> TorchModel:
    """The reference, as what a student learns from.

    Raises:
        PassRefusedError: There is none.
    """
    if context.reference is None:
        raise PassRefusedError("there is no reference to learn from. Register the model as a module.")
    return context.reference


def imitation_of(training: Training) -> Imitation:
    """How a model trained this way is imitated.

    Raises:
        PassRefusedError: Its loss has no imitation.
    """
    if training.loss not in IMITATIONS:
        raise PassRefusedError(
            f'a model trained on "{training.loss}" cannot be imitated. '
            f"Losses with an imitation: {', '.join(sorted(IMITATIONS))}."
        )
    return IMITATIONS[training.loss]


class _Remembering:
    """A teacher that answers every row of a split once and is looked up from then on."""

    def __init__(self, teacher: TorchModel, split: Split) -> None:
        self.teacher = teacher
        self.split = split
        self.answers: Outputs | None = None

    def __call__(self, batch: Batch) -> Outputs:
        if self.answers is None:
            device = batch.inputs[0].device
            answers = predict(self.teacher, self.split)
            self.answers = tuple(torch.from_numpy(answer).to(device) for answer in answers)
        return tuple(answer[batch.rows] for answer in self.answers)


class _Watching:
    """A teacher that answers each batch as the student sees it."""

    def __init__(self, teacher: TorchModel, training: Training) -> None:
        self.module = copy.deepcopy(teacher.module).eval()
        self.autocast = Autocast(self.module, training.autocast)
        if self.autocast.enabled:
            lay_out(self.module, torch.channels_last)

    def __call__(self, batch: Batch) -> Outputs:
        with torch.no_grad(), self.autocast.context():
            return tuple(answer.float() for answer in outputs_of(self.module, batch.inputs))


class Distillation(Pass[DistillationSettings, TorchModel, TorchModel]):
    """Trains a student on the reference's soft targets.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network". The teacher answers every
    row once, before the first epoch. A model trained on `mse` is imitated in its outputs instead.
    """

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 2
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = DistillationSettings

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are a teacher, a student and a loss that says how one imitates the other."""
        teacher_of(context)
        if self.settings.student not in (CURRENT, *context.students):
            known = ", ".join((CURRENT, *context.students))
            raise PassRefusedError(
                f'the spec has no student "{self.settings.student}". There are {known}; add one to students.'
            )
        imitation_of(context.training)
        student, teacher = _size(self._student(model, context)), _size(teacher_of(context))
        if student >= teacher:
            raise PassRefusedError(
                f"the student has {student} parameters, its teacher {teacher}. Use a smaller student, or "
                "prune first."
            )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the student after its best epoch."""
        settings = self.settings
        further = settings.student == CURRENT
        usual_rate = context.training.learning_rate / 3 if further else context.training.learning_rate
        return context.fit(
            self._student(model, context),
            epochs=settings.epochs,
            learning_rate=settings.learning_rate or usual_rate,
            objective=teacher_objective(context, settings.temperature, settings.alpha),
            from_scratch=not further,
        )

    def _student(self, model: TorchModel, context: PassContext) -> TorchModel:
        if self.settings.student == CURRENT:
            return model
        with seeded(context.seed):
            return TorchModel(context.students[self.settings.student](), model.signature)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that the student is smaller than its teacher, changed, and learned from it."""
        teacher = teacher_of(context)
        if _size(after) >= _size(teacher):
            raise BrokenPromiseError(
                f"the student has {_size(after)} parameters, its teacher {_size(teacher)}. "
                "Use a smaller student."
            )
        if after.weights_digest() == self._student(before, context).weights_digest():
            raise BrokenPromiseError("the student's weights did not change. Raise epochs or learning_rate.")
        validation = context.splits.validation
        said, taught = predict(after, validation), predict(teacher, validation)
        agreement, chance = _AGREEMENTS[context.training.loss](said, taught)
        if agreement <= chance:
            raise BrokenPromiseError(
                f"the student agrees with its teacher on {agreement:.3f} of validation, chance is "
                f"{chance:.3f}. Raise epochs or give the student more width."
            )
        return {
            "teacher_parameters": _size(teacher),
            "student_parameters": _size(after),
            "agreement": agreement,
            "chance": chance,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact is smaller than the teacher."""
        stored, teacher = parameters(artifact), facts["teacher_parameters"]
        if stored >= teacher:
            raise BrokenPromiseError(
                f"the artifact stores {stored} weights, the teacher {teacher}. A later step made it grow."
            )


def class_agreement(student: list[Array], teacher: list[Array]) -> tuple[float, float]:
    """Share of rows where both choose the same class, and the share of the teacher's commonest class."""
    chosen, taught = student[0].argmax(-1).reshape(-1), teacher[0].argmax(-1).reshape(-1)
    return float((chosen == taught).mean()), float(np.bincount(taught).max() / len(taught))


def explained_variance(student: list[Array], teacher: list[Array]) -> tuple[float, float]:
    """Share of the teacher's variance that the first output explains; a constant explains 0."""
    error, spread = student[0] - teacher[0], teacher[0] - teacher[0].mean(axis=0)
    return float(1.0 - (error**2).sum() / max((spread**2).sum(), 1e-12)), 0.0


_AGREEMENTS: dict[str, Callable[[list[Array], list[Array]], tuple[float, float]]] = {
    "cross_entropy": class_agreement,
    "mse": explained_variance,
}


def _size(model: TorchModel) -> int:
    return sum(parameter.numel() for parameter in model.module.parameters())
