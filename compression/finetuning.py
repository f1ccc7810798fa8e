"""What follows a cut: training further, and asking how much quality is left."""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from pydantic import Field

from compression.base import PassContext, PassRefusedError, Settings
from compression.data import Split
from compression.distillation import teacher_objective
from compression.losses import Batch, labelled_loss
from compression.model import TorchModel
from compression.signature import Array
from compression.training import predict


class FineTuning(Settings):
    """Settings of passes that train further.

    Attributes:
        epochs: Passes over the training split after each cut; 0 for none.
        learning_rate: Peak of the schedule; None for a third of the model's own.
        teacher: Weight of the reference's soft targets beside the labels (Hinton et al. 2015).
    """

    epochs: int = Field(default=10, ge=0)
    learning_rate: float | None = Field(default=None, gt=0.0)
    teacher: float = Field(default=0.0, ge=0.0, le=1.0)

    def check(self, context: PassContext) -> None:
        """Checks that there is something to learn from.

        Raises:
            PassRefusedError: Train has no labels and no teacher is asked.
        """
        if self.epochs and not self.teacher and context.splits.train.labels is None:
            raise PassRefusedError(
                "fine-tuning needs labels and train has none. Set teacher to 1 to learn from the reference "
                "instead, or epochs to 0 and let distill follow."
            )

    def fit(self, model: TorchModel, context: PassContext) -> TorchModel:
        """The model after its best epoch; the model itself when there are none."""
        if not self.epochs:
            return model
        return context.fit(
            model,
            epochs=self.epochs,
            learning_rate=self.rate(context),
            objective=teacher_objective(context, alpha=self.teacher),
        )

    def rate(self, context: PassContext) -> float:
        """Peak learning rate of training further."""
        return self.learning_rate or context.training.learning_rate / 3


def check_judged(context: PassContext, purpose: str) -> None:
    """Checks that the validation split can judge a model.

    Raises:
        PassRefusedError: It has no labels, or there is no metric.
    """
    if context.splits.validation.labels is None:
        raise PassRefusedError(f"{purpose} is judged on validation, which has no labels. Give it labels.")
    if context.quality is None:
        raise PassRefusedError(f"{purpose} needs a metric and there is none. Name one in the spec.")


def quality_ratio(model: TorchModel, context: PassContext) -> float:
    """Quality on validation over the reference's."""
    validation, quality = context.splits.validation, context.quality
    assert quality is not None  # `check_judged` came first
    labels = cast(Array, validation.labels)
    reference = context.reference or model
    return quality.ratio(
        quality.value(predict(model, validation), labels),
        quality.value(predict(reference, validation), labels),
    )


def losses(model: TorchModel, context: PassContext, rows: Sequence[Split]) -> list[float]:
    """The model's own loss against the labels of each of the splits."""
    loss = labelled_loss(context.training.loss)
    found = []
    for split in rows:
        outputs = tuple(torch.from_numpy(output) for output in predict(model, split))
        inputs = tuple(torch.from_numpy(split.inputs[spec.name]) for spec in model.signature.inputs)
        labels = torch.from_numpy(cast(Array, split.labels))
        found.append(float(loss(outputs, Batch(torch.arange(len(split)), inputs, labels))))
    return found
