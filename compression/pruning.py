"""Fewer channels: what is pruned is gone from the graph, so every runtime gains."""

from __future__ import annotations

import copy
from typing import ClassVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    check_known,
    held_by,
)
from compression.channels import (
    Survey,
    Widths,
    multiply_accumulates,
    parameters_of,
    widths_of,
)
from compression.cutting import check_runs, cut
from compression.finetuning import GradualFineTuning
from compression.importance import NORMS, Importance, check_importance, ranked_channels
from compression.model import Form, OnnxModel, TorchModel
from compression.prunable_layers import LAYERS
from compression.stored_size import check_stored, stored_facts
from compression.training import Objective, labels_objective

# Nothing prunable is left beyond this: every group keeps one multiple of `round_to`.
_LARGEST_RATIO = 0.99
_BISECTIONS = 12


class StructuredPruningSettings(GradualFineTuning):
    """Settings of `prune-structured`; `rounds` rank anew each time.

    Attributes:
        ratio: Fraction of channels to remove, of each layer or of the whole model.
        target_macs: Prune until at most this share of the multiply-accumulates is left, instead of `ratio`.
        importance: What ranks the channels: see `importance.ranked_channels`.
        global_pruning: Ranks the channels of all layers together instead of layer by layer.
        round_to: What is left of a layer is the nearest multiple of this, and never less, as vector units
            like it. Narrower layers keep their width.
        ignore: Names of modules that keep their width, beside those that make the outputs.
        slimming: Weight of the sum of absolute batch-normalization scales, learned to be few in
            `slimming_epochs` before the first round; for `bn-gamma`.
        slimming_epochs: Epochs of that.
    """

    ratio: float = Field(default=0.5, gt=0.0, lt=1.0)
    target_macs: float | None = Field(default=None, gt=0.0, lt=1.0)
    importance: Importance = "l2"
    global_pruning: bool = False
    round_to: int = Field(default=8, ge=1)
    ignore: tuple[str, ...] = ()
    slimming: float = Field(default=0.0, ge=0.0)
    slimming_epochs: int = Field(default=5, ge=1)


class StructuredPruning(Pass[StructuredPruningSettings, TorchModel, TorchModel]):
    """Removes the least important channels with everything that depends on them, then fine-tunes.

    Li et al. 2017, "Pruning Filters for Efficient ConvNets", over the dependency graph of Fang et al. 2023,
    "DepGraph: Towards Any Structural Pruning". A layer without some of whose channels the module would not
    run keeps its width, and is named in the facts.
    """

    name: ClassVar[str] = "prune-structured"
    version: ClassVar[int] = 5
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = StructuredPruningSettings

    def __init__(self, settings: StructuredPruningSettings) -> None:
        super().__init__(settings)
        self._rounds: list[Facts] = []
        self._whole: set[str] = set()

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to reshape layers whose weights are held."""
        return held_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are layers to prune, and what ranks, teaches and judges them."""
        settings = self.settings
        check_prunable(model, settings.ignore)
        check_importance(settings.importance, model, context)
        if settings.slimming and settings.importance != "bn-gamma":
            raise PassRefusedError(
                f"slimming teaches the scales that bn-gamma ranks by; {settings.importance} does not read "
                "them. Set importance to bn-gamma, or slimming to 0."
            )
        if settings.slimming and context.splits.train.labels is None:
            raise PassRefusedError("slimming learns from labels and train has none. Set slimming to 0.")
        settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the narrower, fine-tuned model."""
        settings = self.settings
        original = widths_of(model.module)
        macs = multiply_accumulates(model, context.splits.train)
        current = TorchModel(copy.deepcopy(model.module).eval(), model.signature)
        if settings.slimming:
            current = self._slim(current, context)
        narrow, self._rounds = settings.descend(
            current, context, lambda wide, number: self._narrower(wide, context, number, original, macs)
        )
        return narrow

    def _slim(self, model: TorchModel, context: PassContext) -> TorchModel:
        settings, own = self.settings, labels_objective(context.training)
        objective = Objective(
            own.train,
            own.validation,
            f"{own.key} slimming {settings.slimming}",
            penalty=lambda module: settings.slimming * _scales(module),
        )
        return context.fit(
            model, epochs=settings.slimming_epochs, learning_rate=settings.rate(context), objective=objective
        )

    def _narrower(
        self, model: TorchModel, context: PassContext, number: int, original: Widths, macs: float
    ) -> TorchModel:
        """The model after the cut of a round: each takes away an equal share of what is left."""
        settings = self.settings
        found = ranked_channels(model, context, settings.importance, settings.ignore)
        done = number / settings.rounds

        def choose(survey: Survey) -> Widths:
            if settings.target_macs is None:
                return self._widths(survey, 1.0 - (1.0 - settings.ratio) ** done, original)
            return self._widths_at(survey, settings.target_macs**done * macs, original)

        narrow, found = cut(model, context, found, choose)
        self._whole |= set(found.whole)
        return narrow

    def _widths(self, found: Survey, ratio: float, original: Widths) -> Widths:
        choose = found.ranked if self.settings.global_pruning else found.uniform
        return choose(ratio, original, self.settings.round_to)

    def _widths_at(self, found: Survey, macs: float, original: Widths) -> Widths:
        """Widths of the smallest ratio that leaves at most so many multiply-accumulates."""
        low, high = 0.0, _LARGEST_RATIO
        least = found.macs(self._widths(found, high, original))
        if least > macs:
            raise PassRefusedError(
                f"with every prunable layer at its least width {least:.4g} multiply-accumulates are left; "
                f"{macs:.4g} were asked for. Raise target_macs, lower round_to or ignore less."
            )
        for _ in range(_BISECTIONS):
            middle = (low + high) / 2
            if found.macs(self._widths(found, middle, original)) > macs:
                low = middle
            else:
                high = middle
        return self._widths(found, high, original)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that channels are gone, down to the target or the floor, and outputs kept their shape."""
        settings = self.settings
        stopped = settings.check_rounds(self._rounds)
        facts = width_facts(before, after, context)
        if settings.target_macs is not None and not stopped:
            check_macs(facts, settings.target_macs)
        return {
            **facts,
            "kept_whole": sorted(self._whole),
            "rounds": self._rounds,
            "stopped_by_floor": stopped,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores about as few weights as were left, not as many as before."""
        check_stored(facts, artifact, self.name)


def check_prunable(model: TorchModel, ignore: tuple[str, ...] = ()) -> None:
    """Checks that channels can be removed from a model at all.

    Raises:
        PassRefusedError: A name in `ignore` is unknown, there are too few layers, or a parametrization of an
            earlier pass has the shape of its weight.
    """
    modules = dict(model.module.named_modules())
    check_known("module", ignore, modules)
    if sum(isinstance(module, LAYERS) for module in modules.values()) < 2:
        raise PassRefusedError(
            "the model has fewer than two convolutions or linear layers: all its channels are outputs. "
            "Use another technique."
        )
    held = [name for name, module in modules.items() if parametrize.is_parametrized(module)]
    if held:
        raise PassRefusedError(
            f"the weights of {', '.join(held)} are held in a parametrization of their shape, such as a mask "
            "or a norm. Put passes that remove channels before those that mask or share weights, and train "
            "the module without what constrains them."
        )


def width_facts(before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
    """What became narrower, with sizes and multiply-accumulates on both sides.

    Raises:
        BrokenPromiseError: Nothing did.
        PassRefusedError: An output changed its shape.
    """
    wide, narrow = widths_of(before.module), widths_of(after.module)
    narrower = {name: [width, narrow[name]] for name, width in wide.items() if narrow.get(name) != width}
    size_before, size_after = parameters_of(before.module), parameters_of(after.module)
    if not narrower or size_after >= size_before:
        raise BrokenPromiseError(
            "no channel was removed: rounding to a multiple, `ignore` or the floor left every layer as wide "
            "as it was. Prune more or lower round_to."
        )
    check_runs(after, context)
    return {
        "parameters_before": size_before,
        "parameters_after": size_after,
        **stored_facts(before, after),
        "macs_before": multiply_accumulates(before, context.splits.train),
        "macs_after": multiply_accumulates(after, context.splits.train),
        "widths": narrower,
    }


def check_macs(facts: Facts, target: float) -> None:
    """Checks that at most the wanted share of multiply-accumulates is left.

    Raises:
        BrokenPromiseError: There are more.
    """
    share = facts["macs_after"] / facts["macs_before"]
    if share > target * (1.0 + 1e-6):
        raise BrokenPromiseError(
            f"{share:.3f} of the multiply-accumulates are left; {target} were asked for. Lower round_to."
        )


def _scales(module: nn.Module) -> Tensor:
    """Sum of the absolute scales of all batch normalizations."""
    scales = [part.weight.abs().sum() for part in module.modules() if isinstance(part, NORMS) and part.affine]
    return torch.stack(scales).sum()
