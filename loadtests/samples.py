"""Labelled rows from a published `samples.npz`, as request bodies of the Open Inference Protocol.

The file holds an array `input:<name>` of shape `(rows, ...)` per input, and `labels` of shape `(rows,)`.
"""

from __future__ import annotations

import struct
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadtests.authorization import authorization

Array = NDArray[Any]

DATATYPES = {
    "bool": "BOOL",
    "uint8": "UINT8",
    "uint16": "UINT16",
    "uint32": "UINT32",
    "uint64": "UINT64",
    "int8": "INT8",
    "int16": "INT16",
    "int32": "INT32",
    "int64": "INT64",
    "float16": "FP16",
    "float32": "FP32",
    "float64": "FP64",
}
_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}
_TEXT_KINDS = "SU"  # numpy's fixed-width bytes and strings, both BYTES on the wire
_INPUT = "input:"
_LENGTH = struct.Struct("<I")
_FREE_AXIS = 16


class SamplesError(Exception):
    """The file is not one of labelled rows; the message says what is wrong."""


@dataclass(frozen=True, slots=True)
class Body:
    """One ready-made request.

    Attributes:
        payload: The HTTP body.
        headers: The headers that belong to it, with the key if there is one.
        label: The row's class, or None when there is no such label.
        row: Which row of the samples it sends.
    """

    payload: bytes
    headers: dict[str, str] = field(repr=False)
    label: int | None
    row: int = 0


@dataclass(frozen=True, slots=True, eq=False)
class Samples:
    """Rows to send.

    Attributes:
        inputs: Arrays `(rows, ...)` by input name.
        labels: The class of each row `(rows,)`; None when the labels are no classes.
    """

    inputs: dict[str, Array]
    labels: Array | None

    @property
    def rows(self) -> int:
        """How many rows there are."""
        return len(next(iter(self.inputs.values())))

    def bodies(self, parameters: Mapping[str, str | int], *, binary: bool = False) -> list[Body]:
        """One request per row, with these parameters.

        Args:
            parameters: What the requests ask for, such as a tier.
            binary: Send and ask for binary tensors instead of JSON.
        """
        return [self.body(row, parameters, binary=binary) for row in range(self.rows)]

    def body(self, row: int, parameters: Mapping[str, str | int], *, binary: bool = False) -> Body:
        """The request for one row, with these parameters."""
        write = _binary_body if binary else _json_body
        arrays = {name: array[row : row + 1] for name, array in self.inputs.items()}
        payload, headers = write(arrays, parameters)
        label = None if self.labels is None else int(self.labels[row])
        return Body(payload, headers | authorization(), label, row)


def read_samples(path: Path) -> Samples:
    """Reads a published file of labelled rows.

    Raises:
        SamplesError: It is not readable, or holds something else.
    """
    try:
        # Opened here: np.load leaks the file when it holds no arrays.
        with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
            arrays = {name: file[name] for name in file.files}
    except Exception as error:  # numpy raises whatever its parsers raise
        raise SamplesError(f"{path} holds no rows: {error}. Give the samples.npz of a model.") from error
    inputs = {name.removeprefix(_INPUT): array for name, array in arrays.items() if name.startswith(_INPUT)}
    labels = arrays.get("labels")
    lengths = {len(array) if array.ndim else 0 for array in inputs.values()}
    if len(lengths) != 1 or 0 in lengths or (labels is not None and labels.shape[:1] != (*lengths,)):
        shapes = ", ".join(f"{name} {array.shape}" for name, array in arrays.items()) or "nothing"
        raise SamplesError(
            f"{path} holds {shapes}; expected input:<name> arrays and labels of the same length. "
            "Give the samples.npz of a model."
        )
    for name, array in inputs.items():
        _datatype(name, array)
    return Samples(inputs, labels if labels is not None and _are_classes(labels) else None)


def invented_samples(inputs: Iterable[Mapping[str, Any]], rows: int = 64, seed: int = 0) -> Samples:
    """Rows without meaning and without labels, for a model whose samples are not at hand.

    Args:
        inputs: Protocol metadata of the inputs: `name`, `datatype`, `shape`.
        rows: How many to make.
        seed: Of the random values: numbers from 0 to 1.
    """
    generator = np.random.default_rng(seed)
    arrays: dict[str, Array] = {}
    for tensor in inputs:
        shape = (rows, *(_FREE_AXIS if axis < 0 else axis for axis in tensor["shape"][1:]))
        if tensor["datatype"] == "BYTES":
            arrays[tensor["name"]] = np.full(shape, "sample")
        else:
            dtype = np.dtype(_DTYPES[tensor["datatype"]])
            values = generator.random(shape) if dtype.kind == "f" else generator.integers(0, 2, shape)
            arrays[tensor["name"]] = values.astype(dtype)
    return Samples(arrays, None)


def _are_classes(labels: Array) -> bool:
    return labels.ndim == 1 and labels.dtype.kind in "iu"


def _datatype(name: str, array: Array) -> str:
    if array.dtype.kind in _TEXT_KINDS:
        return "BYTES"
    datatype = DATATYPES.get(array.dtype.name)
    if datatype is None:
        known = ", ".join(DATATYPES)
        raise SamplesError(f'input "{name}" has dtype {array.dtype}; the protocol carries {known} and text.')
    return datatype


def _json_body(
    arrays: Mapping[str, Array], parameters: Mapping[str, str | int]
) -> tuple[bytes, dict[str, str]]:
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": _datatype(name, array),
            "data": _json_values(array),
        }
        for name, array in arrays.items()
    ]
    document = {"parameters": dict(parameters), "inputs": tensors}
    # orjson writes float32 with the digits that float32 needs; a detour over Python's floats doubles them.
    payload = orjson.dumps(document, option=orjson.OPT_SERIALIZE_NUMPY)
    return payload, {"Content-Type": "application/json"}


def _json_values(array: Array) -> Any:
    if array.dtype.kind in _TEXT_KINDS:
        return [text.decode() for text in _texts(array)]
    return np.ascontiguousarray(array).reshape(-1)


def _binary_body(
    arrays: Mapping[str, Array], parameters: Mapping[str, str | int]
) -> tuple[bytes, dict[str, str]]:
    chunks = {name: _raw(array) for name, array in arrays.items()}
    tensors = [
        {
            "name": name,
            "shape": array.shape,
            "datatype": _datatype(name, array),
            "parameters": {"binary_data_size": len(chunks[name])},
        }
        for name, array in arrays.items()
    ]
    header = orjson.dumps({"parameters": {**parameters, "binary_data_output": True}, "inputs": tensors})
    return b"".join((header, *chunks.values())), {
        "Content-Type": "application/octet-stream",
        "Inference-Header-Content-Length": str(len(header)),
    }


def _raw(array: Array) -> bytes:
    """Row-major little-endian bytes; each text is a 4-byte length and then its bytes."""
    if array.dtype.kind in _TEXT_KINDS:
        return b"".join(_LENGTH.pack(len(text)) + text for text in _texts(array))
    return array.astype(array.dtype.newbyteorder("<"), copy=False).tobytes()


def _texts(array: Array) -> list[bytes]:
    values = array.reshape(-1).tolist()
    return [value if isinstance(value, bytes) else value.encode() for value in values]
