"""Names, dtypes and shapes of a model's inputs and outputs. Torch-free: the serving process reads it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]
Axis = int | str


class SignatureError(ValueError):
    """Arrays do not fit a signature; the message says which, what was expected and what was given."""


@dataclass(frozen=True, slots=True)
class TensorSpec:
    """One input or output.

    Attributes:
        name: The tensor's name in the model's graph.
        dtype: A numpy dtype name (`float32`, `int64`, `bool`), or `bytes` for variable-length byte strings.
        shape: Lengths of fixed axes; names of symbolic ones. The batch axis is the first and is named
            `batch`. Axes of the same name have the same length in one request.
    """

    name: str
    dtype: str
    shape: tuple[Axis, ...]

    @property
    def wire_shape(self) -> list[int]:
        """The shape with -1 for each symbolic axis, as protocols and error messages write it."""
        return [axis if isinstance(axis, int) else -1 for axis in self.shape]

    @property
    def row_shape(self) -> tuple[Axis, ...]:
        """The shape of one row: all axes but the batch."""
        return self.shape[1:]

    def accepts_shape(self, shape: tuple[int, ...]) -> bool:
        """Whether an array of this shape fits, symbolic axes taking any length of at least one."""
        return len(shape) == len(self.shape) and all(
            given == axis if isinstance(axis, int) else given > 0
            for given, axis in zip(shape, self.shape, strict=True)
        )

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {"name": self.name, "dtype": self.dtype, "shape": list(self.shape)}

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> TensorSpec:
        """Reads what `to_json` wrote."""
        return cls(document["name"], document["dtype"], tuple(document["shape"]))


@dataclass(frozen=True, slots=True)
class Signature:
    """The inputs and outputs of a model, in the order of its graph."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]

    def to_json(self) -> dict[str, Any]:
        """A JSON object that `from_json` reads back."""
        return {
            "inputs": [spec.to_json() for spec in self.inputs],
            "outputs": [spec.to_json() for spec in self.outputs],
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Signature:
        """Reads what `to_json` wrote."""
        return cls(
            tuple(TensorSpec.from_json(spec) for spec in document["inputs"]),
            tuple(TensorSpec.from_json(spec) for spec in document["outputs"]),
        )

    def check_inputs(self, arrays: Mapping[str, Array]) -> None:
        """Checks that the arrays are exactly this signature's inputs, with one batch length.

        Raises:
            SignatureError: A name is missing or unknown, or a dtype, shape or symbolic axis does not fit.
        """
        expected = ", ".join(spec.name for spec in self.inputs)
        if unknown := arrays.keys() - {spec.name for spec in self.inputs}:
            raise SignatureError(f'unknown input "{min(unknown)}". This model takes {expected}.')
        lengths: dict[str, tuple[int, str]] = {}
        for spec in self.inputs:
            if spec.name not in arrays:
                raise SignatureError(f'input "{spec.name}" is missing. This model takes {expected}.')
            array = arrays[spec.name]
            if spec.dtype != "bytes" and array.dtype != np.dtype(spec.dtype):
                raise SignatureError(
                    f'input "{spec.name}" has dtype {array.dtype}; expected {spec.dtype}. Convert the values.'
                )
            if not spec.accepts_shape(array.shape):
                raise SignatureError(
                    f'input "{spec.name}" has shape {list(array.shape)}; expected {spec.wire_shape}. '
                    f"{_shape_remedy(spec, array.shape)}"
                )
            for axis, length in zip(spec.shape, array.shape, strict=True):
                if isinstance(axis, str):
                    known, other = lengths.setdefault(axis, (length, spec.name))
                    if known != length:
                        raise SignatureError(
                            f'inputs "{other}" and "{spec.name}" disagree on axis "{axis}": '
                            f"{known} and {length}. Send the same length in both."
                        )


def _shape_remedy(spec: TensorSpec, given: tuple[int, ...]) -> str:
    if 0 in given:
        return "Send at least one row."
    if len(given) == len(spec.shape) - 1:
        return "Add the batch axis in front."
    row = "x".join(str(axis) for axis in spec.row_shape) or "one"
    return f"Send {row} value(s) per row."
