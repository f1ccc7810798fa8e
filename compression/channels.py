"""Channels that can only go together, what they cost, and the module without some of them.

The dependency graph is that of Fang et al. 2023, "DepGraph: Towards Any Structural Pruning".
"""

from __future__ import annotations

import copy
import math
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils.flop_counter import FlopCounterMode

from compression.base import PassRefusedError
from compression.data import Split
from compression.model import TorchModel
from compression.prunable_layers import (
    COSTLY,
    LAYERS,
    LayerHooks,
    layers_cut_apart,
    layers_of_shared_weights,
)

EXAMPLE_ROWS = 2
# Ranked globally, a layer of small weights could lose all its channels.
MOST_OF_A_LAYER = 0.9

# What the library calls a group: the channels of one layer with all that depends on them.
LibraryGroup = Any
# How much each channel of a group matters, `(width,)`; None for a group that the technique cannot rank.
Score = Callable[[LibraryGroup], Tensor | None]
# Widths to keep, by the name of the group.
Widths = Mapping[str, int]


@dataclass(frozen=True)
class ChannelGroup:
    """Channels of one layer, and of all layers that add to them or read them.

    Attributes:
        name: The layer that makes them.
        width: How many there are.
        parts: As many equal parts lose the same channels each, for grouped convolutions.
        scores: How much each channel of a part matters, `(width / parts,)`, 1 on average.
        makes: Channels of this group among the outputs of each layer.
        reads: Channels of this group among the inputs of each layer.
    """

    name: str
    width: int
    parts: int
    scores: Tensor
    makes: Mapping[str, int]
    reads: Mapping[str, int]

    def rounded(self, wanted: float, multiple: int) -> int:
        """The nearest width that divides by the parts and the multiple, and is never nothing."""
        step = math.lcm(multiple, self.parts)
        return min(max((int(wanted) + step // 2) // step * step, step), self.width)

    def removed(self, kept: int) -> list[int]:
        """The least important channels beyond so many."""
        units = self.width // self.parts
        least = torch.argsort(self.scores, stable=True)[: (self.width - kept) // self.parts].tolist()
        return sorted(part * units + unit for part in range(self.parts) for unit in least)


@dataclass(frozen=True)
class Survey:
    """What a model's channels cost and how much they matter.

    Attributes:
        groups: All channels that may go.
        layers: Multiply-accumulates, input and output channels of each layer.
        other: Multiply-accumulates outside layers, such as attention's.
        whole: Layers that keep their width as the library, or the module, fails without a channel of theirs.
    """

    groups: tuple[ChannelGroup, ...]
    layers: Mapping[str, tuple[float, int, int]]
    other: float
    whole: tuple[str, ...] = ()

    def macs(self, widths: Widths) -> float:
        """Multiply-accumulates for one row at these widths; groups that are not named keep theirs."""
        made: defaultdict[str, float] = defaultdict(float)
        read: defaultdict[str, float] = defaultdict(float)
        for group in self.groups:
            gone = 1.0 - widths.get(group.name, group.width) / group.width
            for name, channels in group.makes.items():
                made[name] += channels * gone
            for name, channels in group.reads.items():
                read[name] += channels * gone
        return self.other + sum(
            macs * (1.0 - read[name] / inputs) * (1.0 - made[name] / outputs)
            for name, (macs, inputs, outputs) in self.layers.items()
        )

    def uniform(self, ratio: float, original: Widths, multiple: int) -> dict[str, int]:
        """Widths without that fraction of every group's original channels."""
        return {
            group.name: group.rounded(original[group.name] * (1.0 - ratio), multiple) for group in self.groups
        }

    def ranked(self, ratio: float, original: Widths, multiple: int) -> dict[str, int]:
        """Widths without the least important of all groups' channels, a fraction of the original ones."""
        scores = torch.cat([group.scores for group in self.groups])
        units = sum(original[group.name] // group.parts for group in self.groups)
        removed = len(scores) - int(units * (1.0 - ratio))
        if removed <= 0:
            return {group.name: group.width for group in self.groups}
        threshold = torch.sort(scores).values[removed - 1]
        least = 1.0 - max(MOST_OF_A_LAYER, ratio)
        return {
            group.name: group.rounded(
                max(int((group.scores > threshold).sum()) * group.parts, original[group.name] * least),
                multiple,
            )
            for group in self.groups
        }


def survey(model: TorchModel, split: Split, score: Score, ignore: Sequence[str] = ()) -> Survey:
    """The channels of a model that may go, ranked; its parameters must require gradients.

    Left out are channels that run to an output, those of ignored layers and of layers that share weights,
    those that a transposed convolution makes, those that are a part of what a grouped layer reads, and those
    that the module cuts into attention heads, where a missing channel would shift all others into another
    head.

    Raises:
        PassRefusedError: The library cannot follow the channels, or none may go.
    """
    module, examples = model.module, example_rows(model, split)
    names = {layer: name for name, layer in module.named_modules()}
    kept = {part for name in ignore for part in module.get_submodule(name).modules()}
    kept |= layers_cut_apart(module, examples)
    shared = layers_of_shared_weights(module)
    try:
        graph = torch_pruning.DependencyGraph().build_dependency(
            module, example_inputs=examples, output_transform=_with_ends_of_their_own
        )
        found = list(graph.get_all_groups())
    except Exception as error:  # the library's errors have no common base
        raise PassRefusedError(
            f"torch-pruning cannot follow the channels of this module ({type(error).__name__}: {error}), as "
            "with recurrent layers. Leave structured pruning out; prune-unstructured and distill need none "
            "of it."
        ) from error
    groups = []
    failures: dict[str, PassRefusedError] = {}
    for members in found:
        if not _may_go(graph, members, kept, shared):
            continue
        name = names[members[0].dep.target.module]
        try:
            with _following(name):
                scores = score(members)
        except PassRefusedError as error:
            failures[name] = error
            continue
        if scores is not None:
            groups.append(_described(graph, members, scores, names))
    if not groups:
        if failures:
            raise next(iter(failures.values()))
        raise PassRefusedError(
            "no layer may lose channels: all of them run to outputs, into attention heads, or through layers "
            "that share weights or are ignored. Ignore fewer, or use prune-unstructured."
        )
    layers = _layer_costs(module, examples, names)
    other = multiply_accumulates(model, split) - sum(macs for macs, _, _ in layers.values())
    return Survey(tuple(groups), layers, other, tuple(failures))


def narrowed(model: TorchModel, split: Split, groups: Sequence[ChannelGroup], widths: Widths) -> TorchModel:
    """A copy of the model whose groups have these widths, without their least important channels.

    Args:
        model: What the groups were found in.
        split: Where example rows come from.
        groups: The ranked groups of `survey`.
        widths: What is left of each; groups that are not named keep theirs.

    Raises:
        PassRefusedError: The library removes others than it was told to.
    """
    copied = traceable(model)
    module = copied.module
    graph = torch_pruning.DependencyGraph().build_dependency(
        module, example_inputs=example_rows(copied, split)
    )
    for group in groups:
        if removed := group.removed(widths.get(group.name, group.width)):
            layer = module.get_submodule(group.name)
            pruner = graph.get_pruner_of_module(layer)
            kept = pruner.get_out_channels(layer) - len(removed)
            with _following(group.name):
                graph.get_pruning_group(layer, pruner.prune_out_channels, idxs=removed).prune()
            if (left := pruner.get_out_channels(layer)) != kept:
                raise PassRefusedError(
                    f"torch-pruning leaves {left} channels of {group.name} where {kept} were to stay: it "
                    "cannot follow how they are taken apart. Name the layer in `ignore`."
                )
    learned = {name: weight.requires_grad for name, weight in model.module.named_parameters()}
    for name, weight in module.named_parameters():
        weight.grad = None
        weight.requires_grad_(learned[name])
    return copied


def traceable(model: TorchModel) -> TorchModel:
    """A copy in eval mode that requires all gradients: the dependency graph is read off their graph."""
    return replace(model, module=copy.deepcopy(model.module).eval().requires_grad_(True))


def example_rows(model: TorchModel, split: Split) -> tuple[Tensor, ...]:
    """A few real rows on the model's device, inputs in signature order."""
    device = next(model.module.parameters()).device
    return tuple(
        torch.from_numpy(np.ascontiguousarray(split.inputs[spec.name][:EXAMPLE_ROWS])).to(device)
        for spec in model.signature.inputs
    )


def _of_recurrent_layer(
    steps: Sequence[int], first: Sequence[int], again: Sequence[int], *_: Any, **__: Any
) -> int:
    """Floating operations of one direction: the weights of what comes in and of the state, in each step."""
    return 2 * math.prod(steps[:-1]) * (math.prod(first) + math.prod(again))


# What torch's counter leaves out.
_UNCOUNTED = {torch.ops.aten.mkldnn_rnn_layer: _of_recurrent_layer}


def multiply_accumulates(model: TorchModel, split: Split) -> float:
    """Multiply-accumulates for one row, counted while the module runs."""
    examples = example_rows(model, split)
    counter = FlopCounterMode(display=False, custom_mapping=_UNCOUNTED)
    with counter, torch.no_grad(), sdpa_kernel(SDPBackend.MATH):  # attention as the products that it is
        model.module(*examples)
    return float(counter.get_total_flops()) / 2 / len(examples[0])


def widths_of(module: nn.Module) -> dict[str, int]:
    """Output channels of every layer that can be pruned, by module name."""
    return {
        name: layer.weight.shape[0] for name, layer in module.named_modules() if isinstance(layer, LAYERS)
    }


def parameters_of(module: nn.Module) -> int:
    """How many parameters a module has."""
    return sum(parameter.numel() for parameter in module.parameters())


def _with_ends_of_their_own(outputs: Tensor | Sequence[Tensor]) -> list[Tensor]:
    """The outputs, each at an end of the graph even where a layer reads it too."""
    outputs = [outputs] if isinstance(outputs, Tensor) else list(outputs)
    return [output * 1 for output in outputs if output.requires_grad]


@contextmanager
def _following(name: str) -> Iterator[None]:
    """Says of which layer the library cannot follow the channels; its errors have no common base."""
    try:
        yield
    except Exception as error:
        raise PassRefusedError(
            f"torch-pruning cannot follow the channels of {name} ({type(error).__name__}: {error}). Name the "
            "layer in `ignore`; prune-unstructured and distill need none of it."
        ) from error


def _may_go(graph: Any, members: LibraryGroup, kept: set[nn.Module], shared: set[nn.Module]) -> bool:
    if not isinstance(members[0].dep.target.module, LAYERS):
        return False
    for dependency, channels in members:
        makes = graph.is_out_channel_pruning_fn(dependency.handler)
        layer = dependency.target.module
        if makes and (layer in kept or not dependency.target.outputs):
            return False
        if layer in shared or isinstance(layer, nn.MultiheadAttention):
            return False
        parts, width = _cut_by(graph, dependency)
        if parts > 1 and len(channels) < width:
            return False
    return True


def _cut_by(graph: Any, dependency: Any) -> tuple[int, int]:
    """Into how many parts, which must lose the same channels each, a layer cuts how many channels."""
    layer = dependency.target.module
    pruner = graph.get_pruner_of_module(layer)
    if graph.is_out_channel_pruning_fn(dependency.handler):
        parts, width = pruner.get_out_channel_groups(layer), pruner.get_out_channels(layer)
    else:
        parts, width = pruner.get_in_channel_groups(layer), pruner.get_in_channels(layer)
    # A depthwise convolution loses any channel with its own filter.
    is_depthwise = getattr(layer, "groups", 1) == getattr(layer, "out_channels", None)
    return (1 if is_depthwise else parts), width


def _described(
    graph: Any, members: LibraryGroup, scores: Tensor, names: Mapping[nn.Module, str]
) -> ChannelGroup:
    parts = 1
    makes: dict[str, int] = {}
    reads: dict[str, int] = {}
    for dependency, channels in members:
        layer = dependency.target.module
        if layer not in names:
            continue
        makes_them = graph.is_out_channel_pruning_fn(dependency.handler)
        if isinstance(layer, COSTLY):
            (makes if makes_them else reads)[names[layer]] = len(channels)
        parts = math.lcm(parts, _cut_by(graph, dependency)[0])
    means = scores.detach().cpu().reshape(parts, -1).mean(0)
    name = names[members[0].dep.target.module]
    return ChannelGroup(name, len(scores), parts, means / (means.mean() + 1e-12), makes, reads)


def _layer_costs(
    module: nn.Module, examples: tuple[Tensor, ...], names: Mapping[nn.Module, str]
) -> dict[str, tuple[float, int, int]]:
    costs: dict[str, tuple[float, int, int]] = {}

    def record(layer: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        weight = layer.weight
        assert isinstance(weight, Tensor)
        # A weight's first axis is that of its output; where a convolution is transposed, of its input.
        near, far = weight.shape[0], weight.shape[1] * int(getattr(layer, "groups", 1))
        inputs, outputs = (far, near) if isinstance(layer, LAYERS) else (near, far)
        values = output if isinstance(layer, LAYERS) else given[0]
        macs = values.numel() / len(examples[0]) * weight[0].numel()
        earlier = costs.get(names[layer], (0.0, 0, 0))[0]
        costs[names[layer]] = (earlier + macs, inputs, outputs)

    with torch.no_grad(), LayerHooks(module, record, COSTLY):
        module(*examples)
    return costs
