"""A module as a graph of its operators, so that passes can work between layers whatever the module's code."""

from __future__ import annotations

import copy
import warnings
from typing import Any

import torch
from torch import Tensor, fx

from compression.base import CompressionError
from compression.chatter import quiet
from compression.export import dynamic_shapes, example_inputs
from compression.model import TorchModel

aten = torch.ops.aten
CONVOLUTIONS = {aten.conv1d.default, aten.conv2d.default, aten.conv3d.default}
LINEAR = aten.linear.default
PRODUCTS = {aten.matmul.default, aten.mm.default}
_FROZEN_NORM = aten._native_batch_norm_legit_no_training.default
# What tracing notes about dtypes and shapes is wrong under autocast.
_ASSERTIONS = ("_assert_tensor_metadata", "_assert_scalar", "sym_constrain_range_for_size")


class TracingError(CompressionError):
    """A module cannot be turned into a graph of operators."""


def traced(model: TorchModel) -> TorchModel:
    """The same model as an `fx.GraphModule` of ATen operators, in eval mode, its parameters still learnable.

    Batch normalization behind a convolution or linear layer is folded: its statistics stay as they are, its
    gain and shift go on learning as factors of the layer's weight and bias. What parametrizations compute,
    such as masks, is a part of the graph and holds while weights move. Linear layers over more than rows are
    products with a transposed weight, as runtimes have them.

    Raises:
        TracingError: The module cannot be traced.
    """
    module = copy.deepcopy(model.module).eval()
    # An axis with a name could not be held to the length of a table that the module reads up to it.
    free = [dict.fromkeys(axes, torch.export.Dim.DYNAMIC) for axes in dynamic_shapes(model.signature)]
    try:
        with warnings.catch_warnings(), quiet("torch.export", "torch"), torch.enable_grad():
            warnings.simplefilter("ignore")  # torch's own tracer calls what torch deprecates
            program = torch.export.export(
                module,
                example_inputs(model.signature, module),
                dynamic_shapes=tuple(free),
            ).run_decompositions({})
            inlined = program.module(check_guards=False)
    except Exception as error:
        said = str(error).strip().partition("\n")[0].partition(" For more information")[0].rstrip(".!")
        raise TracingError(f"the module cannot be traced: {type(error).__name__}: {said}") from error
    assert isinstance(inlined, fx.GraphModule)
    for node in list(inlined.graph.nodes):
        if any(name in str(node.target) for name in _ASSERTIONS):
            inlined.graph.erase_node(node)
        elif node.target == _FROZEN_NORM:
            _fold(inlined.graph, node)
        elif node.target == aten.view.default:
            node.target = aten.reshape.default  # activations may be laid out otherwise than they were traced
    for node in list(inlined.graph.nodes):
        if node.target == LINEAR and rank(node) > 2:
            _transpose(inlined.graph, node)
    # Inputs come one by one, in order, and outputs leave as a tuple.
    inlined.graph.set_codegen(fx.graph.CodeGen())
    return TorchModel(settled(inlined), model.signature)


def settled(graph_module: fx.GraphModule) -> fx.GraphModule:
    """The module of a changed graph: it runs what the graph says and owns only what the graph uses."""
    graph_module.graph.eliminate_dead_code()
    graph_module.graph.lint()
    return fx.GraphModule(graph_module, graph_module.graph)


def constants(graph: fx.Graph) -> set[fx.Node]:
    """The nodes that depend on weights alone and on no input."""
    found: set[fx.Node] = set()
    for node in graph.nodes:
        if node.op == "get_attr" or (
            node.op in ("call_function", "call_module")
            and node.all_input_nodes
            and found.issuperset(node.all_input_nodes)
        ):
            found.add(node)
    return found


def constant(graph_module: fx.GraphModule, node: fx.Node) -> Tensor:
    """The present value of a node that depends on weights alone."""
    with torch.no_grad():
        value = _evaluated(graph_module, node)
    assert isinstance(value, Tensor)
    return value.detach()


def rank(node: fx.Node) -> int:
    """How many axes a node's value has."""
    return int(node.meta["val"].ndim)


def _evaluated(graph_module: fx.GraphModule, node: fx.Node) -> Any:
    if node.op == "get_attr":
        owner, _, name = str(node.target).rpartition(".")
        return getattr(graph_module.get_submodule(owner), name)
    arguments, named = fx.node.map_arg((node.args, node.kwargs), lambda each: _evaluated(graph_module, each))
    if node.op == "call_module":
        return graph_module.get_submodule(str(node.target))(*arguments, **named)
    assert callable(node.target)
    return node.target(*arguments, **named)


def folded_weight(weight: Tensor, gain: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    """The weight `(out, ...)` of a layer with its batch normalization folded in."""
    return weight * _factor(gain, variance, epsilon).reshape(-1, *[1] * (weight.ndim - 1))


def folded_bias(
    bias: Tensor | None,
    gain: Tensor | None,
    shift: Tensor | None,
    mean: Tensor,
    variance: Tensor,
    epsilon: float,
) -> Tensor:
    """The bias `(out,)` of a layer with its batch normalization folded in."""
    centred = -mean if bias is None else bias - mean
    scaled = centred * _factor(gain, variance, epsilon)
    return scaled if shift is None else scaled + shift


def _factor(gain: Tensor | None, variance: Tensor, epsilon: float) -> Tensor:
    inverse = torch.rsqrt(variance + epsilon)
    return inverse if gain is None else gain * inverse


def _fold(graph: fx.Graph, norm: fx.Node) -> None:
    """Folds a batch normalization into the layer before it, if that layer feeds nothing else."""
    layer, gain, shift, mean, variance, _, epsilon = norm.args
    normalized = [node for node in norm.users if node.args[1] == 0]
    assert isinstance(layer, fx.Node)
    foldable = layer.target in CONVOLUTIONS or (layer.target == LINEAR and rank(layer) == 2)
    if not foldable or len(layer.users) > 1 or len(normalized) != len(norm.users):
        return
    bias = layer.args[2] if len(layer.args) > 2 else None
    # All weights are fetched at the top of the graph, before the layer.
    with graph.inserting_before(layer):
        weight = graph.call_function(folded_weight, (layer.args[1], gain, variance, epsilon))
        moved = graph.call_function(folded_bias, (bias, gain, shift, mean, variance, epsilon))
    layer.args = (layer.args[0], weight, moved, *layer.args[3:])
    for node in normalized:
        node.replace_all_uses_with(layer)
        graph.erase_node(node)
    graph.erase_node(norm)


def _transpose(graph: fx.Graph, layer: fx.Node) -> None:
    """Writes a linear layer over sequences as the product that its export would be."""
    values, weight = layer.args[:2]
    bias = layer.args[2] if len(layer.args) > 2 else None
    assert isinstance(weight, fx.Node)
    with graph.inserting_before(layer):
        turned = graph.call_function(aten.t.default, (weight,))
        turned.meta["val"] = weight.meta["val"].t()
        product = graph.call_function(aten.matmul.default, (values, turned))
        result = product if bias is None else graph.call_function(aten.add.Tensor, (product, bias))
    product.meta = result.meta = dict(layer.meta)
    layer.replace_all_uses_with(result)
    graph.erase_node(layer)
