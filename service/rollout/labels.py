"""What a label that comes later is held against, and what it says of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from compression.signature import Array
from service.errors import BadRequestError
from service.rollout.evidence import Feedback
from variants.metrics import find_metric, predicted_classes

# Larger answers are not kept: an image of classes, say.
MOST_NUMBERS = 1024


def prediction(metric: str, outputs: Mapping[str, Array]) -> Any:
    """What is kept of an answer until its label comes.

    Args:
        metric: Name of the model's metric, which names the output that it judges or means the first.
        outputs: Arrays `(rows, ...)` by name.

    Returns:
        Per row the class, or the numbers, as lists; None when it is too large to keep.
    """
    array = outputs[metric.partition("@")[2] or next(iter(outputs))]
    if find_metric(metric).answers is not None:
        array = predicted_classes(array)
    return array.tolist() if array.size <= MOST_NUMBERS else None


def judged(metric: str, predicted: Any, label: Any) -> Feedback:
    """What a label says of an answer.

    Args:
        metric: Name of the model's metric: classes are right or wrong, numbers have a squared error.
        predicted: What `prediction` kept.
        label: The same form, or without the list of rows where there is one row.

    Raises:
        BadRequestError: The label has another form.
    """
    try:
        truth = np.asarray(label, np.float64)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"label {str(label)[:80]!r} is no number or list of them. Send one.") from error
    given = np.asarray(predicted, np.float64)
    if truth.size != given.size or truth.shape not in (given.shape, given.shape[1:]):
        raise BadRequestError(
            f"the label has the shape {list(truth.shape)}; the answer has {list(given.shape)}. "
            "Send a value for each of its rows."
        )
    truth = truth.reshape(given.shape)
    if not np.isfinite(truth).all():
        raise BadRequestError("the label has values that are not finite. Send numbers.")
    if find_metric(metric).answers is not None:
        return Feedback(1, correct=float((truth == given).mean()))
    with np.errstate(over="ignore"):
        loss = np.square(truth - given).mean()
        squared = float(loss * loss)
    if not np.isfinite(squared):
        raise BadRequestError("the error of the answer is not finite. Send a label of its size.")
    return Feedback(1, loss=float(loss), loss_squares=squared)
