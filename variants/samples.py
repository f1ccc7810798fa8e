"""Labelled rows on disk: `.npz` files that hold a split's inputs and labels. No pickle."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compression.data import Split

_LABELS = "labels"
_INPUT = "input:"


def write_split(path: Path, split: Split) -> None:
    """Writes inputs as `input:<name>` and labels as `labels`."""
    arrays = {f"{_INPUT}{name}": array for name, array in split.inputs.items()}
    if split.labels is not None:
        arrays[_LABELS] = split.labels
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)


def read_split(path: Path) -> Split:
    """Reads what `write_split` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        inputs = {name.removeprefix(_INPUT): arrays[name] for name in arrays.files if name.startswith(_INPUT)}
        return Split(inputs, arrays[_LABELS] if _LABELS in arrays.files else None)
