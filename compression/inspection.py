"""What is inside an ONNX artifact: parameters, operators and number formats, counted on the graph itself.

Works on plain, float16, QDQ, QLinear and dynamically quantized graphs, and on weights stored as codes.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from compression.codebook import stored_codes
from compression.model import OnnxModel
from compression.nbits import packed_weights
from compression.operations import HEAVY, flops, operand, plain
from compression.probing import constants
from compression.signature import Array

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


@dataclass(frozen=True)
class Counts:
    """The figures of an artifact that no runtime changes.

    Attributes:
        parameters: Stored weights.
        nonzero_parameters: Stored weights that are not zero.
        flops: Operations for one row.
        quantized_operators: Operators that compute on integers, by type.
    """

    parameters: int
    nonzero_parameters: int
    flops: int
    quantized_operators: dict[str, int]


@dataclass(frozen=True)
class _Layout:
    """Where an operator keeps quantized weights and what belongs to their encoding.

    Attributes:
        weights: Position of each quantized weight or bias -> position of its zero point, -1 for none.
        encoding: Positions of scales and zero points.
    """

    weights: Mapping[int, int]
    encoding: frozenset[int]


_RECURRENT = "DynamicQuantizeLSTM"
# Trees, linear models and scalers, which keep what they learned in attributes.
_CLASSICAL = "ai.onnx.ml"
_VIEWS = {"Gather", "Identity", "Reshape", "Squeeze", "Transpose", "Unsqueeze"}
_LAYOUTS = {
    "QuantizeLinear": _Layout({}, frozenset({1, 2})),
    "DequantizeLinear": _Layout({0: 2}, frozenset({1, 2})),
    "MatMulInteger": _Layout({1: 3}, frozenset({2, 3})),
    "ConvInteger": _Layout({1: 3}, frozenset({2, 3})),
    "QLinearConv": _Layout({3: 5, 8: -1}, frozenset({1, 2, 4, 5, 6, 7})),
    "QLinearMatMul": _Layout({3: 5}, frozenset({1, 2, 4, 5, 6, 7})),
    "QGemm": _Layout({3: 5, 6: -1}, frozenset({1, 2, 4, 5, 7, 8})),
    "DynamicQuantizeMatMul": _Layout({1: 3}, frozenset({2, 3})),
    "MatMulIntegerToFloat": _Layout({1: 5}, frozenset({2, 3, 4, 5})),
    _RECURRENT: _Layout({1: 9, 2: 11}, frozenset({8, 9, 10, 11})),
}

_HOST_DOMAIN = "com.microsoft.nchwc"
_FLOAT_HEAVY = {
    "Conv",
    "ConvTranspose",
    "Gemm",
    "MatMul",
    "FusedConv",
    "FusedGemm",
    "FusedMatMul",
    "MatMulNBits",
}


def count(model: OnnxModel, row: Mapping[str, Array] | None = None) -> Counts:
    """All counts of an artifact at once; `row` as for `flops`.

    Raises:
        UnknownShapeError: A symbolic axis has no length, or a shape cannot be inferred.
    """
    return Counts(parameters(model), nonzero_parameters(model), flops(model, row), quantized_operators(model))


def parameters(model: OnnxModel) -> int:
    """How many weights the graph stores: a float or an int8 weight is one, scales and shapes are none."""
    return sum(array.size for array, _ in _weights(model))


def nonzero_parameters(model: OnnxModel) -> int:
    """How many stored weights are not zero, an integer weight being zero at its zero point."""
    return sum(int(np.count_nonzero(array != zero)) for array, zero in _weights(model))


def weights_by_dtype(model: OnnxModel) -> dict[str, int]:
    """How many weights are stored in each number format, such as `{"int8": 126000, "float32": 10}`.

    Codes that point into a codebook count by their length in bits, as `codes4`.
    """
    count: Counter[str] = Counter()
    for array, _ in _weights(model):
        count[array.dtype.name] += array.size
    for codes in stored_codes(model).values():
        count["float32"] -= codes.indices.size  # what it expands to
        count[f"codes{codes.width}"] += codes.indices.size
    for bits, weights in packed_weights(model).items():
        count["float32"] -= weights  # what they are in a plain product
        count[f"int{bits}"] += weights
    return {dtype: number for dtype, number in count.items() if number}


def heavy_operators(model: OnnxModel) -> dict[str, int]:
    """How many operators of each type do matrix products or convolutions, in any number format."""
    return dict(Counter(node.op_type for node in _nodes(model.proto) if node.op_type in HEAVY))


def weighted_operators(model: OnnxModel) -> dict[str, int]:
    """How many of them, bodies of Scan, Loop and If left out, have an operand that no input changes."""
    graph = model.proto.graph
    known = constants(graph)
    return dict(
        Counter(
            node.op_type
            for node in graph.node
            if node.op_type in HEAVY and any(node.input[at] in known for at in HEAVY[node.op_type])
        )
    )


def quantized_operators(model: OnnxModel) -> dict[str, int]:
    """How many of those compute on integers: integer types, and float types between DequantizeLinear."""
    return dict(Counter(node.op_type for node in _nodes(model.proto) if _is_quantized(node)))


def quantization_marks(model: OnnxModel) -> dict[str, int]:
    """How many operators of each type go between floats and integers: none in a float model.

    Weights alone may be quantized, so that nothing computes on integers and yet nothing is left to quantize.
    """
    marks = _LAYOUTS.keys() | {"DynamicQuantizeLinear", "MatMulNBits"}
    return dict(Counter(node.op_type for node in _nodes(model.proto) if node.op_type in marks))


def host_operators(model: OnnxModel) -> dict[str, int]:
    """How many operators of each type onnxruntime has laid out for one processor, in a file that it saved."""
    return dict(Counter(node.op_type for node in _nodes(model.proto) if node.domain == _HOST_DOMAIN))


def sequence_operators(model: OnnxModel) -> dict[str, int]:
    """How many operators of each type pass sequences of tensors on, as loops over rows do."""
    return dict(Counter(node.op_type for node in _nodes(model.proto) if "Sequence" in node.op_type))


def hidden_operators(model: OnnxModel) -> dict[str, int]:
    """Heavy operators by type when all of them lie in bodies of Scan, Loop or If, which few passes enter."""
    outer = any(node.op_type in HEAVY for node in model.proto.graph.node)
    return {} if outer else heavy_operators(model)


def _nodes(proto: onnx.ModelProto) -> Iterator[ir.Node]:
    return iter(ir.from_proto(proto).graph.all_nodes())


def _weights(model: OnnxModel) -> Iterator[tuple[Array, Array | int]]:
    """Every stored weight with the value that means zero, of a shape that broadcasts to it."""
    graph = ir.from_proto(plain(model).proto)
    for node in graph.graph.all_nodes():
        if node.domain == _CLASSICAL:
            held = (each for each in node.attributes.values() if each.type == ir.AttributeType.FLOATS)
            yield from ((np.asarray(each.as_floats(), np.float32), 0) for each in held)
    for value in _constants(graph):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.dtype in FLOATS:
            # A scalar is a constant of the formula, such as an epsilon, not something learned.
            if len(tensor.shape) > 0 and not _is_encoding(value):
                yield tensor.numpy(), 0
            continue
        for node, position in _readers(value):
            layout = _LAYOUTS.get(node.op_type)
            if layout is not None and position in layout.weights:
                shape = tensor.numpy().shape if operand(node, position) is value else None
                yield tensor.numpy(), _zero_point(node, layout.weights[position], shape)
                break


def _readers(value: ir.Value) -> Iterator[tuple[ir.Node, int]]:
    """Who reads a value and where, looked for behind what takes parts of it or shapes it anew."""
    for node, position in value.uses():
        if node.op_type in _VIEWS and position == 0:
            yield from _readers(node.outputs[0])
        else:
            yield node, position


def _constants(model: ir.Model) -> Iterator[ir.Value]:
    for graph in model.graphs():
        yield from graph.initializers.values()
        for node in graph:
            if node.op_type == "Constant" and "value" in node.attributes:
                value = node.outputs[0]
                value.const_value = node.attributes["value"].as_tensor()
                yield value


def _is_encoding(value: ir.Value) -> bool:
    uses = value.uses()
    return bool(uses) and all(_encodes(node, position) for node, position in uses)


def _encodes(node: ir.Node, position: int) -> bool:
    if node.op_type in _LAYOUTS:
        return position in _LAYOUTS[node.op_type].encoding
    if node.op_type != "Mul":
        return False
    # Dynamic quantization multiplies the weight's scale with the scale that it measured on the input.
    other = node.inputs[1 - position]
    producer = None if other is None else other.producer()
    return producer is not None and producer.op_type == "DynamicQuantizeLinear"


def _zero_point(node: ir.Node, position: int, shape: tuple[int, ...] | None) -> Array | int:
    """What means zero, of a shape that broadcasts to the weight's: None for one that a node reshaped."""
    value = operand(node, position)
    if value is None or value.const_value is None:
        return 0
    zero = value.const_value.numpy()
    if zero.size == 1:
        return zero.reshape(())
    if shape is None:
        return 0  # symmetric, as tables that are quantized by the row are
    if node.op_type == _RECURRENT:  # by direction, and perhaps by unit
        return zero.reshape(len(zero), 1, -1)
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    rank = len(shape)
    if "block_size" in node.attributes and (block := node.attributes["block_size"].as_int()):
        return np.repeat(zero, block, axis=axis).take(range(shape[axis]), axis=axis)
    if node.op_type != "DequantizeLinear":
        turned = "transB" in node.attributes and node.attributes["transB"].as_int() == 1
        axis = 0 if turned or "Conv" in node.op_type else rank - 1
    return zero.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def _is_quantized(node: ir.Node) -> bool:
    if node.op_type not in HEAVY:
        return node.op_type == _RECURRENT
    if node.op_type not in _FLOAT_HEAVY:
        return True
    operands = [operand(node, position) for position in HEAVY[node.op_type]]
    producers = [None if operand is None else operand.producer() for operand in operands]
    return all(node is not None and node.op_type == "DequantizeLinear" for node in producers)
