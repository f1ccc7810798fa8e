"""Fewer channels: what is pruned is gone from the graph, so every runtime gains."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import ClassVar, Literal

import numpy as np
import torch
import torch_pruning
from pydantic import Field
from torch import Tensor, nn

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.data import Split
from compression.inspection import parameters
from compression.model import Form, OnnxModel, TorchModel
from compression.training import predict

EXAMPLE_ROWS = 2
NORMS = {"l1": 1, "l2": 2}
# Ranked globally, a layer of small weights could lose all its channels.
MOST_OF_A_LAYER = 0.9

_PRUNABLE = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)


class StructuredPruningSettings(Settings):
    """Settings of `prune-structured`.

    Attributes:
        ratio: Fraction of channels to remove, of each layer or of the whole model.
        importance: Norm of its weights, over all layers that a channel runs through, that ranks it.
        global_pruning: Ranks the channels of all layers together instead of layer by layer.
        round_to: What is left of a layer is the nearest multiple of this, and never less, as vector units
            like it. Narrower layers keep their width.
        ignore: Names of modules that keep their width, beside those that make the outputs.
        epochs: Fine-tuning after pruning; 0 for none.
        learning_rate: Peak learning rate of fine-tuning.
    """

    ratio: float = Field(default=0.5, gt=0.0, lt=1.0)
    importance: Literal["l1", "l2"] = "l2"
    global_pruning: bool = False
    round_to: int = Field(default=8, ge=1)
    ignore: tuple[str, ...] = ()
    epochs: int = Field(default=10, ge=0)
    learning_rate: float = Field(default=1e-3, gt=0.0)


class StructuredPruning(Pass[StructuredPruningSettings, TorchModel, TorchModel]):
    """Removes the least important channels with everything that depends on them, then fine-tunes.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", over the dependency graph of Fang et al. 2023,
    "DepGraph: Towards Any Structural Pruning".
    """

    name: ClassVar[str] = "prune-structured"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = StructuredPruningSettings

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are layers to prune, and labels to fine-tune with."""
        modules = dict(model.module.named_modules())
        if unknown := sorted(set(self.settings.ignore) - modules.keys()):
            raise PassRefusedError(
                f"there is no module {', '.join(unknown)}. Modules are {', '.join(filter(None, modules))}."
            )
        if sum(isinstance(module, _PRUNABLE) for module in modules.values()) < 2:
            raise PassRefusedError(
                "the model has fewer than two convolutions or linear layers: all its channels are outputs. "
                "Use another technique."
            )
        if self.settings.epochs and context.splits.train.labels is None:
            raise PassRefusedError(
                "fine-tuning needs labels and train has none. Set epochs to 0 and let distill follow."
            )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the narrower, fine-tuned model."""
        pruned = TorchModel(copy.deepcopy(model.module).eval(), model.signature)
        context.report("ranking channels", 0.0)
        self._prune(pruned, context.splits.train)
        if not self.settings.epochs:
            return pruned
        return context.fit(pruned, epochs=self.settings.epochs, learning_rate=self.settings.learning_rate)

    def _prune(self, model: TorchModel, split: Split) -> None:
        settings = self.settings
        frozen = {name for name, weight in model.module.named_parameters() if not weight.requires_grad}
        module = model.module.requires_grad_(True)  # the dependency graph is read off the gradient graph
        examples = _examples(model, split)
        modules = dict(module.named_modules())
        ignored = [*_output_layers(module, examples), *(modules[name] for name in settings.ignore)]
        _Pruner(
            module,
            examples,
            importance=torch_pruning.importance.GroupMagnitudeImportance(p=NORMS[settings.importance]),
            global_pruning=settings.global_pruning,
            pruning_ratio=settings.ratio,
            max_pruning_ratio=max(MOST_OF_A_LAYER, settings.ratio),
            ignored_layers=ignored,
            round_to=settings.round_to,
            # The library's defaults are shared between calls and keep the modules of earlier ones.
            in_channel_groups={},
            out_channel_groups={},
            num_heads={},
        ).step()
        for name, weight in module.named_parameters():
            weight.requires_grad_(name not in frozen)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that channels are gone while the outputs kept their shape."""
        widths_before, widths_after = _widths(before.module), _widths(after.module)
        narrower = {
            name: [width, widths_after[name]]
            for name, width in widths_before.items()
            if widths_after.get(name) != width
        }
        size_before, size_after = _size(before.module), _size(after.module)
        if not narrower or size_after >= size_before:
            raise BrokenPromiseError(
                f"no channel was removed at ratio {self.settings.ratio} with round_to "
                f"{self.settings.round_to}. Raise ratio or lower round_to."
            )
        outputs = predict(after, context.splits.validation.take(slice(0, EXAMPLE_ROWS)))
        for spec, output in zip(after.signature.outputs, outputs, strict=True):
            if not spec.accepts_shape(output.shape):
                raise BrokenPromiseError(
                    f'output "{spec.name}" has shape {list(output.shape)} after pruning; the signature says '
                    f"{spec.wire_shape}. Name the layers that make it in `ignore`."
                )
        return {"parameters_before": size_before, "parameters_after": size_after, "widths": narrower}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores about as few weights as were left, not as many as before.

        Export folds and adds a few, so that the count need not be equal.
        """
        stored = parameters(artifact)
        before, after = facts["parameters_before"], facts["parameters_after"]
        if stored > (before + after) / 2:
            raise BrokenPromiseError(
                f"the artifact stores {stored} weights, nearer to the {before} before pruning than to the "
                f"{after} after it. A later step replaced the pruned model: leave one of them out."
            )


class _Pruner(torch_pruning.MetaPruner):  # type: ignore[misc]  # published without types
    """The library's pruner with honest rounding (its version is pinned).

    Its own always rounds widths down, so that a ratio of 0.05 removes half of a layer of 32 at multiples
    of 16, and a ratio that would round a layer to nothing leaves it whole.
    """

    def _round_to(self, pruned: int, width: int, multiple: int) -> int:
        kept = (width - pruned + multiple // 2) // multiple * multiple
        return width - min(max(kept, multiple), width)


def _examples(model: TorchModel, split: Split) -> tuple[Tensor, ...]:
    device = next(model.module.parameters()).device
    return tuple(
        torch.from_numpy(np.ascontiguousarray(split.inputs[spec.name][:EXAMPLE_ROWS])).to(device)
        for spec in model.signature.inputs
    )


def _output_layers(module: nn.Module, examples: tuple[Tensor, ...]) -> Iterator[nn.Module]:
    """The layers whose channels run through to an output of the model."""
    graph = torch_pruning.DependencyGraph().build_dependency(module, example_inputs=examples)
    for layer in module.modules():
        if isinstance(layer, _PRUNABLE) and layer in graph.module2node:
            prune_out = graph.get_pruner_of_module(layer).prune_out_channels
            for dependency, _ in graph.get_pruning_group(layer, prune_out, idxs=[0]):
                ends = not dependency.target.outputs
                if ends and graph.is_out_channel_pruning_fn(dependency.handler):
                    yield layer
                    break


def _widths(module: nn.Module) -> dict[str, int]:
    """Output channels of every layer that can be pruned, by module name."""
    return {
        name: layer.weight.shape[0] for name, layer in module.named_modules() if isinstance(layer, _PRUNABLE)
    }


def _size(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())
