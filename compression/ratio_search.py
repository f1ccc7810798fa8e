"""How narrow each layer may become: a search on validation instead of one ratio for all."""

from __future__ import annotations

import copy
import math
from collections.abc import Sequence
from typing import ClassVar, Literal

import numpy as np
import optuna
import torch
from pydantic import Field

from compression.base import AnyPass, Facts, Pass, PassContext, PassRefusedError, Settings, held_by
from compression.channels import MOST_OF_A_LAYER, Survey, Widths, narrowed
from compression.chatter import quiet
from compression.cutting import cut
from compression.data import Split
from compression.finetuning import FineTuning, losses
from compression.importance import NORMS, Importance, check_importance, ranked_channels
from compression.model import Form, OnnxModel, TorchModel
from compression.pruning import check_macs, check_prunable, width_facts
from compression.stored_size import check_stored
from compression.training import PREDICT_BATCH

_MOST_LEVELS = 8
_POPULATION = 16
# How unevenly a search may spread what is removed: the least share of a layer beside the largest.
_LEAST_SHARE = 0.05
_BISECTIONS = 20
_SMALLEST_RISE = 1e-6

Key = tuple[int, ...]


class RatioSearchSettings(FineTuning):
    """Settings of `prune-search`.

    Attributes:
        method: `greedy` measures how the loss rises as each layer narrows alone, and takes channels where
            they cost least per multiply-accumulate; `evolutionary` breeds whole sets of ratios.
        target_macs: Share of the multiply-accumulates that may be left.
        trials: How many narrower models are judged; by `greedy` at least two of each layer.
        rows: How many validation rows judge each of them.
        folds: Parts of those rows that the search's own luck is measured on.
        recalibration: Calibration rows from which each model's normalizations are measured anew before it is
            judged, without which every narrower model looks bad; 0 for none.
        importance: What ranks the channels within a layer: see `importance.ranked_channels`.
        round_to: Widths are multiples of this.
        ignore: Names of modules that keep their width, beside those that make the outputs.
        epochs: Fine-tuning of the model that was chosen; 0 for none.
    """

    method: Literal["greedy", "evolutionary"] = "evolutionary"
    target_macs: float = Field(default=0.5, gt=0.0, lt=1.0)
    trials: int = Field(default=64, ge=4)
    rows: int = Field(default=2000, ge=10)
    folds: int = Field(default=5, ge=2)
    recalibration: int = Field(default=512, ge=0)
    importance: Importance = "l2"
    round_to: int = Field(default=8, ge=1)
    ignore: tuple[str, ...] = ()


class RatioSearch(Pass[RatioSearchSettings, TorchModel, TorchModel]):
    """Finds a width for each layer that keeps the validation loss low, prunes to it, then fine-tunes.

    The greedy walk follows the sensitivities of Li et al. 2017, "Pruning Filters for Efficient ConvNets",
    and Yang et al. 2018, "NetAdapt"; evolution is NSGA-II (Deb et al. 2002) through optuna. Candidates are
    judged after their normalizations were measured anew: Li et al. 2020, "EagleEye". One ratio for all layers
    is always among them.
    """

    name: ClassVar[str] = "prune-search"
    version: ClassVar[int] = 4
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = RatioSearchSettings

    def __init__(self, settings: RatioSearchSettings) -> None:
        super().__init__(settings)
        self._found: Facts = {}
        self._whole: list[str] = []

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to reshape layers whose weights are held."""
        return held_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are layers to prune, and what ranks, judges and teaches them."""
        check_prunable(model, self.settings.ignore)
        check_importance(self.settings.importance, model, context)
        validation = context.splits.validation
        if validation.labels is None or len(validation) < self.settings.folds:
            raise PassRefusedError(
                f"candidates are judged on {self.settings.folds} folds of validation, which has "
                f"{len(validation)} rows{'' if validation.labels is not None else ' without labels'}. "
                "Give it more labelled rows."
            )
        self.settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the model at the widths that were found, fine-tuned."""
        search = _Search(model, context, self.settings)
        uniform = search.uniform(search.survey)
        search.judge(uniform)
        candidates = [uniform]
        candidates += [search.greedy()] if self.settings.method == "greedy" else search.evolve()
        chosen = min(candidates, key=lambda widths: float(np.mean(search.judge(widths))))
        self._whole = sorted(search.survey.whole)
        self._found = {
            "method": self.settings.method,
            "judged": len(search.known),
            "loss": float(np.mean(search.judge(chosen))),
            "uniform_loss": float(np.mean(search.judge(uniform))),
            "cross_validated_loss": cross_validated([search.judge(widths) for widths in candidates]),
            "uniform_won": chosen == uniform,
        }
        return self.settings.fit(search.candidate(chosen), context)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that channels are gone and at most the wanted multiply-accumulates are left."""
        facts = width_facts(before, after, context)
        check_macs(facts, self.settings.target_macs)
        return {**facts, "kept_whole": self._whole, "search": self._found}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores about as few weights as were left, not as many as before."""
        check_stored(facts, artifact, self.name)


class _Search:
    """Widths under a budget of multiply-accumulates, and the losses of those that were judged."""

    def __init__(self, model: TorchModel, context: PassContext, settings: RatioSearchSettings) -> None:
        self.model = model
        self.context = context
        self.settings = settings
        found = ranked_channels(model, context, settings.importance, settings.ignore)
        self.budget = settings.target_macs * found.macs({})
        _, self.survey = cut(model, context, found, self.uniform)
        self.full = {group.name: group.width for group in self.survey.groups}
        order = np.random.default_rng(context.seed).permutation(len(context.splits.validation))
        self.folds = [
            context.splits.validation.take(np.sort(rows))
            for rows in np.array_split(order[: settings.rows], settings.folds)
        ]
        self.known: dict[Key, list[float]] = {}

    def uniform(self, found: Survey) -> dict[str, int]:
        """Widths of groups that all lose the same share."""
        return even(found, [1.0] * len(found.groups), self.budget, self.settings.round_to)

    def candidate(self, widths: Widths) -> TorchModel:
        """The model at these widths, before fine-tuning."""
        train, calibration = self.context.splits.train, self.context.splits.calibration
        narrow = narrowed(self.model, train, self.survey.groups, widths)
        rows = self.settings.recalibration
        return recalibrated(narrow, calibration.spread(rows)) if rows else narrow

    def judge(self, widths: Widths) -> list[float]:
        """Loss on each fold."""
        key = tuple(widths[group.name] for group in self.survey.groups)
        if key not in self.known:
            self.known[key] = losses(self.candidate(widths), self.context, self.folds)
            share = min(len(self.known) / self.settings.trials, 1.0)
            self.context.report(f"judged {len(self.known)} narrower models", share)
        return self.known[key]

    def greedy(self) -> dict[str, int]:
        """Takes channels where the loss rises least for the arithmetic saved, until within the budget."""
        base = float(np.mean(self.judge(self.full)))
        steps = {name: self._steps(name, base) for name in self.full}
        widths = dict(self.full)
        while (macs := self.survey.macs(widths)) > self.budget:
            prices = {}
            for name, (here, *further) in steps.items():
                if further:
                    saved = macs - self.survey.macs({**widths, name: further[0][0]})
                    prices[name] = max(further[0][1] - here[1], _SMALLEST_RISE) / saved
            if not prices:  # `even` found that the least widths are within the budget
                break
            cheapest = min(prices, key=lambda name: prices[name])
            steps[cheapest].pop(0)
            widths[cheapest] = steps[cheapest][0][0]
        return widths

    def _steps(self, name: str, base: float) -> list[tuple[int, float]]:
        """Ever narrower widths of one layer, with how much the loss rises when it alone is so narrow."""
        group = next(group for group in self.survey.groups if group.name == name)
        levels = min(max(self.settings.trials // len(self.full), 2), _MOST_LEVELS)
        ratios = np.linspace(0.0, MOST_OF_A_LAYER, levels + 1)[1:]
        widths = {group.rounded(group.width * (1.0 - ratio), self.settings.round_to) for ratio in ratios}
        rises = [
            (width, float(np.mean(self.judge({**self.full, name: width}))) - base)
            for width in sorted(widths - {group.width}, reverse=True)
        ]
        return [(group.width, 0.0), *rises]

    def evolve(self) -> list[dict[str, int]]:
        """Every set of widths that evolution came upon."""
        names = list(self.full)
        bred: list[dict[str, int]] = []

        def loss(trial: optuna.Trial) -> float:
            shares = [trial.suggest_float(name, _LEAST_SHARE, 1.0) for name in names]
            widths = even(self.survey, shares, self.budget, self.settings.round_to)
            bred.append(widths)
            return float(np.mean(self.judge(widths)))

        with quiet("optuna"):
            sampler = optuna.samplers.NSGAIISampler(
                population_size=min(_POPULATION, self.settings.trials // 2), seed=self.context.seed
            )
            study = optuna.create_study(sampler=sampler)
            study.enqueue_trial(dict.fromkeys(names, 1.0))
            study.optimize(loss, n_trials=self.settings.trials)
        return bred


def even(found: Survey, shares: Sequence[float], budget: float, multiple: int) -> dict[str, int]:
    """Widths of the widest model within a budget whose layers lose channels in these proportions.

    Args:
        found: The groups of channels that may go.
        shares: How much each group loses beside the others, above 0.
        budget: Multiply-accumulates that may be left for one row.
        multiple: Widths are multiples of this.

    Raises:
        PassRefusedError: Without nearly all channels more than the budget is left.
    """

    def lost(scale: float) -> dict[str, int]:
        return {
            group.name: group.rounded(group.width * (1.0 - min(scale * share, MOST_OF_A_LAYER)), multiple)
            for group, share in zip(found.groups, shares, strict=True)
        }

    low, high = 0.0, MOST_OF_A_LAYER / min(shares)
    least = found.macs(lost(high))
    if least > budget:
        raise PassRefusedError(
            f"without {MOST_OF_A_LAYER:.0%} of every layer {least:.4g} multiply-accumulates are left; "
            f"{budget:.4g} were asked for. Raise target_macs, lower round_to or ignore less."
        )
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        if found.macs(lost(middle)) > budget:
            low = middle
        else:
            high = middle
    return lost(high)


def cross_validated(judged: Sequence[Sequence[float]]) -> float:
    """What the best of several candidates is worth on rows that did not choose it.

    Each fold judges the candidate that is best on all other folds.

    Args:
        judged: Loss of each candidate on each fold.
    """
    table = np.asarray(judged)
    total = table.sum(axis=1, keepdims=True)
    chosen = (total - table).argmin(axis=0)
    return float(table[chosen, np.arange(table.shape[1])].mean())


def recalibrated(model: TorchModel, rows: Split) -> TorchModel:
    """A copy of the model whose batch normalizations have the statistics of these rows.

    Raises:
        PassRefusedError: It is one row, which has no variance.
    """
    if len(rows) < 2:
        raise PassRefusedError(
            "normalizations cannot be measured anew on a single row. Calibrate on more, or set "
            "`recalibration` to 0."
        )
    module = copy.deepcopy(model.module).eval()
    norms = [part for part in module.modules() if isinstance(part, NORMS) and part.track_running_stats]
    momenta = [norm.momentum for norm in norms]
    for norm in norms:
        norm.reset_running_stats()
        norm.momentum = None  # a plain average over all batches
        norm.train()
    device = next(module.parameters()).device
    with torch.no_grad():
        # Each batch weighs the same in the average: they are of one length, give or take a row.
        for part in np.array_split(np.arange(len(rows)), math.ceil(len(rows) / PREDICT_BATCH)):
            inputs = [np.ascontiguousarray(rows.inputs[spec.name][part]) for spec in model.signature.inputs]
            module(*(torch.from_numpy(array).to(device) for array in inputs))
    for norm, momentum in zip(norms, momenta, strict=True):
        norm.momentum = momentum
        norm.eval()
    return TorchModel(module, model.signature)
