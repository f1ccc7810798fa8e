"""The weights that a graph's layers really compute with, however they are stored."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir
from onnx.reference import ReferenceEvaluator

from compression.model import OnnxModel
from compression.nbits import with_plain_products
from compression.signature import Array


@dataclass(frozen=True)
class LayerWeight:
    """The weight of one matrix product or convolution.

    Attributes:
        operator: Type of the operator.
        values: What is multiplied, the zero point of integers taken off.
        input_axis: The axis of `values` that runs over input channels.
    """

    operator: str
    values: Array
    input_axis: int


# Operator -> positions of its weight and of the weight's zero point, -1 for none.
_WEIGHTS: Mapping[str, tuple[int, int]] = {
    "Conv": (1, -1),
    "Gemm": (1, -1),
    "MatMul": (1, -1),
    "MatMulInteger": (1, 3),
    "ConvInteger": (1, 3),
    "QLinearConv": (3, 5),
    "QLinearMatMul": (3, 5),
    "QGemm": (3, 5),
    "DynamicQuantizeMatMul": (1, 3),
    "MatMulIntegerToFloat": (1, 5),
}


def layer_weights(model: OnnxModel) -> Iterator[LayerWeight]:
    """The weight of every operator that multiplies with constants, also of those that the graph computes."""
    for node in ir.from_proto(with_plain_products(model).proto).graph.all_nodes():
        if node.op_type in _WEIGHTS:
            position, zero_position = _WEIGHTS[node.op_type]
            values = _constant(_input(node, position))
            if values is not None:
                zero = _constant(_input(node, zero_position))
                yield LayerWeight(node.op_type, _centred(node, values, zero), _input_axis(node, values))


def _centred(node: ir.Node, values: Array, zero: Array | None) -> Array:
    if zero is None:
        return values
    if zero.size > 1 and "Conv" in node.op_type:
        zero = zero.reshape(-1, *[1] * (values.ndim - 1))
    return values.astype(np.int64) - zero.astype(np.int64)


def _input_axis(node: ir.Node, values: Array) -> int:
    if "Conv" in node.op_type:
        return 1
    if "transB" in node.attributes and node.attributes["transB"].as_int() == 1:
        return 1
    return values.ndim - 2


def _constant(value: ir.Value | None) -> Array | None:
    """The value if it is the same for every row; operators over constants are computed."""
    if value is None:
        return None
    if value.const_value is not None:
        return value.const_value.numpy()
    node = value.producer()
    if node is None or node.domain not in ("", "ai.onnx"):
        return None
    if node.op_type == "Constant":
        return node.attributes["value"].as_tensor().numpy() if "value" in node.attributes else None
    given: dict[str, Array] = {}
    for source in node.inputs:
        if source is not None:
            array = _constant(source)
            if array is None:
                return None
            given[str(source.name)] = array
    if not given:
        return None
    (computed,) = ReferenceEvaluator(ir.to_proto(node)).run([str(value.name)], given)
    return np.asarray(computed)


def _input(node: ir.Node, position: int) -> ir.Value | None:
    return node.inputs[position] if 0 <= position < len(node.inputs) else None
