"""How far a compressed graph's numbers are from the reference's, layer by layer, in decibels."""

from __future__ import annotations

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import onnx

from compression.figures import Layer, Sqnr
from compression.inference import open_session
from compression.model import OnnxModel
from compression.probing import constants, probe
from compression.signature import Array

# No double is nearer than this, so that equal tensors have a figure that JSON can write.
EXACT_DB = 300.0

# Operators with weights -> the position of the weight.
_WEIGHTED = {
    "Conv": 1,
    "ConvInteger": 1,
    "ConvTranspose": 1,
    "Gemm": 1,
    "MatMul": 1,
    "MatMulInteger": 1,
    "MatMulNBits": 1,
}
_INTEGER = {"MatMulInteger", "ConvInteger"}
# What onnxruntime calls a weight into which it multiplied what follows.
_FUSED = re.compile(r"^Conv\w+Fusion_W_")
_QUANTIZED, _SCALE, _ZERO_POINT = "_quantized", "_scale", "_zero_point"


@dataclass(frozen=True)
class _Weighted:
    """An operator's weight and what the operator gives."""

    weight: str
    output: str
    sources: frozenset[str]
    node: onnx.NodeProto

    @property
    def is_integer(self) -> bool:
        """Whether the weight is integers that a scale follows."""
        return self.node.op_type in _INTEGER


def sqnr(artifact: OnnxModel, reference: OnnxModel, inputs: Mapping[str, Array]) -> Sqnr:
    """Compares outputs, weights and activations.

    After fine-tuning, weights differ for the better: what counts then are the outputs.

    Args:
        artifact: The compressed graph.
        reference: The reference's graph, of the same signature.
        inputs: Real rows, arrays `(rows, ...)` by input name.

    Raises:
        ProbeError: One of the graphs does not run.
    """
    pairs = _pairs(artifact.proto.graph, reference.proto.graph)
    outputs = [spec.name for spec in reference.signature.outputs]
    theirs = probe(
        reference, [*outputs, *(p[1].weight for p in pairs), *(p[2] for p in pairs if p[2])], inputs
    )
    seen = _as_read(artifact.proto.graph)
    asked = [name for ours, _, shared in pairs for name in (*_operands(ours, artifact), shared) if name]
    found = probe(artifact, [*outputs, *asked, *(seen[name] for name in asked if name in seen)], inputs)
    layers = []
    for ours, their, shared in pairs:
        weight = _like(_weight(ours, found, artifact.proto), theirs[their.weight])
        if weight is None:
            continue
        given = found[seen.get(shared, shared)] if shared else None
        both = given is not None and given.shape == theirs[shared].shape
        activation = decibels(given, theirs[shared]) if given is not None and both else None
        noise = decibels(weight, theirs[their.weight])
        layers.append(Layer(their.weight, noise, activation, their.node.name))
    layers.sort(key=lambda layer: layer.worst_db)
    return Sqnr({name: decibels(found[name], theirs[name]) for name in outputs}, layers)


def decibels(given: Array, reference: Array) -> float:
    """Power of the reference over that of the difference, `EXACT_DB` where there is none."""
    signal, noise = reference.astype(np.float64), given.astype(np.float64) - reference.astype(np.float64)
    power, disturbance = float(np.square(signal).sum()), float(np.square(noise).sum())
    if disturbance == 0.0:
        return EXACT_DB
    return round(max(-EXACT_DB, min(EXACT_DB, 10 * math.log10(max(power, 1e-300) / disturbance))), 2)


def _pairs(artifact: onnx.GraphProto, reference: onnx.GraphProto) -> list[tuple[_Weighted, _Weighted, str]]:
    """Operators of both graphs on the same weight, with the tensor that both give, or nothing."""
    ours, theirs = _weighted(artifact), {each.weight: each for each in _weighted(reference)}
    tensors, their_tensors = _tensors(artifact), _tensors(reference)
    pairs = []
    for each in ours:
        name = max((n for n in theirs if any(_is_made_of(s, n) for s in each.sources)), key=len, default=None)
        if name is None:
            continue
        their = theirs.pop(name)
        # A pass may fold what follows into an operator, or take one apart: either end may be what both have.
        shared = next((n for n in (each.output, their.output) if n in tensors and n in their_tensors), "")
        pairs.append((each, their, shared))
    return pairs


def _weighted(graph: onnx.GraphProto) -> list[_Weighted]:
    fixed = constants(graph)
    found = []
    for node in graph.node:
        position = _WEIGHTED.get(node.op_type, 0)
        if position and len(node.input) > position and node.input[position] in fixed:
            weight = node.input[position]
            found.append(_Weighted(weight, node.output[0], fixed[weight], node))
    return found


def _as_read(graph: onnx.GraphProto) -> dict[str, str]:
    """Tensors that are quantized at once, with what their readers get; the rounding may replace a ReLU."""
    dequantized = {node.input[0]: node.output[0] for node in graph.node if node.op_type == "DequantizeLinear"}
    return {
        node.input[0]: dequantized[node.output[0]]
        for node in graph.node
        if node.op_type == "QuantizeLinear" and node.output[0] in dequantized
    }


def _tensors(graph: onnx.GraphProto) -> set[str]:
    return {name for node in graph.node for name in node.output}


def _is_made_of(source: str, weight: str) -> bool:
    source = _FUSED.sub("", source)
    return source == weight or source.startswith((f"{weight}_", f"{weight}."))


def _operands(of: _Weighted, artifact: OnnxModel) -> list[str]:
    """The weight, and for integers what turns them into numbers again."""
    stored = {tensor.name for tensor in artifact.proto.graph.initializer}
    base = of.weight.removesuffix(_QUANTIZED)
    scales = [name for name in (base + _SCALE, base + _ZERO_POINT) if name in stored]
    return [of.weight, *scales] if of.is_integer else [of.weight]


def _weight(of: _Weighted, values: Mapping[str, Array], proto: onnx.ModelProto) -> Array:
    if of.node.op_type == "MatMulNBits":
        return _unpacked(of.node, proto)
    weight = values[of.weight]
    if not of.is_integer:
        return weight
    base = of.weight.removesuffix(_QUANTIZED)
    zero = values.get(base + _ZERO_POINT, np.zeros((), weight.dtype))
    numbers: Array = (weight.astype(np.float64) - zero) * values.get(base + _SCALE, np.ones(()))
    return numbers


def _unpacked(node: onnx.NodeProto, proto: onnx.ModelProto) -> Array:
    """The weight `(inputs, outputs)` of a product with packed integers: what it makes of unit vectors."""
    given = {attribute.name: attribute.i for attribute in node.attribute}
    alone = onnx.NodeProto()
    alone.CopyFrom(node)
    alone.input[0], alone.output[0] = "units", "weight"
    if len(alone.input) > 5:
        alone.input[5] = ""  # the bias
    ins, outs = (
        [onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, [given["K"], given[axis]])]
        for name, axis in (("units", "K"), ("weight", "N"))
    )
    stored = [tensor for tensor in proto.graph.initializer if tensor.name in node.input]
    graph = onnx.helper.make_graph([alone], "weight", ins, outs, stored)
    model = onnx.helper.make_model(graph, opset_imports=proto.opset_import, ir_version=proto.ir_version)
    units = {"units": np.eye(given["K"], dtype=np.float32)}
    weight: Array = open_session(model).run(None, units)[0]
    return weight


def _like(weight: Array, reference: Array) -> Array | None:
    """The weight as the reference lays it out, None when it is another.

    A square one fits both ways: it is meant in the way that is nearer.
    """
    fitting = [candidate for candidate in (weight, weight.T) if candidate.shape == reference.shape]
    return min(fitting, key=lambda each: float(np.square(each - reference).sum()), default=None)
