"""How many operations a graph does for one row, counted on the graph itself."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import numpy as np
import onnx
import onnx_ir as ir

from compression.base import CompressionError
from compression.codebook import expanded
from compression.data import Split
from compression.inference import infer
from compression.model import OnnxModel
from compression.nbits import with_plain_products
from compression.signature import Array, Signature, TensorSpec

# Products and convolutions, which hold nearly all arithmetic -> positions of their data and their weight.
HEAVY: dict[str, tuple[int, ...]] = {
    "Conv": (0, 1),
    "ConvTranspose": (0, 1),
    "Gemm": (0, 1),
    "MatMul": (0, 1),
    "FusedConv": (0, 1),
    "FusedGemm": (0, 1),
    "FusedMatMul": (0, 1),
    "MatMulInteger": (0, 1),
    "ConvInteger": (0, 1),
    "QLinearConv": (0, 3),
    "QLinearMatMul": (0, 3),
    "QGemm": (0, 3),
    "DynamicQuantizeMatMul": (0, 1),
    "MatMulIntegerToFloat": (0, 1),
    "MatMulNBits": (0, 1),
}
# Others that multiply -> positions of what tells how often.
_OTHERS: dict[str, tuple[int, ...]] = {
    "LSTM": (0, 1, 2),
    "GRU": (0, 1, 2),
    "RNN": (0, 1, 2),
    "DynamicQuantizeLSTM": (0, 1, 2),
    "Attention": (0, 1, 2),
    "MultiHeadAttention": (0, 1, 2),
}
_CONTRIBUTED = "com.microsoft"


class UnknownShapeError(CompressionError):
    """The shapes that a count depends on cannot be established on this graph."""


def flops(model: OnnxModel, row: Mapping[str, Array] | None = None) -> int:
    """Floating or integer operations for one row: twice the multiply-adds of all operators that have many.

    Those are products, convolutions, recurrent layers, attention and Einsum. Every branch of an `If` counts,
    and the body of a `Loop` once: how often it runs, the data decide. Where a shape changes from round to
    round, an operator of the body counts as one application of its weights, and a product of two
    activations, which has none, not at all.

    Args:
        model: The artifact.
        row: One real row, arrays `(1, ...)` by input name, which decides the lengths of symbolic axes and of
            whatever the data size; zeros of the declared shape where there is none.

    Raises:
        UnknownShapeError: A symbolic axis has no length, or a shape cannot be inferred.
    """
    row = row or _zeros(model)
    proto = _with_fixed_axes(plain(model), row)
    inferred = onnx.shape_inference.infer_shapes(proto, data_prop=True)
    graph = ir.from_proto(inferred).graph
    _measure_unknown(graph, proto, model.signature, row)
    return 2 * sum(_multiply_adds(node, graph) for node in graph.all_nodes())


def plain(model: OnnxModel) -> OnnxModel:
    """The graph with float32 weights in place of codes and packed ones."""
    return expanded(with_plain_products(model))


def operand(node: ir.Node, position: int) -> ir.Value | None:
    """What a node reads at a position; None where that is left out."""
    return node.inputs[position] if 0 <= position < len(node.inputs) else None


def _operands(node: ir.Node) -> list[ir.Value]:
    """What decides how often a node multiplies: its data first, then its weights."""
    if node.op_type == "Einsum":
        return [value for value in node.inputs if value is not None]
    positions = HEAVY.get(node.op_type) or _OTHERS.get(node.op_type) or ()
    return [value for value in (operand(node, position) for position in positions) if value is not None]


def _zeros(model: OnnxModel) -> dict[str, Array]:
    """A row of zeros.

    Raises:
        UnknownShapeError: A symbolic axis has no length.
    """
    zeros = {}
    for spec in model.signature.inputs:
        lengths = [axis for axis in spec.row_shape if isinstance(axis, int)]
        if len(lengths) < len(spec.row_shape):
            free = next(axis for axis in spec.row_shape if isinstance(axis, str))
            raise UnknownShapeError(f'axis "{free}" has no length. Give a row.')
        zeros[spec.name] = np.zeros((1, *lengths), spec.dtype)
    return zeros


def _with_fixed_axes(model: OnnxModel, row: Mapping[str, Array]) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    # What was inferred earlier is in terms of the symbolic axes.
    del proto.graph.value_info[:]
    for value in proto.graph.input:
        if value.name in row:
            for dim, length in zip(value.type.tensor_type.shape.dim, row[value.name].shape, strict=True):
                dim.dim_value = length
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    return proto


def _measure_unknown(
    graph: ir.Graph, proto: onnx.ModelProto, signature: Signature, row: Mapping[str, Array]
) -> None:
    """Runs the graph for the shapes that inference does not know, such as those behind a Loop.

    Those in the body of a Scan are the same in every round: the body gives them out.
    """
    unknown = _unknown_shapes(graph)
    rounds: dict[str, ir.Value] = {}
    for node, written in zip(graph, proto.graph.node, strict=True):
        if node.op_type == "Scan":
            for name, value in _unknown_shapes(node.attributes["body"].as_graph()).items():
                rounds[_given_out(written, name)] = value
    if not unknown and not rounds:
        return
    known = {value.name for value in proto.graph.output}
    asked = (*unknown, *rounds)
    proto.graph.output.extend(onnx.ValueInfoProto(name=name) for name in asked if name not in known)
    outputs = tuple(TensorSpec(name, "float32", ()) for name in asked)
    try:
        arrays = infer(OnnxModel(proto, Signature(signature.inputs, outputs)), Split(row), 1)
    except Exception as error:  # onnxruntime's errors have no common base
        raise UnknownShapeError(f"shapes cannot be inferred, and the graph does not run: {error}") from error
    for name, array in zip(asked, arrays, strict=True):
        if name in unknown:
            unknown[name].shape = ir.Shape(array.shape)
        else:
            rounds[name].shape = ir.Shape(array.shape[1:])


def _unknown_shapes(graph: ir.Graph) -> dict[str, ir.Value]:
    """What operators that count read and write in a shape that is not known, those of bodies left out."""
    values = [
        value
        for node in graph
        if (read := _operands(node))
        for value in (*read, node.outputs[0])
        if value.name
    ]
    return {str(value.name): value for value in values if not _is_known(value)}


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
    read = _operands(node)
    if not read:
        return 0
    try:
        return _COUNTS.get(node.op_type, _of_product)(node, [_shape(node, value) for value in read])
    except UnknownShapeError:
        if node.graph is graph:
            raise
        weights = (value.const_value for value in read[1:])
        return sum(int(weight.size) for weight in weights if weight is not None)


Shapes = list[list[int]]


def _of_product(node: ir.Node, shapes: Shapes) -> int:
    data = shapes[0]
    inner = data[-2] if _number(node, "transA") else data[-1]
    return math.prod(_shape(node, node.outputs[0])) * inner


def _of_convolution(node: ir.Node, shapes: Shapes) -> int:
    return math.prod(_shape(node, node.outputs[0])) * math.prod(shapes[1][1:])


def _of_transposed_convolution(node: ir.Node, shapes: Shapes) -> int:
    data, weight = shapes
    return math.prod(data) * math.prod(weight[1:])


def _of_recurrent_layer(node: ir.Node, shapes: Shapes) -> int:
    """Both weights are applied in every step, those of each direction."""
    data, *weights = shapes
    return math.prod(data[:-1]) * sum(math.prod(weight) for weight in weights)


def _of_attention(node: ir.Node, shapes: Shapes) -> int:
    """Queries with keys, and what comes of it with values; onnxruntime's own has the projections inside."""
    if node.domain == _CONTRIBUTED and node.op_type == "Attention":
        (*rows, length, _), weight = shapes[:2]
        sizes = node.attributes.get("qkv_hidden_sizes")
        wide, _, deep = sizes.as_ints() if sizes else [weight[-1] // 3] * 3
        return math.prod(rows) * length * (math.prod(weight) + length * (wide + deep))
    if len(shapes) == 1:  # query, key and value in one: (batch, length, heads, 3, width)
        batch, length, heads, _, width = shapes[0]
        return batch * length * length * heads * 2 * width
    query, key, value = shapes[0], shapes[1], shapes[-1]
    flat = len(query) == 3  # the heads side by side, of which several may share keys and values
    shared = _number(node, "q_num_heads", 1) // _number(node, "kv_num_heads", 1) if flat else 1
    return math.prod(query) * key[-2] + math.prod(query[:-1]) * key[-2] * value[-1] * max(shared, 1)


def _of_einsum(node: ir.Node, shapes: Shapes) -> int:
    """As if all operands were multiplied at once, over every index."""
    equation = node.attributes["equation"].as_string().replace(" ", "")
    lengths: dict[str, int] = {}
    for term, shape in zip(equation.partition("->")[0].split(","), shapes, strict=True):
        before, dots, after = term.partition("...")
        covered = range(len(shape) - len(before) - len(after)) if dots else ()
        # Axes under an ellipsis are aligned from the right, and broadcast.
        names = [*before, *(f"...{place}" for place in reversed(covered)), *after]
        for name, length in zip(names, shape, strict=True):
            lengths[name] = max(length, lengths.get(name, 1))
    return math.prod(lengths.values()) * (len(shapes) - 1)


_COUNTS: dict[str, Callable[[ir.Node, Shapes], int]] = {
    **dict.fromkeys(("Conv", "FusedConv", "ConvInteger", "QLinearConv"), _of_convolution),
    "ConvTranspose": _of_transposed_convolution,
    **dict.fromkeys(("LSTM", "GRU", "RNN", "DynamicQuantizeLSTM"), _of_recurrent_layer),
    **dict.fromkeys(("Attention", "MultiHeadAttention"), _of_attention),
    "Einsum": _of_einsum,
}


def _number(node: ir.Node, attribute: str, usual: int = 0) -> int:
    return node.attributes[attribute].as_int() if attribute in node.attributes else usual


def _shape(node: ir.Node, value: ir.Value) -> list[int]:
    if value.const_value is not None:
        return list(value.const_value.numpy().shape)
    shape = value.shape
    if shape is None or not all(isinstance(dim, int) for dim in shape):
        raise UnknownShapeError(
            f'a shape at {node.op_type} "{node.name}" cannot be inferred. Build the graph of standard '
            "operators, or with shapes that follow from its inputs."
        )
    return [int(dim) for dim in shape if isinstance(dim, int)]
