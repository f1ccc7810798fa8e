"""Where an output holds the scores of classes. Torch-free: metrics read it where nothing trains."""

from __future__ import annotations

from functools import lru_cache


@lru_cache(1024)
def class_axis(shape: tuple[int, ...], labels_shape: tuple[int, ...] | None = None) -> int | None:
    """The axis of an output of this shape that holds the scores of classes, or None where none can.

    Args:
        shape: The output's, the batch first.
        labels_shape: The labels', which tell the axis that they lack; without labels, or where two axes could
            be it, the second of images `(rows, classes, height, width)`, else the last.
    """
    axes = (1, len(shape) - 1) if len(shape) >= 4 else (len(shape) - 1, 1)
    for axis in axes:
        if not (0 < axis < len(shape) and shape[axis] > 1):
            continue
        if labels_shape is None or shape[:axis] + shape[axis + 1 :] == labels_shape:
            return axis
    return None
