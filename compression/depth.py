"""Fewer blocks: a block that changes little is left out, and so is the time it takes."""

from __future__ import annotations

import copy
from collections import Counter
from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any, ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    held_by,
)
from compression.channels import example_rows, multiply_accumulates, parameters_of
from compression.data import Split
from compression.finetuning import FineTuning, losses
from compression.model import Form, OnnxModel, TorchModel
from compression.prunable_layers import LAYERS
from compression.stored_size import check_stored, stored_facts


class Passage(nn.Module):
    """Stands where a block was and hands on what came in.

    Args:
        wrapped: Whether the block gave its output in a tuple.
    """

    def __init__(self, wrapped: bool) -> None:
        super().__init__()
        self.wrapped = wrapped

    def forward(self, features: Tensor, *args: object, **kwargs: object) -> Tensor | tuple[Tensor]:
        """The first argument; whatever else the block was given is not needed."""
        return (features,) if self.wrapped else features


class DepthPruningSettings(FineTuning):
    """Settings of `prune-depth`.

    Attributes:
        remove: How many blocks go.
        blocks: Names of the modules to choose from; none for all that `skippable_blocks` finds.
        rows: How many validation rows judge a model without a block.
    """

    remove: int = Field(default=1, ge=1)
    blocks: tuple[str, ...] = ()
    rows: int = Field(default=2000, ge=1)


class DepthPruning(Pass[DepthPruningSettings, TorchModel, TorchModel]):
    """Leaves out the blocks that the validation loss misses least, one after the other, then fine-tunes.

    Blocks of a residual network refine rather than replace what comes in, so that most can be left out one by
    one: Veit et al. 2016, "Residual Networks Behave Like Ensembles of Relatively Shallow Networks".
    """

    name: ClassVar[str] = "prune-depth"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = DepthPruningSettings

    def __init__(self, settings: DepthPruningSettings) -> None:
        super().__init__(settings)
        self._judged: list[Facts] = []

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to leave out layers whose weights are held."""
        return held_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are more blocks than are to go, and labels to judge by."""
        settings = self.settings
        found = skippable_blocks(model, context.splits.train, settings.blocks)
        if unfit := sorted(set(settings.blocks) - found.keys()):
            raise PassRefusedError(
                f"{', '.join(unfit)} cannot be left out: a block is a module with weights that gives one "
                "tensor of the shape it takes, and of which its owner reads nothing else. Name others."
            )
        if len(found) < settings.remove:
            raise PassRefusedError(
                f"{settings.remove} blocks are to go and the model has {len(found)} that give what they take "
                f"({', '.join(found) or 'none'}). Remove fewer, or name smaller ones in `blocks`."
            )
        if context.splits.validation.labels is None:
            raise PassRefusedError("blocks are judged on validation, which has no labels. Give it labels.")
        settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the shallower, fine-tuned model."""
        settings = self.settings
        shallow = TorchModel(copy.deepcopy(model.module).eval(), model.signature)
        blocks = skippable_blocks(shallow, context.splits.train, settings.blocks)
        rows = [context.splits.validation.spread(settings.rows)]
        self._judged = []
        for number in range(settings.remove):
            context.report(f"choosing block {number + 1}/{settings.remove}", number / settings.remove)
            (base,) = losses(shallow, context, rows)
            rises = {
                name: losses(without(shallow, {name: wrapped}), context, rows)[0] - base
                for name, wrapped in blocks.items()
            }
            chosen = min(rises, key=lambda name: rises[name])
            shallow = without(shallow, {chosen: blocks.pop(chosen)})
            self._judged.append({"removed": chosen, "loss": base, "rises": rises})
        return settings.fit(shallow, context)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that the blocks are gone with their weights and their arithmetic."""
        removed = [entry["removed"] for entry in self._judged]
        modules = dict(after.module.named_modules())
        for name in removed:
            if not isinstance(modules.get(name), Passage):
                raise BrokenPromiseError(f"block {name} is still there.")
        train = context.splits.train
        facts: Facts = {
            "removed": removed,
            "judged": self._judged,
            "parameters_before": parameters_of(before.module),
            "parameters_after": parameters_of(after.module),
            **stored_facts(before, after),
            "macs_before": multiply_accumulates(before, train),
            "macs_after": multiply_accumulates(after, train),
        }
        for unit in ("parameters", "macs"):
            if facts[f"{unit}_after"] >= facts[f"{unit}_before"]:
                raise BrokenPromiseError(f"as many {unit} are left without {', '.join(removed)}.")
        return facts

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores about as few weights as were left."""
        check_stored(facts, artifact, self.name)


def skippable_blocks(model: TorchModel, split: Split, among: tuple[str, ...] = ()) -> dict[str, bool]:
    """Modules with weights that give a tensor of the shape they take, none inside another.

    Unless named, a block has two layers or more, and a stack of blocks of one class is not a block itself.
    What its owner looks into beside calling it, as `nn.TransformerEncoder` does into its first layer, stays.

    Args:
        model: Where to look.
        split: Where example rows come from.
        among: Names to look at; none for all.

    Returns:
        By name, whether the module gives its tensor in a tuple.
    """
    fits: dict[str, bool] = {}
    misfits: set[str] = set()

    def record(name: str, _: nn.Module, given: tuple[Any, ...], output: object) -> None:
        wrapped = isinstance(output, tuple) and len(output) == 1
        result = output[0] if isinstance(output, tuple) and wrapped else output
        same = bool(given) and isinstance(given[0], Tensor) and isinstance(result, Tensor)
        if same and given[0].shape == result.shape and given[0].dtype == result.dtype:  # type: ignore[union-attr]
            fits[name] = wrapped
        else:
            misfits.add(name)

    modules = dict(model.module.named_modules())
    looked_at = among or [name for name in modules if name and _layers_in(modules[name]) > 1]
    handles = [
        modules[name].register_forward_hook(partial(record, name))
        for name in looked_at
        if name in modules and _layers_in(modules[name])
    ]
    try:
        with torch.no_grad():
            model.module(*example_rows(model, split))
    finally:
        for handle in handles:
            handle.remove()
    found = [name for name in modules if name in fits.keys() - misfits]
    if not among:
        found = [name for name in found if not _is_stack(name, found, modules)]
    found = _outermost(found)
    return {name: fits[name] for name in found if _runs_without(model, split, name, fits[name])}


def _runs_without(model: TorchModel, split: Split, name: str, wrapped: bool) -> bool:
    try:
        with torch.no_grad():
            without(model, {name: wrapped}).module(*example_rows(model, split))
    except Exception:  # whatever the owner's code says to a block that is none
        return False
    return True


def _layers_in(module: nn.Module) -> int:
    return sum(isinstance(part, LAYERS) for part in module.modules())


def _outermost(names: Sequence[str]) -> list[str]:
    return [name for name in names if not any(name.startswith(f"{other}.") for other in names)]


def _is_stack(name: str, names: Sequence[str], modules: Mapping[str, nn.Module]) -> bool:
    """Whether the module is made of several blocks of one class, beside mere sequences."""
    inner = _outermost([other for other in names if other.startswith(f"{name}.")])
    classes = Counter(type(modules[other]) for other in inner)
    del classes[nn.Sequential]
    return any(count > 1 for count in classes.values())


def without(model: TorchModel, blocks: Mapping[str, bool]) -> TorchModel:
    """A copy of the model with these blocks left out."""
    module = copy.deepcopy(model.module)
    for name, wrapped in blocks.items():
        parent, _, child = name.rpartition(".")
        setattr(module.get_submodule(parent), child, Passage(wrapped))
    return TorchModel(module, model.signature)
