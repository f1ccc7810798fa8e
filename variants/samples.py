"""Rows on disk: `.npz` files with the inputs and labels of a split, or the inputs and outputs of a variant.

No pickle.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np

from compression.data import Split
from compression.signature import Array
from variants.robustness import Disturbed

_LABELS = "labels"
_INPUT = "input:"
_OUTPUT = "output:"
_DISTURBED = "disturbed:"


def write_split(path: Path, split: Split, disturbed: Iterable[Disturbed] = ()) -> None:
    """Writes inputs as `input:<name>`, labels as `labels`, and rows that were disturbed beside them."""
    arrays = _prefixed(_INPUT, split.inputs)
    for each in disturbed:
        arrays |= _prefixed(f"{_DISTURBED}{each.perturbation}:{each.severity}:", each.rows.inputs)
    if split.labels is not None:
        arrays[_LABELS] = split.labels
    _write(path, arrays)


def read_split(path: Path) -> Split:
    """Reads what `write_split` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return Split(_chosen(_INPUT, arrays), arrays[_LABELS] if _LABELS in arrays.files else None)


def read_disturbed(path: Path) -> list[Disturbed]:
    """Reads the disturbed rows of what `write_split` wrote, without their labels."""
    found: dict[tuple[str, float], dict[str, Array]] = {}
    with np.load(path, allow_pickle=False) as arrays:
        for key, array in _chosen(_DISTURBED, arrays).items():
            name, severity, tensor = key.split(":", 2)
            found.setdefault((name, float(severity)), {})[tensor] = array
    return [Disturbed(*how, Split(inputs)) for how, inputs in found.items()]


def write_golden(path: Path, inputs: Mapping[str, Array], outputs: Mapping[str, Array]) -> None:
    """Writes rows with the outputs that a variant gave for them: `input:<name>`, `output:<name>`."""
    _write(path, _prefixed(_INPUT, inputs) | _prefixed(_OUTPUT, outputs))


def read_golden(path: Path) -> tuple[dict[str, Array], dict[str, Array]]:
    """Reads the inputs and outputs that `write_golden` wrote."""
    with np.load(path, allow_pickle=False) as arrays:
        return _chosen(_INPUT, arrays), _chosen(_OUTPUT, arrays)


def _prefixed(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {f"{prefix}{name}": array for name, array in arrays.items()}


def _chosen(prefix: str, arrays: Mapping[str, Array]) -> dict[str, Array]:
    return {name.removeprefix(prefix): arrays[name] for name in arrays if name.startswith(prefix)}


def _write(path: Path, arrays: dict[str, Array]) -> None:
    with path.open("wb") as file:
        np.savez_compressed(file, allow_pickle=False, **arrays)
