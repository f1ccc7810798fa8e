"""From a float graph and ranges to explicit QuantizeLinear and DequantizeLinear pairs."""

from __future__ import annotations

import re
import tempfile
import warnings
from collections.abc import Collection, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper, version_converter
from onnxruntime.quantization import CalibrationMethod, QDQQuantizer, QuantType, TensorsData
from onnxruntime.quantization.quant_utils import load_model_with_shape_infer
from onnxruntime.quantization.registry import QDQRegistry, QLinearOpsRegistry
from onnxruntime.quantization.shape_inference import quant_pre_process

from compression.calibration import Ranges
from compression.chatter import quiet
from compression.importing import OLDEST_OPSET, opset, subgraphs
from compression.inference import open_session
from compression.model import OnnxModel

PRODUCTS = ("MatMul", "Gemm")
WEIGHTED = (*PRODUCTS, "Conv", "ConvTranspose")
_ACTIVATIONS = ("Clip", "Relu")
OPERATORS = tuple(sorted({*QDQRegistry, *QLinearOpsRegistry}))

ActivationType = Literal["uint8", "int8"]
_ACTIVATION_TYPES = {"uint8": QuantType.QUInt8, "int8": QuantType.QInt8}


@dataclass(frozen=True)
class Scheme:
    """How floats become integers. Weights are always signed and symmetric.

    Attributes:
        per_channel: One scale per output channel of a weight instead of one per weight.
        reduce_range: Weights of seven bits.
        symmetric: Activation ranges are widened to be symmetric around zero.
        activations: Integer type of activations. Only unsigned activations with signed weights reach the
            int8 units of x86 processors.
        operators: Operator types to quantize.
        outputs_of_products: Rounds what a MatMul or Gemm returns, too.
        weights_only_products: Leaves a MatMul of two activations in float.
    """

    per_channel: bool = True
    reduce_range: bool = False
    symmetric: bool = False
    activations: ActivationType = "uint8"
    operators: tuple[str, ...] = OPERATORS
    outputs_of_products: bool = True
    weights_only_products: bool = False


def prepared(model: OnnxModel) -> OnnxModel:
    """The graph as the quantizer wants it: factors and normalization folded, constants and shapes known."""
    # onnxruntime logs advice to the root logger.
    with tempfile.TemporaryDirectory() as folder, quiet(""), warnings.catch_warnings():
        source, path = Path(folder, "source.onnx"), Path(folder, "prepared.onnx")
        onnx.save(_modern(model.proto), source)
        # onnxruntime's own shape inference fails on reductions of opset 18; onnx's knows all that is needed.
        quant_pre_process(source, path, skip_symbolic_shape=True, skip_onnx_shape=True)
        proto = load_model_with_shape_infer(path)
    _complete_types(proto)
    taken = {node.name for node in proto.graph.node}
    for index, node in enumerate(proto.graph.node):
        # What has no name cannot be left out by name.
        node.name = node.name or next(
            name
            for name in (f"{node.op_type}_{index}", f"{node.op_type}_{index}_unnamed")
            if name not in taken
        )
    _fold_factors(proto.graph)
    return OnnxModel(proto, model.signature)


def _complete_types(proto: onnx.ModelProto) -> None:
    """Adds types behind operators of other domains, which stop onnx's inference; onnxruntime knows them."""
    graph = proto.graph
    known = {value.name for value in (*graph.value_info, *graph.input, *graph.output)}
    unknown = [name for node in graph.node for name in node.output if name and name not in known]
    if not unknown:
        return
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in unknown)
    for value in open_session(opened, fused=False).get_outputs():
        if value.name in unknown and (tensor := re.fullmatch(r"tensor\((\w+)\)", value.type)):
            dtype = onnx.TensorProto.DataType.Value(tensor[1].upper())
            graph.value_info.append(helper.make_tensor_value_info(value.name, dtype, None))


def _fold_factors(graph: onnx.GraphProto) -> None:
    """Multiplies the alpha and beta of each Gemm into its own stored weight and bias, in place.

    onnxruntime's quantizer forgets beta.
    """
    stored = {tensor.name: tensor for tensor in graph.initializer}
    for node in graph.node:
        factors = (
            {attribute.name: attribute for attribute in node.attribute} if node.op_type == "Gemm" else {}
        )
        for position, kind in ((1, "alpha"), (2, "beta")):
            tensor = stored.get(node.input[position]) if position < len(node.input) else None
            if tensor is None or kind not in factors or factors[kind].f == 1.0:
                continue
            values = numpy_helper.to_array(tensor)
            name = f"{tensor.name}_of_{node.name}"
            graph.initializer.append(
                numpy_helper.from_array(values * values.dtype.type(factors[kind].f), name)
            )
            node.input[position], factors[kind].f = name, 1.0
    drop_unread(graph)


def touched(model: OnnxModel, operators: Collection[str]) -> list[str]:
    """The float tensors, weights left out, that operators of these types read and write, in order."""
    graph = model.proto.graph
    stored = {tensor.name for tensor in graph.initializer}
    floats = {
        value.name
        for value in (*graph.value_info, *graph.input, *graph.output)
        if value.type.tensor_type.elem_type == onnx.TensorProto.FLOAT
    }
    names = (
        name
        for node in graph.node
        if node.op_type in operators
        for name in (*node.input, *node.output)
        if name in floats and name not in stored
    )
    return list(dict.fromkeys(names))


def quantized(
    model: OnnxModel,
    ranges: Ranges,
    scheme: Scheme,
    excluded: Collection[str] = (),
    only: Sequence[str] | None = None,
) -> OnnxModel:
    """The prepared graph with integer weights and rounded activations.

    Args:
        model: What `prepared` returned.
        ranges: The range of every tensor that an operator to quantize touches; what touches one that has no
            range stays float.
        scheme: How floats become integers.
        excluded: Names of nodes that stay float.
        only: Names of the only nodes to quantize; None for all.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    left_out = {*excluded, *(_products_of_activations(proto) if scheme.weights_only_products else ())}
    unknown = set(touched(model, scheme.operators)).difference(ranges)
    for node in proto.graph.node:
        ends = {*node.input, *node.output}
        if ends & unknown or not ends & ranges.keys():
            left_out.add(node.name)
    left_out.update(_clips_without_zero(proto.graph))
    left_out |= _last_activations(proto.graph, scheme.operators, left_out)
    data = {name: (np.float32(low), np.float32(high)) for name, (low, high) in ranges.items()}
    with quiet(""), warnings.catch_warnings():
        quantizer = QDQQuantizer(
            proto,
            per_channel=scheme.per_channel,
            reduce_range=scheme.reduce_range,
            weight_qType=QuantType.QInt8,
            activation_qType=_ACTIVATION_TYPES[scheme.activations],
            tensors_range=TensorsData(CalibrationMethod.MinMax, data),
            nodes_to_quantize=None if only is None else list(only),
            nodes_to_exclude=sorted(left_out),
            op_types_to_quantize=list(scheme.operators),
            extra_options={
                "ActivationSymmetric": scheme.symmetric,
                "WeightSymmetric": True,
                "TensorQuantOverrides": {
                    name: [
                        {
                            "quant_type": QuantType.QInt8,
                            "symmetric": True,
                            "reduce_range": scheme.reduce_range,
                        }
                    ]
                    for name in _of_one_scale(proto.graph)
                },
                "OpTypesToExcludeOutputQuantization": [] if scheme.outputs_of_products else list(PRODUCTS),
            },
        )
        quantizer.quantize_model()
    ordered = ir.from_proto(quantizer.model.model)
    ordered.graph.sort()  # also by what the branches of an If read from outside
    made = ir.to_proto(ordered)
    del made.metadata_props[:]
    _drop_idle_pairs(made.graph, scheme.operators, left_out)
    return OnnxModel(made, model.signature)


def _products_of_activations(proto: onnx.ModelProto) -> Iterator[str]:
    stored = {tensor.name for tensor in proto.graph.initializer}
    for node in proto.graph.node:
        if node.op_type in PRODUCTS and not stored.intersection(node.input[:2]):
            yield node.name


def _of_one_scale(graph: onnx.GraphProto) -> list[str]:
    """Weights that no one axis divides into channels: operators read them along several, or in groups.

    onnxruntime would apply the scales of one axis along another, or write a graph that does not run.
    """
    ranks = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    axes: dict[str, set[int | None]] = {name: set() for name in ranks}
    for node in graph.node:
        # What a product or a convolution reads behind its weight is a bias.
        for name in node.input[:2] if node.op_type in WEIGHTED else node.input:
            if name in axes:
                axes[name] |= _channel_axes(node, ranks[name])
    return [name for name, found in axes.items() if len(found) > 1]


def _channel_axes(node: onnx.NodeProto, rank: int) -> set[int | None]:
    """The axes of a weight along which an operator's channels lie; None among them where there is none."""
    settings = {attribute.name: attribute.i for attribute in node.attribute}
    if node.op_type == "ConvTranspose":  # each group has as many channels again
        return {1} if settings.get("group", 1) == 1 else {1, None}
    if node.op_type == "MatMul":  # a stack of matrices has as many again for each
        return {1} if rank <= 2 else {1, None}
    if node.op_type == "Gemm":
        return {0 if settings.get("transB") else 1}
    return {0 if node.op_type == "Conv" else None}


def _clips_without_zero(graph: onnx.GraphProto) -> Iterator[str]:
    """Each Clip that lets no zero through, or may not: rounding would replace it, and always has a zero."""
    scalars = {tensor.name: tensor for tensor in graph.initializer if not tensor.dims}
    for node in graph.node:
        bounds = zip(node.input[1:], (-1, 1), strict=False) if node.op_type == "Clip" else ()
        for name, sign in bounds:
            if name and (name not in scalars or sign * numpy_helper.to_array(scalars[name]) < 0):
                yield node.name


def _last_activations(
    graph: onnx.GraphProto, operators: Collection[str], left_out: Collection[str]
) -> set[str]:
    """Each Relu or Clip of a product that only float operators read, however many behind each other.

    onnxruntime lets the rounding that follows do their work; behind these there will be none.
    """
    readers = _readers(graph)
    active: dict[str, str] = {}
    of_products = {name for node in graph.node if node.op_type in PRODUCTS for name in node.output}
    for node in graph.node:
        if node.op_type in _ACTIVATIONS and node.input[0] in of_products:
            active[node.name] = node.output[0]
            of_products.add(node.output[0])
    last: set[str] = set()
    for name, output in reversed(active.items()):
        if not _are_rounded(readers.get(output, []), operators, {*left_out, *last}):
            last.add(name)
    return last


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto]]:
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in {*node.input, *_read_in_bodies(node)}:
            readers.setdefault(name, []).append(node)
    return readers


def _are_rounded(
    users: Iterable[onnx.NodeProto], operators: Collection[str], left_out: Collection[str]
) -> bool:
    """Whether one of these operators at least is to be quantized."""
    return any(user.op_type in operators and user.name not in left_out for user in users)


def _drop_idle_pairs(graph: onnx.GraphProto, operators: Collection[str], left_out: Collection[str]) -> None:
    """Removes the rounding of a product that only float operators read: it costs accuracy and gains nothing.

    Convolutions keep theirs: without it runtimes do not compute them on integers.
    """
    makers = {name: node for node in graph.node for name in node.output}
    readers = _readers(graph)
    returned = {value.name for value in graph.output}
    for restore in [node for node in graph.node if node.op_type == "DequantizeLinear"]:
        rounded = makers.get(restore.input[0])
        product = makers.get(rounded.input[0]) if rounded is not None else None
        if rounded is None or product is None or product.op_type not in PRODUCTS:
            continue
        users = readers.get(restore.output[0], [])
        is_read = bool(users) or restore.output[0] in returned
        if _are_rounded(users, operators, left_out):
            continue
        if len(readers[rounded.output[0]]) > 1 or (is_read and len(readers[rounded.input[0]]) > 1):
            continue
        graph.node.remove(rounded)
        graph.node.remove(restore)
        if is_read:
            product.output[0] = restore.output[0]
    drop_unread(graph)


def _read_in_bodies(node: onnx.NodeProto) -> Iterator[str]:
    """What the bodies of an If, Loop or Scan read, their own tensors included."""
    bodies = [attribute.g for attribute in node.attribute if attribute.HasField("g")]
    for body in bodies:
        for graph in subgraphs(body):
            yield from (name for inner in graph.node for name in inner.input)
            yield from (value.name for value in graph.output)


def drop_unread(graph: onnx.GraphProto) -> None:
    """Removes stored tensors that no node reads, in a body neither, in place."""
    read = {name for each in subgraphs(graph) for node in each.node for name in node.input}
    read |= {value.name for each in subgraphs(graph) for value in each.output}
    for tensor in [tensor for tensor in graph.initializer if tensor.name not in read]:
        graph.initializer.remove(tensor)


def _modern(proto: onnx.ModelProto) -> onnx.ModelProto:
    if opset(proto) >= OLDEST_OPSET:
        return proto
    return version_converter.convert_version(proto, OLDEST_OPSET)
