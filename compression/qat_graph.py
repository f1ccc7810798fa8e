"""Where eight-bit rounding stands in a traced module, and how it becomes explicit integers in the end.

The places are those where onnxruntime and OpenVINO find whole operators on integers: in front of every
convolution and linear layer, behind every convolution with its activation, and around the additions of
residual blocks. What stands between, such as pooling, keeps the scale of what it pools.
"""

from __future__ import annotations

import operator
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from typing import Any

# Registers the operators that the exporter writes as QuantizeLinear and DequantizeLinear.
import torch.ao.quantization.fx._decomposed
from torch import Tensor, fx, nn

from compression.fake_quantization import (
    ACTIVATION_MAX,
    ActivationQuantizer,
    RangeRule,
    WeightQuantizer,
)
from compression.layer_graph import argument, keep, layers, name_of, place_on_weights, placed, weight_of
from compression.tracing import CONVOLUTIONS, aten, constant, constants, rank, settled

integers = torch.ops.quantized_decomposed
_ADDITIONS = {aten.add.Tensor}
_ACTIVATIONS = {aten.relu.default, aten.hardtanh.default, aten.clamp.default}
# Their results are some of the values that they are given.
_PASSING = {
    aten.max_pool1d.default,
    aten.max_pool2d.default,
    aten.adaptive_max_pool2d.default,
    aten.view.default,
    aten.reshape.default,
    aten.permute.default,
    aten.transpose.int,
    aten.unsqueeze.default,
    aten.squeeze.dim,
    aten.clone.default,
    operator.getitem,
}
# Keeps a bias in its 32 bits with room for what is added to it.
_BIAS_ROOM = 2**30


@dataclass(frozen=True)
class Rules:
    """How ranges are found in training.

    Attributes:
        weights_learned: Learns the scales of weights.
        activations: How the ranges of activations move.
        weight_bits: Length of a weight.
    """

    weights_learned: bool
    activations: RangeRule
    weight_bits: int = 8


def prepare(module: fx.GraphModule, rules: Rules) -> fx.GraphModule:
    """Puts quantizers into a traced module, which is changed; activations watch until told otherwise."""
    graph, heavy = module.graph, layers(module)
    whole = _whole(graph, heavy, constants(graph))
    made: dict[fx.Node, str] = {}

    def quantizer(value: fx.Node) -> str:
        root = _root(value)
        if root not in made:
            made[root] = f"activation_quantizers_{len(made)}"
            module.add_submodule(made[root], ActivationQuantizer(rules.activations))
        return made[root]

    users = [*heavy, *(node for node in graph.nodes if node.target in _ADDITIONS and _end(node) in whole)]
    wanted = {value for node in users for value in _operands(node, heavy)}
    # In the order of the graph: a quantizer is known before what passes its values on.
    for value in [node for node in graph.nodes if node in whole or node in wanted]:
        readers = list(value.users) if value in whole else [node for node in value.users if node in users]
        with graph.inserting_after(value):
            rounded = graph.call_module(quantizer(value), (value,))
        rounded.meta = dict(value.meta)
        for reader in readers:
            reader.replace_input_with(value, rounded)
    rounding = {
        layer: WeightQuantizer(weight_of(module, layer), axis, rules.weights_learned, rules.weight_bits)
        for layer, axis in heavy.items()
    }
    place_on_weights(module, rounding)
    return settled(module)


def watch(module: nn.Module, watching: bool) -> None:
    """Lets activations look at what passes, unrounded, or ends that."""
    for part in module.modules():
        if isinstance(part, ActivationQuantizer):
            part.watching = watching


def converted(module: fx.GraphModule) -> fx.GraphModule:
    """The prepared module, which is changed, with stored integers in place of its quantizers."""
    graph = module.graph
    calls = [node for node in graph.nodes if node.op == "call_module"]
    parts = {node: module.get_submodule(str(node.target)) for node in calls}
    for layer, part in placed(module, WeightQuantizer).items():
        assert isinstance(part, WeightQuantizer)
        _store(module, layer, part)
    for node, part in parts.items():
        if isinstance(part, ActivationQuantizer):
            scale, zero = part.frozen()
            arguments = (scale, zero, 0, ACTIVATION_MAX, torch.uint8)
            with graph.inserting_before(node):
                codes = graph.call_function(integers.quantize_per_tensor.default, (node.args[0], *arguments))
                values = graph.call_function(integers.dequantize_per_tensor.default, (codes, *arguments))
            node.replace_all_uses_with(values)
    return settled(module)


def _store(module: fx.GraphModule, layer: fx.Node, quantizer: WeightQuantizer) -> None:
    """Replaces a layer's weight by int8 codes and its bias by int32 codes."""
    source = module.get_submodule(str(argument(layer, 0).target))
    assert isinstance(source, ActivationQuantizer)
    unrounded = argument(argument(layer, 1), 0)
    name, weight, step = name_of(unrounded), constant(module, unrounded), source.frozen()[0]
    bias = layer.args[2] if len(layer.args) > 2 else None
    offset = constant(module, bias) if isinstance(bias, fx.Node) else None
    with torch.no_grad():
        scale = quantizer.scale(weight)
        if offset is not None:
            scale = torch.maximum(scale, offset.abs().reshape(scale.shape) / (step * _BIAS_ROOM))
        codes = (weight / scale).round().clamp(-quantizer.most, quantizer.most).to(torch.int8)
    with module.graph.inserting_before(layer):
        each = scale.reshape(-1)
        layer.update_arg(1, _dequantized(module, name, codes, each, quantizer.axis))
        if offset is not None:
            whole = each * step
            sums = (offset.double() / whole.double()).round().to(torch.int32)
            layer.update_arg(2, _dequantized(module, f"{name}_bias", sums, whole, 0))


def _dequantized(module: fx.GraphModule, name: str, codes: Tensor, scale: Tensor, axis: int) -> fx.Node:
    zeros = torch.zeros(len(scale), dtype=codes.dtype)  # onnxruntime fuses a Gemm only where they are given
    graph, limits = module.graph, torch.iinfo(codes.dtype)
    fetched = [
        graph.get_attr(keep(module, f"{name}_{part}", values))
        for part, values in (("codes", codes), ("scale", scale), ("zero", zeros))
    ]
    arguments: tuple[Any, ...] = (*fetched, axis, limits.min, limits.max, codes.dtype)
    return graph.call_function(integers.dequantize_per_channel.default, arguments)


def _whole(graph: fx.Graph, heavy: Collection[fx.Node], known: set[fx.Node]) -> set[fx.Node]:
    """Values that are rounded for all that read them: what convolutions and residual additions give."""
    found = {_end(node) for node in heavy if node.target in CONVOLUTIONS}
    for node in graph.nodes:
        if node.target not in _ADDITIONS:
            continue
        terms = node.args[:2]
        tensors = all(isinstance(term, fx.Node) and term not in known and rank(term) > 2 for term in terms)
        if tensors and not node.kwargs and any(_root(term) in found for term in terms):
            found.add(_end(node))
    return {node for node in found if not any(reader.op == "output" for reader in node.users)}


def _operands(node: fx.Node, heavy: Collection[fx.Node]) -> Iterator[fx.Node]:
    values: tuple[Any, ...] = node.args[:1] if node in heavy else node.args[:2]
    return (value for value in values if isinstance(value, fx.Node))


def _end(node: fx.Node) -> fx.Node:
    """The activation that alone reads a value, or the value."""
    readers = list(node.users)
    return readers[0] if len(readers) == 1 and readers[0].target in _ACTIVATIONS else node


def _root(value: fx.Node) -> fx.Node:
    """Where the values of a node come from, through what only passes them on and through quantizers."""
    while value.target in _PASSING or value.op == "call_module":
        value = value.all_input_nodes[0]
    return value
