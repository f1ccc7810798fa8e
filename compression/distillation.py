"""A small student that learns from the reference's answers instead of labels alone."""

from __future__ import annotations

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
from compression.losses import Batch, Loss, Outputs, labelled_loss
from compression.model import Form, OnnxModel, TorchModel
from compression.signature import Array
from compression.training import Objective, predict, seeded

# The student that is the model that came in.
CURRENT = "current"

# How far the student is from the teacher: (student's outputs, teacher's outputs, temperature) -> scalar.
Imitation = Callable[[Outputs, Outputs, float], Tensor]


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


class Distillation(Pass[DistillationSettings, TorchModel, TorchModel]):
    """Trains a student on the reference's soft targets.

    Hinton, Vinyals and Dean 2015, "Distilling the Knowledge in a Neural Network". The teacher answers every
    row once, before the first epoch. A model trained on `mse` is imitated in its outputs instead.
    """

    name: ClassVar[str] = "distill"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = DistillationSettings

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are a teacher, a student and a loss that says how one imitates the other."""
        if context.reference is None:
            raise PassRefusedError("there is no reference to learn from. Register the model as a module.")
        if self.settings.student not in (CURRENT, *context.students):
            known = ", ".join((CURRENT, *context.students))
            raise PassRefusedError(
                f'the spec has no student "{self.settings.student}". There are {known}; add one to students.'
            )
        if context.training.loss not in IMITATIONS:
            raise PassRefusedError(
                f'a model trained on "{context.training.loss}" cannot be imitated. '
                f"Losses with an imitation: {', '.join(sorted(IMITATIONS))}."
            )
        student, teacher = _size(self._student(model, context)), _size(context.reference)
        if student >= teacher:
            raise PassRefusedError(
                f"the student has {student} parameters, its teacher {teacher}. Use a smaller student, or "
                "prune first."
            )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the student after its best epoch."""
        settings, splits = self.settings, context.splits
        further = settings.student == CURRENT
        usual_rate = context.training.learning_rate / 3 if further else context.training.learning_rate
        facts = [_teacher(context).weights_digest(), settings.temperature, settings.alpha]
        objective = Objective(
            self._objective(context, splits.train),
            self._objective(context, splits.validation),
            f"soft {facts}",
        )
        return context.fit(
            self._student(model, context),
            epochs=settings.epochs,
            learning_rate=settings.learning_rate or usual_rate,
            objective=objective,
            from_scratch=not further,
        )

    def _student(self, model: TorchModel, context: PassContext) -> TorchModel:
        if self.settings.student == CURRENT:
            return model
        with seeded(context.seed):
            return TorchModel(context.students[self.settings.student](), model.signature)

    def _objective(self, context: PassContext, split: Split) -> Loss:
        """The loss on one split, the teacher's answers to it computed once."""
        alpha = self.settings.alpha if split.labels is not None else 1.0
        imitation, against_labels = IMITATIONS[context.training.loss], labelled_loss(context.training.loss)
        answers = [torch.from_numpy(answer) for answer in predict(_teacher(context), split)]

        def loss(outputs: Outputs, batch: Batch) -> Tensor:
            teacher = tuple(answer[batch.rows].to(outputs[0].device) for answer in answers)
            soft = alpha * imitation(outputs, teacher, self.settings.temperature)
            return soft if alpha == 1.0 else soft + (1.0 - alpha) * against_labels(outputs, batch)

        return loss

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that the student is smaller than its teacher, changed, and learned from it."""
        teacher = _teacher(context)
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


def _teacher(context: PassContext) -> TorchModel:
    if context.reference is None:
        raise PassRefusedError("there is no reference to learn from. Register the model as a module.")
    return context.reference
