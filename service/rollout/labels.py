"""What a label that comes later is held against, and what it says of the answer."""

from __future__ import annotations

from collections.abc import Mapping
from functools import cache, lru_cache
from typing import Any

import numpy as np

from compression.signature import Array
from service.errors import BadRequestError
from service.rollout.evidence import Feedback
from variants.distributions import judged_output
from variants.labels import NAME as LABELS
from variants.metrics import find_metric, predicted_classes
from variants.serving_spec import ServingSpec

# Larger answers are not kept: an image of classes, say.
MOST_NUMBERS = 1024
_SHOWN = 10
_LARGEST_SQUARE = 1e200  # of a loss: so many of them have a finite sum as nobody ever sends


def prediction(metric: str, outputs: Mapping[str, Array]) -> Any:
    """What is kept of an answer until its label comes.

    Args:
        metric: Name of the model's metric, which names the output that it judges or means the first.
        outputs: Arrays `(rows, ...)` by name.

    Returns:
        Per row the class, or the numbers, as lists; None when it is too large to keep.
    """
    output, judges_classes = _judged(metric)
    array = outputs[output or next(iter(outputs))]
    if judges_classes:
        array = predicted_classes(array)
    return array.tolist() if array.size <= MOST_NUMBERS else None


@cache
def _judged(metric: str) -> tuple[str, bool]:
    """The output that a metric names, or an empty string; whether it judges classes."""
    return metric.partition("@")[2], find_metric(metric).answers is not None


def names_of(spec: ServingSpec) -> tuple[str, ...]:
    """What the judged output's classes are called, by number; empty where no transform names them."""
    for transform in spec.transforms if find_metric(spec.metric).answers is not None else ():
        output = transform.settings.get("output") or spec.signature.outputs[0].name
        if transform.name == LABELS and output == judged_output(spec):
            return tuple(map(str, transform.settings["names"]))
    return ()


def judged(metric: str, predicted: Any, label: Any, names: tuple[str, ...] = ()) -> Feedback:
    """What a label says of an answer.

    Args:
        metric: Name of the model's metric: classes are right or wrong, numbers have a squared error.
        predicted: What `prediction` kept.
        label: The same form, or without the list of rows where there is one row; classes by number or name.
        names: Of the classes, by number.

    Raises:
        BadRequestError: The label has another form, or names no class.
    """
    if names:
        label = _numbered(label, _numbers(names))
    try:
        truth = np.asarray(label, np.float64)
    except (TypeError, ValueError) as error:
        raise BadRequestError(f"label {str(label)[:80]!r} is no number or list of them. Send one.") from error
    except OverflowError as error:
        raise BadRequestError("the label has a number beyond 1e308. Send a smaller one.") from error
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
    if not squared <= _LARGEST_SQUARE:
        raise BadRequestError(
            "the answer's error is too large to be added up. Send a label of the answer's size."
        )
    return Feedback(1, loss=float(loss), loss_squares=squared)


def _numbered(label: Any, numbers: Mapping[str, int]) -> Any:
    """A label with the numbers of classes in the place of their names."""
    if isinstance(label, list):
        return [_numbered(each, numbers) for each in label]
    if not isinstance(label, str):
        return label
    if label not in numbers:
        raise BadRequestError(
            f'label "{label[:80]}" is no class of this model. Send one of {_listing(numbers)}, or its number.'
        )
    return numbers[label]


@lru_cache(maxsize=16)
def _numbers(names: tuple[str, ...]) -> Mapping[str, int]:
    return {name: number for number, name in reversed([*enumerate(names)])}  # of equal names the first


def _listing(numbers: Mapping[str, int]) -> str:
    some = ", ".join(list(numbers)[::-1][:_SHOWN])
    return f"{some}, ..." if len(numbers) > _SHOWN else some
