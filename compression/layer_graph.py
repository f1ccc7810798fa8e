"""The layers of a traced module, and what is put in front of their weights."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

from torch import Tensor, fx, nn

from compression.tracing import CONVOLUTIONS, LINEAR, PRODUCTS, constant, constants, rank, settled

# Heavy operators -> where their weight has its output channels.
_AXES: dict[Any, int] = {**dict.fromkeys(CONVOLUTIONS, 0), LINEAR: 0, **dict.fromkeys(PRODUCTS, 1)}


def layers(module: fx.GraphModule) -> dict[fx.Node, int]:
    """The convolutions and matrix products whose weight depends on no input.

    Returns:
        In order, where the weight of each has its output channels.
    """
    known = constants(module.graph)
    return {
        node: _AXES[node.target]
        for node in module.graph.nodes
        if node.target in _AXES and node.args[1] in known and node.args[0] not in known
        if node.target not in PRODUCTS or rank(node.args[1]) == 2
    }


def argument(node: fx.Node, position: int) -> fx.Node:
    """The node that gives this argument."""
    given = node.args[position]
    assert isinstance(given, fx.Node)
    return given


def weight_of(module: fx.GraphModule, layer: fx.Node) -> Tensor:
    """A layer's present weight, with what normalization and masks do to it."""
    return constant(module, argument(layer, 1))


def held_zeros(module: fx.GraphModule, layer: fx.Node) -> int:
    """How many of a layer's weights a parametrization, such as a mask, holds at zero: others may learn."""
    weight = argument(layer, 1)
    is_held = any("parametrizations." in str(source.target) for source in _sources(weight))
    return int((constant(module, weight) == 0).sum()) if is_held else 0


def is_shared(module: fx.GraphModule, layer: fx.Node) -> bool:
    """Whether a parameter of a layer's weight makes something else, too, such as an embedding's table."""
    known = constants(module.graph)
    parameters = dict(module.named_parameters(remove_duplicate=False))
    own = {id(parameters.get(str(source.target))) for source in _sources(argument(layer, 1))} - {id(None)}
    waiting = [
        node
        for node in module.graph.nodes
        if node.op == "get_attr" and id(parameters.get(str(node.target))) in own
    ]
    readers: set[fx.Node] = set()
    while waiting:
        users = waiting.pop().users
        waiting.extend(user for user in users if user in known)
        readers.update(user for user in users if user not in known)
    return len(readers) > 1


def _sources(weight: fx.Node) -> Iterator[fx.Node]:
    """The stored tensors that a weight is made of."""
    if weight.op == "get_attr":
        yield weight
    for given in weight.all_input_nodes:
        yield from _sources(given)


def place_on_weights(module: fx.GraphModule, parts: Mapping[fx.Node, nn.Module]) -> None:
    """Lets each layer's weight, as normalization and masks leave it, pass through a part of its own."""
    graph = module.graph
    for index, (layer, part) in enumerate(parts.items()):
        weight, name = argument(layer, 1), f"weight_parts_{index}"
        module.add_submodule(name, part)
        with graph.inserting_before(layer):
            passed = graph.call_module(name, (weight,))
        passed.meta = dict(weight.meta)
        layer.update_arg(1, passed)


def placed(module: fx.GraphModule, kind: type[nn.Module]) -> dict[fx.Node, nn.Module]:
    """The layers whose weight passes through a part of this kind, in order."""
    found = {}
    for layer in layers(module):
        given = argument(layer, 1)
        part = module.get_submodule(str(given.target)) if given.op == "call_module" else None
        if isinstance(part, kind):
            found[layer] = part
    return found


def name_of(weight: fx.Node) -> str:
    """The name that a weight has in the model, whatever norms and masks make of it first."""
    while weight.op != "get_attr":
        weight = weight.all_input_nodes[0]
    return str(weight.target).replace("parametrizations.", "").removesuffix(".original")


def keep(module: fx.GraphModule, name: str, values: Tensor) -> str:
    """Stores values beside the weight of that name, and returns what they are called, also in the export."""
    owner, _, last = name.rpartition(".")
    holder = module.get_submodule(owner)
    while hasattr(holder, last):  # of a weight that two layers share
        last += "_too"
    holder.register_buffer(last, values)
    return f"{owner}.{last}".lstrip(".")


def stored(module: fx.GraphModule, kind: type[nn.Module]) -> tuple[fx.GraphModule, dict[str, Tensor]]:
    """The module, which is changed, with weights as such parts leave them.

    Returns:
        The module without the parts, and by the name that a weight has in it and in its export, the weight
        before its part.
    """
    graph, weights = module.graph, {}
    for layer, part in placed(module, kind).items():
        source = argument(argument(layer, 1), 0)
        weight = constant(module, source)
        name = keep(module, f"{name_of(source)}_rounded", part(weight).detach())
        weights[name] = weight
        with graph.inserting_before(layer):
            layer.update_arg(1, graph.get_attr(name))
    return settled(module), weights
