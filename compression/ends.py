"""What a foreign graph takes and gives, as the rows that came with it show."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import onnx
from onnx import TensorProto, helper

from compression.importing import ImportRefusedError
from compression.signature import Array, Axis

BATCH = "batch"


@dataclass(frozen=True)
class Input:
    """An input of the file.

    Attributes:
        name: Its name.
        dtype: Its numpy dtype.
        dims: Lengths of fixed axes, names of symbolic ones.
        has_batch: Whether its first axis is the batch.
    """

    name: str
    dtype: str
    dims: tuple[Axis, ...]
    has_batch: bool

    @property
    def row_dims(self) -> tuple[Axis, ...]:
        """The axes of one row."""
        return self.dims[1:] if self.has_batch else self.dims

    def feed(self, array: Array, rows: slice) -> Array:
        """The given rows as this input takes them, one alone where it has no batch axis."""
        return array[rows] if self.has_batch else array[rows][0]


def check_ends(proto: onnx.ModelProto) -> None:
    """Checks that a graph takes and gives tensors of numbers alone.

    Raises:
        ImportRefusedError: One end is something else, such as a sequence of maps.
    """
    for value in proto.graph.input:
        _dtype("input", value)
    for value in proto.graph.output:
        _dtype("output", value)


def inputs_of(proto: onnx.ModelProto, rows: Mapping[str, Array]) -> tuple[Input, ...]:
    """The inputs of a graph in their order.

    Args:
        proto: A normalized graph.
        rows: Arrays `(rows, ...)` by input name. An array with one more axis than its input belongs to an
            input without a batch axis.

    Raises:
        ImportRefusedError: The arrays do not fit.
    """
    names = [value.name for value in proto.graph.input]
    if unknown := sorted(rows.keys() - set(names)):
        raise ImportRefusedError(
            f'the data has an array "{unknown[0]}"; the model takes {", ".join(names)}. Name arrays so, or '
            f"say --labels {unknown[0]} where it holds the labels."
        )
    if missing := [name for name in names if name not in rows]:
        raise ImportRefusedError(
            f'the data has no array "{missing[0]}"; the model takes {", ".join(names)}. Add it.'
        )
    return _told_apart([_input(value, rows[value.name]) for value in proto.graph.input], rows)


def _told_apart(inputs: Sequence[Input], rows: Mapping[str, Array]) -> tuple[Input, ...]:
    """The inputs with names of their own for axes that share one and have different lengths in the data."""
    lengths: dict[Axis, set[int]] = {}
    for each in inputs:
        for axis, length in zip(each.row_dims, rows[each.name].shape[1:], strict=True):
            lengths.setdefault(axis, set()).add(length)
    return tuple(
        replace(
            each,
            dims=tuple(
                f"{each.name}_{place}" if len(lengths.get(axis, ())) > 1 else axis
                for place, axis in enumerate(each.dims)
            ),
        )
        for each in inputs
    )


def _input(value: onnx.ValueInfoProto, array: Array) -> Input:
    dtype = _dtype("input", value)
    dims: tuple[Axis, ...]
    if value.type.tensor_type.HasField("shape"):
        dims = tuple(axes_of(value))
    else:
        dims = tuple(f"{value.name}_{axis}" for axis in range(array.ndim))
    if array.ndim not in (len(dims), len(dims) + 1):
        raise ImportRefusedError(
            f'array "{value.name}" has shape {list(array.shape)}; the input is {list(dims)}. Give it '
            f"{len(dims)} axes, rows first, or {len(dims) + 1} if no axis of the input is the batch."
        )
    has_batch = array.ndim == len(dims)
    row_dims = dims[1:] if has_batch else dims
    if any(
        isinstance(axis, int) and axis != length
        for axis, length in zip(row_dims, array.shape[1:], strict=True)
    ):
        raise ImportRefusedError(
            f'rows of array "{value.name}" have shape {list(array.shape[1:])}; the model takes '
            f"{list(row_dims)}. Reshape them."
        )
    return Input(value.name, dtype, dims, has_batch)


def axes_of(value: onnx.ValueInfoProto) -> Iterator[Axis]:
    """Lengths of the fixed axes of an end, and names of the others."""
    for axis, dim in enumerate(value.type.tensor_type.shape.dim):
        if dim.HasField("dim_value") and dim.dim_value > 0:
            yield dim.dim_value
        else:  # the name of the batch belongs to the first axis alone
            named = dim.dim_param if dim.dim_param and dim.dim_param != BATCH else ""
            yield named or f"{value.name}_{axis}"


def _dtype(kind: str, value: onnx.ValueInfoProto) -> str:
    if not value.type.HasField("tensor_type"):
        held = value.type.WhichOneof("value") or "nothing"
        raise ImportRefusedError(
            f'{kind} "{value.name}" is a {held.removesuffix("_type")}; serving sends tensors. Export '
            "the model without it (for scikit-learn: zipmap=False)."
        )
    code = value.type.tensor_type.elem_type
    if code not in _DTYPES:
        name = TensorProto.DataType.Name(code).lower()
        raise ImportRefusedError(
            f'{kind} "{value.name}" holds {name}; serving takes numbers and booleans. Convert it before.'
        )
    return _DTYPES[code]


_DTYPES: dict[int, str] = {
    code: helper.tensor_dtype_to_np_dtype(code).name
    for code in (
        TensorProto.BOOL, TensorProto.INT8, TensorProto.INT16, TensorProto.INT32, TensorProto.INT64,
        TensorProto.UINT8, TensorProto.UINT16, TensorProto.UINT32, TensorProto.UINT64,
        TensorProto.FLOAT16, TensorProto.FLOAT, TensorProto.DOUBLE,
    )
}  # fmt: skip
