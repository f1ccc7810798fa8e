"""Matrix products with packed weights of few bits, as onnxruntime's operator MatMulNBits keeps them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.model import OnnxModel
from compression.signature import Array

OPERATOR = "MatMulNBits"
BITS = 4  # where the operator does not say
_KNOWN = (4, 8)
_BIAS = 5  # position of what is added, if it is


def packed_products(model: OnnxModel, bits: tuple[int, ...] = _KNOWN) -> list[onnx.NodeProto]:
    """The products whose weights have so many bits, in order."""
    return [node for node in model.proto.graph.node if node.op_type == OPERATOR and _bits(node) in bits]


def packed_weights(model: OnnxModel) -> Counter[int]:
    """How many weights these products have, by bits; those that several share count once."""
    sizes = {
        node.input[1]: (_bits(node), _number(node, "K") * _number(node, "N"))
        for node in packed_products(model)
    }
    count: Counter[int] = Counter()
    for bits, weights in sizes.values():
        count[bits] += weights
    return count


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
    constants = {
        node.output[0]: each.t for node in graph.node if node.op_type == "Constant" for each in node.attribute
    }
    stored = constants | {tensor.name: tensor for tensor in graph.initializer}
    outputs = {node.output[0] for node in products}
    read = {name for node in graph.node if node.output[0] not in outputs for name in node.input}
    gone = {name for node in products for name in node.input[1:_BIAS] if name} - read
    weights: dict[str, Array] = {}
    nodes = []
    for node in graph.node:
        if node.output[0] in gone:
            continue
        if node.output[0] in outputs:
            weights[node.input[1]] = _weight(node, stored)
            bias = node.input[_BIAS] if len(node.input) > _BIAS else ""
            product = f"{node.output[0]} without bias" if bias else node.output[0]
            nodes.append(helper.make_node("MatMul", node.input[:2], [product], name=node.name))
            if not bias:
                continue
            node = helper.make_node("Add", [product, bias], node.output)
        nodes.append(node)
    tensors = [tensor for tensor in graph.initializer if tensor.name not in gone]
    tensors += [numpy_helper.from_array(weight, name) for name, weight in weights.items()]
    graph.ClearField("node")
    graph.node.extend(nodes)
    graph.ClearField("initializer")
    graph.initializer.extend(tensors)
    return replace(model, proto=proto)


def _weight(node: onnx.NodeProto, stored: Mapping[str, onnx.TensorProto]) -> Array:
    """The weight `(in, out)` of a product as float32."""
    names = zip(("packed", "scales", "zeros", "groups"), node.input[1:_BIAS], strict=False)
    given = {what: numpy_helper.to_array(stored[name]) for what, name in names if name}
    length, width, bits = _number(node, "K"), _number(node, "N"), _bits(node)
    packed, zeros = given["packed"], given.get("zeros")
    blocks = packed.shape[1]
    groups = given.get("groups", np.arange(length) // _number(node, "block_size"))  # the block of each row
    codes = _unpacked(packed.reshape(width, -1), bits)[:, :length].astype(np.float32)
    scales = given["scales"].reshape(width, blocks)[:, groups].astype(np.float32)
    if zeros is None:
        middle: Array | float = 2.0 ** (bits - 1)
    else:
        one_each = _unpacked(zeros.reshape(width, -1), bits) if zeros.dtype == np.uint8 else zeros
        middle = one_each.reshape(width, -1)[:, groups].astype(np.float32)
    return np.ascontiguousarray(((codes - middle) * scales).T, np.float32)


def _unpacked(packed: Array, bits: int) -> Array:
    """The numbers `(rows, numbers)` in bytes `(rows, bytes)`, of two in a byte the lower first."""
    if bits > 4:
        return packed
    return np.stack([packed & 0xF, packed >> 4], axis=-1).reshape(len(packed), -1)


def _bits(node: onnx.NodeProto) -> int:
    return _number(node, "bits") or BITS


def _number(node: onnx.NodeProto, name: str) -> int:
    return next((int(each.i) for each in node.attribute if each.name == name), 0)
