"""What a model minimizes: named losses against labels."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

from torch import Tensor
from torch.nn import functional

from compression.classes import class_axis

Outputs = tuple[Tensor, ...]

_NO_CLASS = -100


class TrainingError(ValueError):
    """A model cannot be trained as asked; the message says why."""


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the model's outputs.

    Attributes:
        rows: Which rows of the split these are, of shape `(batch,)`.
        inputs: The inputs in signature order, each `(batch, ...)`, augmented in training.
        labels: The labels `(batch, ...)`, or None when the split has none.
    """

    rows: Tensor
    inputs: tuple[Tensor, ...]
    labels: Tensor | None


Loss = Callable[[Outputs, Batch], Tensor]


def cross_entropy(outputs: Outputs, batch: Batch, smoothing: float = 0.0) -> Tensor:
    """Mean cross entropy of the first output's logits against class numbers.

    Logits are `(batch, classes)`; for labels of more axes they have those, and the classes second or last.
    Among those, labels that are no class, such as 255, mark what is not labelled and teaches nothing.
    """
    labels = labels_of(batch).long()
    logits = outputs[0].float().movedim(scores_axis(outputs[0], tuple(labels.shape)), 1)
    return _mean_over_known(logits, labels, smoothing)


def _mean_over_known(logits: Tensor, labels: Tensor, smoothing: float) -> Tensor:
    """Mean cross entropy over the labels that are classes; a row's only label has to be one."""
    known = _are_classes(labels, logits.shape[1])
    if labels.ndim == 1 or bool(known.all()):
        return functional.cross_entropy(logits, labels, label_smoothing=smoothing)
    # What is ignored has torch's own number for it.
    taught = labels.where(known, _NO_CLASS)
    total = functional.cross_entropy(logits, taught, reduction="sum", label_smoothing=smoothing)
    return total / known.sum().clamp(min=1)


def _are_classes(labels: Tensor, classes: int) -> Tensor:
    return (labels >= 0) & (labels < classes)


def mse(outputs: Outputs, batch: Batch) -> Tensor:
    """Mean squared error of the first output against labels of as many values."""
    values = outputs[0].float()
    return functional.mse_loss(values, labels_of(batch).float().reshape(values.shape))


def segmentation(outputs: Outputs, batch: Batch) -> Tensor:
    """Cross entropy per pixel, and how many things a picture shows.

    Args:
        outputs: Logits `(batch, classes, height, width)`; then, if there is one more output, how many classes
            beside class 0, the background, a picture shows, `(batch, 1)`.
        batch: With labels `(batch, height, width)`, the class of each pixel; others mark what has none.
    """
    classes = labels_of(batch).long()
    loss = _mean_over_known(outputs[0].float(), classes, 0.0)
    if len(outputs) == 1:
        return loss
    known = classes.where(_are_classes(classes, outputs[0].shape[1]), 0)  # what is not labelled shows nothing
    shown = functional.one_hot(known.flatten(1), outputs[0].shape[1]).amax(dim=1)[:, 1:].sum(dim=1)
    return loss + 0.1 * functional.smooth_l1_loss(outputs[1].float().flatten(), shown.float())


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
    "segmentation": segmentation,
}


def labelled_loss(name: str, smoothing: float = 0.0) -> Loss:
    """The loss of that name, for cross entropy with smoothed labels.

    Raises:
        TrainingError: There is none, or it has no labels that could be smoothed.
    """
    if name not in LOSSES:
        raise TrainingError(f'unknown loss "{name}". Use one of {", ".join(sorted(LOSSES))}.')
    if not smoothing:
        return LOSSES[name]
    if name != "cross_entropy":
        raise TrainingError(f"{name} has no labels to smooth. Set label_smoothing to 0.")
    return partial(cross_entropy, smoothing=smoothing)


def scores_axis(logits: Tensor, labels_shape: tuple[int, ...] | None) -> int:
    """The axis of logits that holds the scores of classes.

    Raises:
        TrainingError: None can, for labels of this shape.
    """
    axis = class_axis(tuple(logits.shape), labels_shape)
    if axis is None:
        raise TrainingError(
            f"logits of shape {list(logits.shape)} have no axis of class scores for labels of shape "
            f"{list(labels_shape or ())}. Give one class number for each place, or train on another loss."
        )
    return axis


def labels_of(batch: Batch) -> Tensor:
    """The batch's labels.

    Raises:
        TrainingError: The split has none.
    """
    if batch.labels is None:
        raise TrainingError("this loss needs labels and the split has none. Give the split labels.")
    return batch.labels
