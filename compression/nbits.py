"""Matrix products with packed four-bit weights, as onnxruntime's operator MatMulNBits keeps them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.model import OnnxModel
from compression.signature import Array

OPERATOR = "MatMulNBits"
BITS = 4
_MIDDLE = 8
_BIAS = 5  # position of what is added, if it is


def packed_products(model: OnnxModel) -> list[onnx.NodeProto]:
    """The products with four-bit weights, in order."""
    return [
        node for node in model.proto.graph.node if node.op_type == OPERATOR and _number(node, "bits") == BITS
    ]


def packed_weights(model: OnnxModel) -> int:
    """How many weights these products have."""
    return sum(_number(node, "K") * _number(node, "N") for node in packed_products(model))


def with_plain_products(model: OnnxModel) -> OnnxModel:
    """The graph with float32 products in their place, for whatever reads weights; it computes about the same.

    A graph without such products is returned as it is.
    """
    products = packed_products(model)
    if not products:
        return model
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    gone = {name for node in products for name in node.input[1:_BIAS]}
    outputs = {node.output[0] for node in products}
    weights: dict[str, Array] = {}
    nodes = []
    for node in graph.node:
        if node.output[0] in outputs:
            weights[node.input[1]] = _weight(node, stored)
            bias = node.input[_BIAS] if len(node.input) > _BIAS else ""
            product = f"{node.output[0]} without bias" if bias else node.output[0]
            nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=node.name))
            if not bias:
                continue
            node = helper.make_node("Add", [product, bias], node.output)
        nodes.append(node)
    tensors = [tensor for name, tensor in stored.items() if name not in gone]
    tensors += [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(tensors)
    return replace(model, proto=proto)


def _weight(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Array:
    """The weight `(in, out)` of a product as float32."""
    packed, scales, *more = (numpy_helper.to_array(stored[name]) for name in node.input[1:4] if name)
    length, width = _number(node, "K"), _number(node, "N")
    blocks = packed.shape[1]
    codes = _nibbles(packed).reshape(width, blocks, -1).astype(np.float32)
    scales = scales.reshape(width, blocks, 1).astype(np.float32)
    zeros: Array | int = _MIDDLE
    if more and more[0].dtype == np.uint8:
        zeros = _nibbles(more[0].reshape(width, -1)).reshape(width, -1)[:, :blocks, None]
    elif more:
        zeros = more[0].reshape(width, blocks, 1).astype(np.float32)
    weight = ((codes - zeros) * scales).reshape(width, -1)[:, :length]
    return np.ascontiguousarray(weight.T, np.float32)


def _nibbles(packed: Array) -> Array:
    """Two numbers of each byte, the lower first, along a new last axis."""
    return np.stack([packed & 0xF, packed >> BITS], axis=-1)


def _number(node: onnx.NodeProto, name: str) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), 0)
