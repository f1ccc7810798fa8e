"""Static eight-bit integers without data: weights are equalized, ranges follow from batch normalization."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import ClassVar

import numpy as np
import onnx
import torch
from onnx import numpy_helper
from pydantic import Field
from torch import Tensor, nn

from compression.base import AnyPass, Facts, Pass, PassContext, PassRefusedError, Settings, scaled_apart
from compression.export import example_inputs, export
from compression.model import Form, OnnxModel, TorchModel
from compression.moments import simple_product, spreads
from compression.qdq import OPERATORS, PRODUCTS, Scheme, drop_unread, prepared, quantized, touched
from compression.quantization import QuantizationSettings, names_of, promised, still_promised
from compression.records import note, noted
from compression.rewriting import baked
from compression.signature import Array, Signature
from compression.spread import Spread

NAME = "int8-data-free"
_LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)
# What a positive factor per channel passes through unchanged, padding with zeros included.
_HOMOGENEOUS = {
    "Relu",
    "LeakyRelu",
    "MaxPool",
    "AveragePool",
    "GlobalAveragePool",
    "GlobalMaxPool",
    "Identity",
}
_MOST_ROUNDS = 20
_EQUAL_ENOUGH = 1e-3


class DataFreeSettings(QuantizationSettings):
    """Settings of `int8-data-free`.

    Attributes:
        input_range: Least and greatest value of float inputs; None where they are unknown, and what reads
            them stays float. Integer images have the range of their type.
        equalize: Makes the weights of neighbouring layers alike, channel by channel.
        correct_bias: Moves biases by the error that rounded weights make on average.
        deviations: How many standard deviations from its mean an activation reaches.
    """

    input_range: tuple[float, float] | None = None
    equalize: bool = True
    correct_bias: bool = True
    deviations: float = Field(default=6.0, gt=0.0)


class DataFree(Pass[DataFreeSettings, TorchModel, OnnxModel]):
    """Quantizes without reading a single sample: ranges follow from batch normalization and weights.

    Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction": cross-layer
    equalization (section 4.1), analytic bias correction (section 4.2). What has no known range stays float.
    """

    name: ClassVar[str] = NAME
    version: ClassVar[int] = 3
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = "int8"
    settings_class: ClassVar[type[Settings]] = DataFreeSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses shared values, which equalization would set apart."""
        reason = scaled_apart(before) if self.settings.equalize else ""
        return f"{reason}. Set equalize to false, or use int8-static" if reason else ""

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that a batch normalization follows a convolution or linear layer."""
        if not normalizations(model):
            raise PassRefusedError(
                "no batch normalization follows a convolution or linear layer: nothing says how large "
                "activations get. Use int8-static, which reads calibration rows."
            )

    def run(self, model: TorchModel, context: PassContext) -> OnnxModel:
        """Returns the equalized, corrected graph with explicit QDQ pairs."""
        settings = self.settings
        # Rounding what a product returns would need its range, which is known least.
        scheme = Scheme(settings.per_channel, settings.reduce_range, outputs_of_products=False)
        ready = prepared(export(model))
        graph = ready.proto.graph
        excluded = names_of(ready, settings.exclude_nodes)
        norms = _norms(graph, normalizations(model), settings.deviations)
        context.report("equalizing", 0.2)
        equalized = equalize(graph, norms) if settings.equalize else []
        context.report("quantizing", 0.5)
        found = spreads(graph, _inputs(model.signature, settings.input_range), norms, settings.deviations)
        ranges = {name: spread.range for name, spread in found.items()}
        unknown = set(touched(ready, scheme.operators)) - ranges.keys()
        free = [*excluded, *(node.name for node in graph.node if unknown.intersection(_rounded(node)))]
        made = quantized(ready, ranges, scheme, free)
        corrected = _correct_biases(graph, made.proto.graph, found) if settings.correct_bias else []
        if (settings.equalize or settings.correct_bias) and not (equalized or corrected):
            raise PassRefusedError(
                "no layer can be equalized with its neighbour and no bias corrected: nothing is known of "
                "what they read. Use int8-static, which reads calibration rows, or set equalize and "
                "correct_bias to false."
            )
        if corrected:
            made = quantized(ready, ranges, scheme, free)
        return noted(
            made,
            NAME,
            {
                "equalized": [list(pair) for pair in equalized],
                "corrected": corrected,
                "float_operators": [node.name for node in graph.node if node.name in free],
            },
        )

    def ensures(self, before: TorchModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks for integer operators, and for the note of what was equalized and corrected."""
        size = sum(tensor.nbytes for tensor in before.module.state_dict().values())
        done = note(after, NAME)
        return {**promised(after, size), **done}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many operators compute on integers at the end of the recipe."""
        still_promised(facts, artifact)


@dataclass(frozen=True)
class Normalization:
    """What is known of a layer that a batch normalization follows.

    Attributes:
        mean: Of what the normalization returns, of shape `(channels,)`.
        deviation: Its standard deviation.
        folded: The layer's weight with the normalization's factors in it.
    """

    mean: Array
    deviation: Array
    folded: Array


def normalizations(model: TorchModel) -> dict[str, Normalization]:
    """The layers that a batch normalization follows, by the name of their weight."""
    module = baked(copy.deepcopy(model.module)).eval()
    # Outputs are kept, as one that is gone could give its identity to another.
    made: dict[int, tuple[str, Tensor]] = {}
    found: dict[str, Normalization] = {}

    def remember(name: str, layer: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        made[id(output)] = (name, output)

    def look(norm: nn.Module, inputs: tuple[Tensor, ...]) -> None:
        name, _ = made.get(id(inputs[0]), ("", None))
        assert isinstance(norm, _NORMS)
        if name and norm.running_mean is not None and norm.running_var is not None and norm.affine:
            weight = module.get_parameter(f"{name}.weight")
            factor = norm.weight / torch.sqrt(norm.running_var + norm.eps)
            folded = weight * factor.reshape(-1, *[1] * (weight.ndim - 1))
            found[f"{name}.weight"] = Normalization(
                *(part.detach().cpu().double().numpy() for part in (norm.bias, norm.weight.abs(), folded))
            )

    examples = example_inputs(model.signature, module)
    for name, part in module.named_modules():
        if isinstance(part, _LAYERS):
            part.register_forward_hook(partial(remember, name))
        elif isinstance(part, _NORMS):
            part.register_forward_pre_hook(look)
    with torch.no_grad():
        module(*examples)
    return found


def _norms(
    graph: onnx.GraphProto, known: Mapping[str, Normalization], deviations: float
) -> dict[str, Spread]:
    """What layers return whose normalization is folded into the weights that they have in the graph."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    found = {}
    for node in graph.node:
        norm = known.get(node.input[1]) if len(node.input) > 1 else None
        if norm is not None and np.allclose(stored[node.input[1]], norm.folded, rtol=1e-3, atol=1e-6):
            found[node.output[0]] = Spread.normal(norm.mean, norm.deviation, deviations)
    return found


def equalize(graph: onnx.GraphProto, norms: dict[str, Spread]) -> list[tuple[str, str]]:
    """Scales channels between neighbouring layers so that both use the range of their weights alike.

    The function stays: a factor per channel leaves one layer's weights and enters the next one's.

    Args:
        graph: A prepared graph, changed in place.
        norms: What layers return, by the output's name, changed along.

    Returns:
        The names of each pair of layers.
    """
    stored = {
        tensor.name: numpy_helper.to_array(tensor).astype(np.float64)
        for tensor in graph.initializer
        if tensor.data_type == onnx.TensorProto.FLOAT
    }
    pairs = list(_pairs(graph, stored))
    changed: set[str] = set()
    for _ in range(_MOST_ROUNDS):
        farthest = 0.0
        for first, second in pairs:
            before, after = _product(first, stored), _product(second, stored)
            depthwise = after.shape[1] == 1 < len(before)
            ranges = [_magnitudes(before, 0), _magnitudes(after, 0 if depthwise else 1)]
            alive = (ranges[0] > 0) & (ranges[1] > 0)
            factor = np.sqrt(np.where(alive, ranges[0], 1.0) / np.where(alive, ranges[1], 1.0))
            before /= _along(factor, 0, before.ndim)
            after *= _along(factor, 0 if depthwise else 1, after.ndim)
            changed |= {first.input[1], second.input[1]}
            if len(first.input) > 2 and first.input[2]:
                stored[first.input[2]] /= factor
                changed.add(first.input[2])
            if (spread := norms.get(first.output[0])) is not None:
                norms[first.output[0]] = spread.mapped(partial(np.multiply, 1 / factor))
            farthest = max(farthest, float(np.abs(np.log(factor)).max()))
        if farthest < _EQUAL_ENOUGH:
            break
    for tensor in graph.initializer:
        if tensor.name in changed:
            tensor.CopyFrom(numpy_helper.from_array(stored[tensor.name].astype(np.float32), tensor.name))
    return [(first.name, second.name) for first, second in pairs]


def _pairs(
    graph: onnx.GraphProto, stored: Mapping[str, Array]
) -> Iterator[tuple[onnx.NodeProto, onnx.NodeProto]]:
    """Layers that feed exactly one other, with nothing between them but what keeps a factor."""
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    outputs = {value.name for value in graph.output}

    def own(node: onnx.NodeProto) -> bool:
        parts = [name for name in node.input[1:] if name]
        return all(name in stored and len(readers[name]) == 1 for name in parts)

    for first in graph.node:
        if simple_product(first, stored) is None or first.op_type == "MatMul" or not own(first):
            continue
        name = first.output[0]
        while name not in outputs and len(readers.get(name, [])) == 1:
            (second,) = readers[name]
            if second.op_type in _HOMOGENEOUS:
                name = second.output[0]
                continue
            product = simple_product(second, stored)
            channels = len(_product(first, stored))
            if product is not None and second.op_type == first.op_type and own(second):
                weight, groups = product
                if (groups == 1 and weight.shape[1] == channels) or len(weight) == groups == channels:
                    yield first, second
            break


def _product(node: onnx.NodeProto, stored: Mapping[str, Array]) -> Array:
    """The weight of a simple product, as a view."""
    product = simple_product(node, stored)
    assert product is not None  # pairs hold nothing else
    return product[0]


def _magnitudes(weight: Array, axis: int) -> Array:
    largest: Array = np.abs(weight).max(tuple(other for other in range(weight.ndim) if other != axis))
    return largest


def _along(factor: Array, axis: int, rank: int) -> Array:
    return factor.reshape([-1 if other == axis else 1 for other in range(rank)])


def _correct_biases(
    graph: onnx.GraphProto, rounded: onnx.GraphProto, found: Mapping[str, Spread]
) -> list[str]:
    """Takes from biases, in place, what rounded weights add on average; returns the layers' names."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    restored = _restored(rounded)
    corrected = []
    for node in graph.node:
        spread = found.get(node.input[0]) if node.input else None
        product = simple_product(node, stored)
        if spread is None or not spread.exact or product is None or node.op_type == "MatMul":
            continue
        exact, groups = product
        known = simple_product(node, {node.input[1]: restored.get(node.name, stored[node.input[1]])})
        assert known is not None  # the weight of the same node
        error = (known[0] - exact).astype(np.float64)
        if not error.any() or exact.shape[1] * groups % len(spread.mean):
            continue
        read = spread.by_output(error, groups)
        shift = np.einsum("oik,oi->o", error.reshape(*error.shape[:2], -1), read.mean)
        held = len(node.input) > 2 and node.input[2]
        bias = stored[node.input[2]] if held else np.zeros(len(exact))
        name = f"{node.name}/corrected_bias"
        graph.initializer.append(numpy_helper.from_array((bias - shift).astype(np.float32), name))
        del node.input[2:]
        node.input.append(name)
        corrected.append(node.name)
    drop_unread(graph)
    return corrected


def _restored(graph: onnx.GraphProto) -> dict[str, Array]:
    """The weights that quantized layers compute with, by the layer's name."""
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    makers = {name: node for node in graph.node for name in node.output}
    weights = {}
    for node in graph.node:
        maker = makers.get(node.input[1]) if len(node.input) > 1 else None
        if maker is None or maker.op_type != "DequantizeLinear" or maker.input[0] not in stored:
            continue
        integers, scale = (stored[name] for name in maker.input[:2])
        axis = next((attribute.i for attribute in maker.attribute if attribute.name == "axis"), 1)
        weights[node.name] = integers * (_along(scale, axis, integers.ndim) if scale.size > 1 else scale)
    return weights


def _rounded(node: onnx.NodeProto) -> list[str]:
    """The tensors that quantization of a node rounds."""
    if node.op_type not in OPERATORS:
        return []
    return [*node.input, *(() if node.op_type in PRODUCTS else node.output)]


def _inputs(signature: Signature, floats: tuple[float, float] | None) -> dict[str, Spread]:
    found = {}
    for spec in signature.inputs:
        if spec.dtype == "uint8":
            found[spec.name] = Spread.between(0, 255)
        elif spec.dtype.startswith("float") and floats is not None:
            found[spec.name] = Spread.between(*floats)
    return found
