"""Weights as small codes: each stored weight a number that points into a short table of values.

The graph stays standard ONNX and expands itself: packed codes are unpacked, looked up in their codebook and
scaled by operators that a runtime folds into plain weights once, when it loads the model. What is gained is
size on disk and on the wire, not time.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression.base import CompressionError
from compression.model import OnnxModel
from compression.signature import Array

# Lengths of a code, in bits, that a byte or two hold evenly.
WIDTHS = (1, 2, 4, 8, 16)
_BYTE = 8
# A weight `w` in codes of four bits is stored as `w.codes4`, `w.codes4.codebook` and so on.
_CODES = re.compile(r"(?P<weight>.*)\.codes(?P<width>\d+)")


class CodebookError(CompressionError):
    """Weights cannot be stored as codes; the message says why."""


@dataclass(frozen=True)
class Codes:
    """One weight tensor as codes.

    Attributes:
        indices: Which value each weight has, of the weight's shape: integers below the codebook's length.
        codebook: The values, of shape `(values,)`.
        bits: Length of a code. It is stored in the next of 1, 2, 4, 8 or 16 bits.
        scale: Factor of each weight, of a shape that broadcasts to it, such as one per output channel; None
            for none.
    """

    indices: Array
    codebook: Array
    bits: int
    scale: Array | None = None

    def __post_init__(self) -> None:
        if not 1 <= self.bits <= WIDTHS[-1]:
            raise CodebookError(f"codes of {self.bits} bits are not stored. Use 1 to {WIDTHS[-1]}.")
        if self.codebook.ndim != 1 or not 1 <= len(self.codebook) <= 2**self.bits:
            raise CodebookError(
                f"a codebook of shape {list(self.codebook.shape)} does not fit codes of {self.bits} bits. "
                f"Give 1 to {2**self.bits} values."
            )
        if not np.issubdtype(self.indices.dtype, np.integer):
            raise CodebookError(f"indices are {self.indices.dtype}. Give integers.")
        if self.indices.size and not 0 <= self.indices.min() <= self.indices.max() < len(self.codebook):
            raise CodebookError(
                f"indices run from {self.indices.min()} to {self.indices.max()}; the codebook has "
                f"{len(self.codebook)} values. Point into the codebook."
            )

    @property
    def width(self) -> int:
        """Bits that a stored code takes."""
        return next(width for width in WIDTHS if width >= self.bits)

    def weight(self) -> Array:
        """The float32 weight that these codes stand for."""
        values = self.codebook.astype(np.float32)[self.indices]
        return values if self.scale is None else values * self.scale.astype(np.float32)


def store_as_codes(model: OnnxModel, codes: Mapping[str, Codes]) -> OnnxModel:
    """The graph with the named initializers replaced by codes that it expands itself.

    Uses Cast, Gather, Reshape, Slice and Mul of opset 11 or later. Codes shorter than a byte are packed, and
    unpacked by a table of all bytes that the whole graph shares.

    Args:
        model: The graph; it is not changed.
        codes: What to store, by the initializer's name. The expanded weight keeps that name.

    Raises:
        CodebookError: There is no such initializer, or its shape or dtype is another.
    """
    graph = model.proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for name, each in codes.items():
        _check(name, each, stored)
    nodes: list[onnx.NodeProto] = []
    tensors: dict[str, Array] = {}
    for name, each in codes.items():
        nodes += _expansion(name, each, tensors)
    return _with(
        model,
        nodes=[*nodes, *graph.node],
        initializers=[
            *(tensor for name, tensor in stored.items() if name not in codes and name not in tensors),
            *(numpy_helper.from_array(array, name) for name, array in tensors.items()),
        ],
    )


def stored_codes(model: OnnxModel) -> dict[str, Codes]:
    """What a graph stores as codes, by the weight's name: what `store_as_codes` was given."""
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    found = {}
    for name in stored:
        match = _CODES.fullmatch(name)
        if match is not None and f"{name}.codebook" in stored:
            found[match["weight"]] = _read(name, int(match["width"]), stored)
    return found


def expanded(model: OnnxModel) -> OnnxModel:
    """The graph with plain weights in place of codes, for whatever reads weights.

    It computes the same. A graph without codes is returned as it is.
    """
    codes = stored_codes(model)
    if not codes:
        return model
    graph = model.proto.graph
    parts = tuple(f"{name}.codes{each.width}" for name, each in codes.items())
    weights = [numpy_helper.from_array(each.weight(), name) for name, each in codes.items()]
    own = [tensor for tensor in graph.initializer if not _belongs(tensor.name, parts)]
    return _with(
        model,
        nodes=[node for node in graph.node if not _belongs(node.name, parts)],
        initializers=[*own, *weights],
    )


def _check(name: str, codes: Codes, stored: Mapping[str, onnx.TensorProto]) -> None:
    if name not in stored:
        raise CodebookError(f'there is no initializer "{name}". Name one of {", ".join(sorted(stored))}.')
    tensor = stored[name]
    if tensor.data_type != TensorProto.FLOAT:
        held = TensorProto.DataType.Name(tensor.data_type).lower()
        raise CodebookError(f'"{name}" is stored as {held}. Store codes of float32 weights.')
    if list(codes.indices.shape) != list(tensor.dims):
        raise CodebookError(
            f'codes of "{name}" have shape {list(codes.indices.shape)}; the weight has {list(tensor.dims)}. '
            "Give one code per weight."
        )


def _expansion(name: str, codes: Codes, tensors: dict[str, Array]) -> list[onnx.NodeProto]:
    """Nodes that make the weight; what they read is added to `tensors`."""
    width, shape = codes.width, codes.indices.shape
    prefix = f"{name}.codes{width}"
    tensors[prefix] = packed(codes.indices, width)
    tensors[f"{prefix}.codebook"] = codes.codebook.astype(np.float32)
    steps: list[tuple[str, list[str], dict[str, Any]]] = []
    if width < _BYTE:
        table = f"unpack{width}"
        tensors[table] = _unpacking(width)
        steps += [
            ("Cast", [prefix], {"to": TensorProto.INT32}),
            ("Gather", [table, "*"], {}),
        ]
    steps += [
        ("Cast", ["*" if steps else prefix], {"to": TensorProto.INT32}),
        ("Gather", [f"{prefix}.codebook", "*"], {}),
    ]
    if width < _BYTE:
        tensors[f"{prefix}.shape"] = np.array(shape, np.int64)
        if codes.indices.size % (_BYTE // width):
            flat, first, length = f"{prefix}.flat", f"{prefix}.first", f"{prefix}.length"
            tensors[flat] = np.array([-1], np.int64)
            tensors[first] = np.array([0], np.int64)
            tensors[length] = np.array([codes.indices.size], np.int64)
            steps += [("Reshape", ["*", flat], {}), ("Slice", ["*", first, length], {})]
        steps.append(("Reshape", ["*", f"{prefix}.shape"], {}))
    if codes.scale is not None:
        tensors[f"{prefix}.scale"] = codes.scale.astype(np.float32)
        steps.append(("Mul", ["*", f"{prefix}.scale"], {}))
    return _chain(prefix, name, steps)


def _chain(
    prefix: str, result: str, steps: list[tuple[str, list[str], dict[str, Any]]]
) -> list[onnx.NodeProto]:
    """Nodes of which each takes at "*" what the one before it gives; the last gives `result`."""
    nodes, before = [], ""
    for number, (kind, inputs, attributes) in enumerate(steps):
        label = f"{prefix}.{number}"
        given = result if number == len(steps) - 1 else label
        taken = [before if each == "*" else each for each in inputs]
        nodes.append(helper.make_node(kind, taken, [given], name=label, **attributes))
        before = given
    return nodes


def packed(indices: Array, width: int) -> Array:
    """Codes as they are stored: bytes or 16-bit numbers of the same shape, or several in each byte of a row.

    The first code of a byte stands in its lowest bits; the last byte is filled up with zeros.
    """
    if width >= _BYTE:
        return indices.astype(np.uint8 if width == _BYTE else np.uint16)
    each = _BYTE // width
    flat = indices.reshape(-1).astype(np.uint8)
    rows = np.pad(flat, (0, -len(flat) % each)).reshape(-1, each)
    return np.asarray(np.bitwise_or.reduce(rows << _shifts(width), axis=1))


def _unpacking(width: int) -> Array:
    """The codes in each byte, of shape `(256, codes)`."""
    every = np.arange(2**_BYTE, dtype=np.uint8)[:, None]
    return (every >> _shifts(width)) & np.uint8(2**width - 1)


def _shifts(width: int) -> Array:
    return np.arange(0, _BYTE, width, dtype=np.uint8)


def _read(name: str, width: int, stored: Mapping[str, onnx.TensorProto]) -> Codes:
    def tensor(end: str) -> Array:
        return numpy_helper.to_array(stored[f"{name}{end}"])

    indices, book = tensor(""), tensor(".codebook")
    if width < _BYTE:
        shape = tensor(".shape")
        indices = _unpacking(width)[indices].reshape(-1)[: int(np.prod(shape))].reshape(shape)
    scale = tensor(".scale") if f"{name}.scale" in stored else None
    return Codes(indices, book, max(1, (len(book) - 1).bit_length()), scale)


def _belongs(name: str, parts: tuple[str, ...]) -> bool:
    return any(name == part or name.startswith(f"{part}.") for part in parts)


def _with(model: OnnxModel, nodes: list[onnx.NodeProto], initializers: list[onnx.TensorProto]) -> OnnxModel:
    """A copy of the model with these nodes and initializers."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    # Before IR version 4 initializers are inputs too.
    held = {tensor.name for tensor in graph.initializer}
    inputs = [value for value in graph.input if value.name not in held]
    fields = {"node": nodes, "initializer": initializers, "input": inputs}
    for name, values in fields.items():
        graph.ClearField(name)
        getattr(graph, name).extend(values)
    proto.ir_version = max(proto.ir_version, 4)
    return replace(model, proto=proto)
