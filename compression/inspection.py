"""What is inside an ONNX artifact: parameters, operations and number formats, counted on the graph itself.

Works on plain, float16, QDQ, QLinear and dynamically quantized graphs, and on weights stored as codes.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx
import onnx_ir as ir

from compression.base import CompressionError
from compression.codebook import expanded, stored_codes
from compression.data import Split
from compression.inference import infer
from compression.model import OnnxModel
from compression.nbits import packed_weights, with_plain_products
from compression.probing import constants
from compression.signature import Array, Signature, TensorSpec

FLOATS = {ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.BFLOAT16, ir.DataType.DOUBLE}


class InspectionError(CompressionError):
    """A count cannot be established on this graph."""


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
}

# Operators that hold nearly all arithmetic -> positions of their data and their weight.
_HEAVY = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "MatMulNBits": (0, 1),
}
_FLOAT_HEAVY = {"Conv", "ConvTranspose", "Gemm", "MatMul", "MatMulNBits"}


def count(model: OnnxModel, axes: Mapping[str, int] | None = None) -> Counts:
    """All counts of an artifact at once; `axes` as for `flops`.

    Raises:
        InspectionError: A symbolic axis has no length, or a shape cannot be inferred.
    """
    return Counts(
        parameters(model), nonzero_parameters(model), flops(model, axes), quantized_operators(model)
    )


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
    return dict(Counter(node.op_type for node in _nodes(model.proto) if node.op_type in _HEAVY))


def weighted_operators(model: OnnxModel) -> dict[str, int]:
    """How many of them, bodies of Scan, Loop and If left out, have an operand that no input changes."""
    graph = model.proto.graph
    known = constants(graph)
    return dict(
        Counter(
            node.op_type
            for node in graph.node
            if node.op_type in _HEAVY and any(node.input[at] in known for at in _HEAVY[node.op_type])
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


def hidden_operators(model: OnnxModel) -> dict[str, int]:
    """Heavy operators by type when all of them lie in bodies of Scan, Loop or If, which few passes enter."""
    outer = any(node.op_type in _HEAVY for node in model.proto.graph.node)
    return {} if outer else heavy_operators(model)


def flops(model: OnnxModel, axes: Mapping[str, int] | None = None) -> int:
    """Floating or integer operations for one row: twice the multiply-adds of all heavy operators.

    Every branch of an `If` counts, and the body of a `Loop` once: how often it runs, the data decide. Where a
    shape changes from round to round, an operator of the body counts as one application of its weight, and a
    product of two activations, which has none, not at all.

    Args:
        model: The artifact.
        axes: Lengths of symbolic axes other than `batch`, such as `{"sequence": 128}`.

    Raises:
        InspectionError: A symbolic axis has no length, or a shape cannot be inferred.
    """
    proto = _with_fixed_axes(_plain(model), {"batch": 1, **(axes or {})})
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    graph = ir.from_proto(inferred).graph
    _measure_unknown(graph, proto, model.signature)
    return 2 * sum(_multiply_adds(node, graph) for node in graph.all_nodes() if node.op_type in _HEAVY)


def _plain(model: OnnxModel) -> OnnxModel:
    """The graph with float32 weights in place of codes and packed ones."""
    return expanded(with_plain_products(model))


def _nodes(proto: onnx.ModelProto) -> Iterator[ir.Node]:
    return iter(ir.from_proto(proto).graph.all_nodes())


def _weights(model: OnnxModel) -> Iterator[tuple[Array, Array | int]]:
    """Every stored weight with the value that means zero, of a shape that broadcasts to it."""
    for value in _constants(ir.from_proto(_plain(model).proto)):
        tensor = value.const_value
        if tensor is None or tensor.dtype == ir.DataType.STRING:
            continue
        if tensor.dtype in FLOATS:
            # A scalar is a constant of the formula, such as an epsilon, not something learned.
            if len(tensor.shape) > 0 and not _is_encoding(value):
                yield tensor.numpy(), 0
            continue
        for node, position in value.uses():
            layout = _LAYOUTS.get(node.op_type)
            if layout is not None and position in layout.weights:
                yield tensor.numpy(), _zero_point(node, layout.weights[position], tensor.numpy().shape)
                break


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


def _zero_point(node: ir.Node, position: int, shape: tuple[int, ...]) -> Array | int:
    value = _input(node, position)
    if value is None or value.const_value is None:
        return 0
    zero = value.const_value.numpy()
    if zero.size == 1:
        return zero.reshape(())
    axis = node.attributes["axis"].as_int() if "axis" in node.attributes else 1
    rank = len(shape)
    if "block_size" in node.attributes and (block := node.attributes["block_size"].as_int()):
        return np.repeat(zero, block, axis=axis).take(range(shape[axis]), axis=axis)
    if node.op_type != "DequantizeLinear":
        axis = 0 if "Conv" in node.op_type else rank - 1
    return zero.reshape([-1 if index == axis % rank else 1 for index in range(rank)])


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if 0 <= position < len(node.inputs) else None


def _is_quantized(node: ir.Node) -> bool:
    if node.op_type not in _HEAVY:
        return False
    if node.op_type not in _FLOAT_HEAVY:
        return True
    operands = [_input(node, position) for position in _HEAVY[node.op_type]]
    producers = [None if operand is None else operand.producer() for operand in operands]
    return all(node is not None and node.op_type == "DequantizeLinear" for node in producers)


def _with_fixed_axes(model: OnnxModel, axes: Mapping[str, int]) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    # What was inferred earlier is in terms of the symbolic axes.
    del proto.graph.value_info[:]
    for value, spec in zip(proto.graph.input, model.signature.inputs, strict=True):
        for dim, axis in zip(value.type.tensor_type.shape.dim, spec.shape, strict=True):
            if axis not in axes and isinstance(axis, str):
                raise InspectionError(f'axis "{axis}" has no length. Give one in `axes`.')
            dim.dim_value = axes[axis] if isinstance(axis, str) else axis
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def _measure_unknown(graph: ir.Graph, proto: onnx.ModelProto, signature: Signature) -> None:
    """Runs the graph on zeros for the shapes that inference does not know, such as those behind a Loop.

    Those in the body of a Scan are the same in every round: the body gives them out.
    """
    unknown = _unknown_operands(graph)
    rounds: dict[str, ir.Value] = {}
    for node, written in zip(graph, proto.graph.node, strict=True):
        if node.op_type == "Scan":
            for name, value in _unknown_operands(node.attributes["body"].as_graph()).items():
                rounds[_given_out(written, name)] = value
    if not unknown and not rounds:
        return
    known = {value.name for value in proto.graph.output}
    asked = (*unknown, *rounds)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in known)
    # The axes are fixed by now, so that the shapes of the inputs are read from the graph.
    zeros = {
        value.name: np.zeros(
            [dim.dim_value for dim in value.type.tensor_type.shape.dim],
            onnx.helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type),
        )
        for value in proto.graph.input
    }
    outputs = tuple(TensorSpec(name, "float32", ()) for name in asked)
    try:
        arrays = infer(OnnxModel(proto, Signature(signature.inputs, outputs)), Split(zeros), 1)
    except Exception as error:  # onnxruntime's errors have no common base
        raise InspectionError(f"shapes cannot be inferred, and the graph does not run: {error}") from error
    for name, array in zip(asked, arrays, strict=True):
        if name in unknown:
            unknown[name].shape = ir.Shape(array.shape)
        else:
            rounds[name].shape = ir.Shape(array.shape[1:])


def _unknown_operands(graph: ir.Graph) -> dict[str, ir.Value]:
    """What heavy operators of a graph, but for its bodies, read and write in a shape that is not known."""
    operands = [
        value
        for node in graph
        if node.op_type in _HEAVY
        for value in (*(_input(node, position) for position in _HEAVY[node.op_type]), node.outputs[0])
    ]
    return {str(value.name): value for value in operands if value is not None and not _is_known(value)}


def _given_out(scan: onnx.NodeProto, name: str) -> str:
    """Has a Scan give out a tensor of its body, stacked over the rounds; the name that it has there."""
    for attribute in scan.attribute:
        if attribute.name == "body":
            attribute.g.output.append(onnx.ValueInfoProto(name=name))
        elif attribute.name in ("scan_output_axes", "scan_output_directions"):
            attribute.ints.append(0)
    stacked = f"{scan.output[0]}/rounds/{name}"
    scan.output.append(stacked)
    return stacked


def _is_known(value: ir.Value) -> bool:
    constant = value.const_value is not None
    return constant or (value.shape is not None and all(isinstance(dim, int) for dim in value.shape))


def _multiply_adds(node: ir.Node, graph: ir.Graph) -> int:
    try:
        return _counted(node)
    except InspectionError:
        if node.graph is graph:
            raise
        weight = _input(node, _HEAVY[node.op_type][1])
        return 0 if weight is None or weight.const_value is None else int(weight.const_value.size)


def _counted(node: ir.Node) -> int:
    data_position, weight_position = _HEAVY[node.op_type]
    data, weight = _shape(node, data_position), _shape(node, weight_position)
    if node.op_type == "ConvTranspose":
        return math.prod(data) * math.prod(weight[1:])
    if "Conv" in node.op_type:
        return math.prod(_known(node, node.outputs[0])) * math.prod(weight[1:])
    transposed = "transA" in node.attributes and node.attributes["transA"].as_int() == 1
    inner = data[-2] if transposed else data[-1]
    return math.prod(_known(node, node.outputs[0])) * inner


def _shape(node: ir.Node, position: int) -> list[int]:
    return _known(node, _input(node, position))


def _known(node: ir.Node, value: ir.Value | None) -> list[int]:
    if value is not None and value.const_value is not None:
        return list(value.const_value.numpy().shape)
    shape = None if value is None else value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        raise InspectionError(
            f'a shape at {node.op_type} "{node.name}" cannot be inferred. Build the graph of standard '
            "operators, or with shapes that follow from its inputs."
        )
    return [int(dim) for dim in shape if isinstance(dim, int)]
