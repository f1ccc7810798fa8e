"""What a student learns from its teacher's answers: how far it is from them, and how often it agrees."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from compression.base import PassContext, PassRefusedError
from compression.classes import class_axis
from compression.data import Split
from compression.hints import Watching
from compression.losses import Batch, Loss, Outputs, scores_axis
from compression.model import TorchModel
from compression.signature import Array
from compression.training import Objective, Training, labels_objective, predict

# The shape of a batch's labels, which tells the axis of the classes, or None where there are none.
LabelsShape = tuple[int, ...] | None
# How far the student is from the teacher: (student's outputs, teacher's, temperature, labels) -> scalar.
Imitation = Callable[[Outputs, Outputs, float, LabelsShape], Tensor]
# What a teacher says to a batch.
Answers = Callable[[Batch], Outputs]


def soft_cross_entropy(
    student: Outputs, teacher: Outputs, temperature: float, labels_shape: LabelsShape = None
) -> Tensor:
    """Divergence of the softened classes of the first output, scaled by the temperature squared.

    Hinton et al. 2015, section 2: the scale keeps the gradients as large as those of the hard labels.
    """
    axis = scores_axis(student[0], labels_shape)
    return (
        temperature**2
        * functional.kl_div(
            functional.log_softmax(student[0].float() / temperature, dim=axis),
            functional.log_softmax(teacher[0] / temperature, dim=axis),
            log_target=True,
            reduction="none",
        )
        .sum(axis)
        .mean()
    )


def output_mse(
    student: Outputs, teacher: Outputs, temperature: float = 1.0, labels_shape: LabelsShape = None
) -> Tensor:
    """Mean squared distance of all outputs; numbers have neither temperature nor classes."""
    distances = [functional.mse_loss(a.float(), b) for a, b in zip(student, teacher, strict=True)]
    return torch.stack(distances).mean()


def soft_pixels(
    student: Outputs, teacher: Outputs, temperature: float, labels_shape: LabelsShape = None
) -> Tensor:
    """Divergence of the softened classes of every pixel, and the distance of what else there is."""
    pixels = [outputs[0].movedim(1, -1).flatten(0, -2) for outputs in (student, teacher)]
    soft = soft_cross_entropy((pixels[0],), (pixels[1],), temperature)
    return soft if len(student) == 1 else soft + 0.1 * output_mse(student[1:], teacher[1:])


IMITATIONS: dict[str, Imitation] = {
    "cross_entropy": soft_cross_entropy,
    "mse": output_mse,
    "segmentation": soft_pixels,
}


def teacher_objective(
    context: PassContext, temperature: float = 4.0, alpha: float = 0.7, watching: Watching | None = None
) -> Objective:
    """What a student of the reference minimizes: the teacher's softened answers beside the labels.

    For `PassContext.fit`. The teacher answers each split once, when it is first asked; where training rows
    are augmented or shrunk, it answers every batch as the student sees it (Beyer et al. 2022, "Knowledge
    Distillation: A Good Teacher Is Patient and Consistent").

    Args:
        context: Holds the teacher as `reference`, and the training whose loss says how it is imitated.
        temperature: Softens teacher and student alike.
        alpha: Weight of the teacher; the labels weigh `1 - alpha`. 0 asks the teacher nothing. Without labels
            only the teacher counts.
        watching: The teacher as somebody else already asks it about each batch, so that it answers once.

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
            labels_shape = None if batch.labels is None else tuple(batch.labels.shape)
            soft = weight * imitation(outputs, answers(batch), temperature, labels_shape)
            return soft if weight == 1.0 else soft + (1.0 - weight) * against_labels(outputs, batch)

        return loss

    changing = training.augmentation is not None or training.small_images > 0
    if watching is None and changing:
        watching = Watching(teacher, training, splits.validation)
    answers = _Remembering(teacher, splits.train) if watching is None else watching.answers
    return Objective(
        blend(answers, labelled.train, 1.0 if splits.train.labels is None else alpha),
        blend(
            _Remembering(teacher, splits.validation),
            labelled.validation,
            1.0 if splits.validation.labels is None else alpha,
        ),
        f"soft {[teacher.digest(), temperature, alpha]} beside {labelled.key}",
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


def class_agreement(
    student: Sequence[Array], teacher: Sequence[Array], labels: Array | None = None
) -> tuple[float, float]:
    """Share of rows where both choose the same class, and the share of the teacher's commonest class."""
    axis = class_axis(teacher[0].shape, None if labels is None else labels.shape)
    assert axis is not None  # it has learned from them
    chosen, taught = (answers[0].argmax(axis).reshape(-1) for answers in (student, teacher))
    return float((chosen == taught).mean()), float(np.bincount(taught).max() / len(taught))


def explained_variance(
    student: Sequence[Array], teacher: Sequence[Array], labels: Array | None = None
) -> tuple[float, float]:
    """Share of the teacher's variance that the first output explains; a constant explains 0."""
    error, spread = student[0] - teacher[0], teacher[0] - teacher[0].mean(axis=0)
    return float(1.0 - (error**2).sum() / max((spread**2).sum(), 1e-12)), 0.0


AGREEMENTS: dict[str, Callable[[Sequence[Array], Sequence[Array], Array | None], tuple[float, float]]] = {
    "cross_entropy": class_agreement,
    "mse": explained_variance,
    "segmentation": class_agreement,
}
