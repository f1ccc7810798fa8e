"""What follows a cut: training further, and asking how much quality is left."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import cast

import torch
from pydantic import Field

from compression.base import BrokenPromiseError, Facts, PassContext, PassRefusedError, Settings
from compression.data import Split
from compression.imitation import teacher_objective
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


class GradualFineTuning(FineTuning):
    """Settings of passes that cut and fine-tune in turn.

    Attributes:
        rounds: Cut and fine-tune so many times on the way to the target.
        floor: Smallest quality on validation, over the reference's, that a round may end with; the last
            round above it is kept. None for any.
        epochs: Fine-tuning after each round; 0 for none.
    """

    rounds: int = Field(default=1, ge=1)
    floor: float | None = Field(default=None, gt=0.0, le=1.0)

    def check(self, context: PassContext) -> None:
        """Checks that there is something to learn from and, for a floor, something to judge by.

        Raises:
            PassRefusedError: There is not.
        """
        super().check(context)
        if self.floor is not None:
            check_judged(context, "floor")

    def descend(
        self, model: TorchModel, context: PassContext, cut: Callable[[TorchModel, int], TorchModel]
    ) -> tuple[TorchModel, list[Facts]]:
        """The model of the last round that is not under the floor, and what each round came to.

        Args:
            model: What to start from.
            context: Trains and judges.
            cut: The smaller model of a round, counted from 1, before fine-tuning.
        """
        log: list[Facts] = []
        for number in range(1, self.rounds + 1):
            context.report(f"round {number}/{self.rounds}", (number - 1) / self.rounds)
            candidate = self.fit(cut(model, number), context)
            entry: Facts = {"round": number, "kept": True}
            if self.floor is not None:
                entry["quality_ratio"] = quality_ratio(candidate, context)
                entry["kept"] = entry["quality_ratio"] >= self.floor
            log.append(entry)
            if not entry["kept"]:
                break
            model = candidate
        return model, log

    def check_rounds(self, log: Sequence[Facts]) -> bool:
        """Whether the floor stopped the rounds before the target.

        Raises:
            BrokenPromiseError: Not even the first round stayed above it.
        """
        if log and not log[0]["kept"]:
            raise BrokenPromiseError(
                f"the first round left {log[0]['quality_ratio']:.4f} of the reference's quality, under the "
                f"floor of {self.floor}. Take more rounds, cut less, or lower the floor."
            )
        return bool(log) and not log[-1]["kept"]


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
    reference = context.reference or model
    return quality(predict(model, validation), predict(reference, validation), validation.labels)


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
