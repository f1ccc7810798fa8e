"""How much a channel matters, by the names that recipes use."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator
from typing import Literal, cast

import numpy as np
import torch
import torch_pruning
from torch import Tensor, nn
from torch_pruning.pruner import function

from compression.base import PassContext, PassRefusedError
from compression.channels import LibraryGroup, Score, Survey, survey, traceable
from compression.data import Split, Splits
from compression.losses import Batch, labelled_loss
from compression.model import TorchModel
from compression.prunable_layers import LAYERS
from compression.signature import Array

Importance = Literal["l1", "l2", "taylor", "bn-gamma", "mean", "fpgm", "random"]
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)

_TAYLOR_BATCH = 32
_TAYLOR_ROWS = 512
_MAKES = (function.prune_conv_out_channels, function.prune_linear_out_channels)
_READS = (function.prune_conv_in_channels, function.prune_linear_in_channels)


def ranked_channels(
    model: TorchModel, context: PassContext, importance: Importance, ignore: tuple[str, ...] = ()
) -> Survey:
    """The channels that may go, each ranked by one of these.

    * `l1`, `l2`: norm of the weights over all layers that a channel runs through (Li et al. 2017, "Pruning
      Filters for Efficient ConvNets").
    * `taylor`: what the loss would change by, to first order: the squared sum of gradient times weight, over
      labelled batches (Molchanov et al. 2019, "Importance Estimation for Neural Network Pruning").
    * `bn-gamma`: scale of the batch normalization (Liu et al. 2017, "Learning Efficient Convolutional
      Networks through Network Slimming"). Channels without one stay.
    * `mean`: distance of a filter from the mean filter of its layer.
    * `fpgm`: sum of distances from all other filters of its layer: the nearest to the geometric median is the
      most replaceable (He et al. 2019, "Filter Pruning via Geometric Median").
    * `random`: at random, by the context's seed: the baseline that every other has to beat.
    """
    copied = traceable(model)
    if importance == "taylor":
        return survey(copied, context.splits.train, _Sensitivity(copied, context), ignore)
    return survey(copied, context.splits.train, _SCORES[importance](context), ignore)


def check_importance(importance: Importance, model: TorchModel, context: PassContext) -> None:
    """Checks that the model and the data have what the importance is measured on.

    Raises:
        PassRefusedError: There is no batch normalization, or there are no labels.
    """
    if importance == "bn-gamma" and not any(isinstance(part, NORMS) for part in model.module.modules()):
        raise PassRefusedError(
            "the model has no batch normalization whose scale could tell. Use another importance."
        )
    if importance == "taylor" and _labelled(context.splits).labels is None:
        raise PassRefusedError("taylor needs the loss's gradient and there are no labels. Use l2.")


class _Sensitivity:
    """First-order sensitivity, from the gradients of batch after batch.

    Gradients over all rows cancel out where training has converged, so each batch counts by itself.
    """

    def __init__(self, model: TorchModel, context: PassContext) -> None:
        self.made: dict[nn.Module, Tensor] = {}
        self.read: dict[nn.Module, Tensor] = {}
        module, loss = model.module, labelled_loss(context.training.loss)
        device = next(module.parameters()).device
        for split in _labelled_batches(context):
            inputs = tuple(
                torch.from_numpy(np.ascontiguousarray(split.inputs[spec.name])).to(device)
                for spec in model.signature.inputs
            )
            labels = torch.from_numpy(cast(Array, split.labels)).to(device)
            module.zero_grad()
            outputs = module(*inputs)
            outputs = (outputs,) if isinstance(outputs, Tensor) else tuple(outputs)
            loss(outputs, Batch(torch.arange(len(split)), inputs, labels)).backward()  # type: ignore[no-untyped-call]
            for layer in module.modules():
                if isinstance(layer, LAYERS) and layer.weight.grad is not None:
                    self._add(layer, (layer.weight * layer.weight.grad).detach().cpu())

    def _add(self, layer: nn.Module, change: Tensor) -> None:
        made = change.flatten(1).sum(1) ** 2
        read = change.transpose(0, 1).flatten(1).sum(1) ** 2
        self.made[layer] = self.made.get(layer, torch.zeros_like(made)) + made
        self.read[layer] = self.read.get(layer, torch.zeros_like(read)) + read

    def __call__(self, group: LibraryGroup) -> Tensor:
        total = torch.zeros(len(group[0].idxs))
        for index, (dependency, channels) in enumerate(group):
            layer = dependency.target.module
            found = {**dict.fromkeys(_MAKES, self.made), **dict.fromkeys(_READS, self.read)}.get(
                dependency.handler, {}
            )
            if layer in found:
                # Each part of a grouped convolution has the same inputs by position.
                scores = found[layer]
                scores = scores.repeat(math.ceil((max(channels) + 1) / len(scores)))
                total.index_add_(0, torch.tensor(group[index].root_idxs), scores[channels])
        return total


def _labelled_batches(context: PassContext) -> Iterator[Split]:
    """Rows of what has labels, each batch spread over all of them: neighbours may be of one kind."""
    rows = _labelled(context.splits).spread(_TAYLOR_ROWS)
    batches = math.ceil(len(rows) / _TAYLOR_BATCH)
    for first in range(batches):
        yield rows.take(slice(first, None, batches))


def _labelled(splits: Splits) -> Split:
    """The calibration split, or train where that has no labels."""
    return splits.train if splits.calibration.labels is None else splits.calibration


def _magnitude(norm: int) -> Callable[[PassContext], Score]:
    def score(context: PassContext) -> Score:
        return cast(Score, torch_pruning.importance.GroupMagnitudeImportance(p=norm))

    return score


def _scales(context: PassContext) -> Score:
    return cast(Score, torch_pruning.importance.BNScaleImportance())


def _random(context: PassContext) -> Score:
    generator = torch.Generator().manual_seed(context.seed)

    def score(group: LibraryGroup) -> Tensor:
        return torch.rand(len(group[0].idxs), generator=generator)

    return score


def _distances(measure: Callable[[Tensor], Tensor]) -> Callable[[PassContext], Score]:
    """Scores by how far the filters `(width, values)` of the layers that make a channel are from others."""

    def score(group: LibraryGroup) -> Tensor:
        total = torch.zeros(len(group[0].idxs))
        for index, (dependency, channels) in enumerate(group):
            if dependency.handler in _MAKES:
                layer = dependency.target.module
                weight = (
                    layer.weight.detach().transpose(0, 1) if _transposed(layer) else layer.weight.detach()
                )
                distance = measure(weight[channels].flatten(1).float().cpu())
                total.index_add_(
                    0, torch.tensor(group[index].root_idxs), distance / (distance.mean() + 1e-12)
                )
        return total

    return lambda context: score


def _transposed(layer: nn.Module) -> bool:
    return bool(getattr(layer, "transposed", False))


def _from_mean(filters: Tensor) -> Tensor:
    distances: Tensor = (filters - filters.mean(0)).norm(dim=1)
    return distances


def _from_all(filters: Tensor) -> Tensor:
    distances: Tensor = torch.cdist(filters, filters)
    return distances.sum(1)


_SCORES: dict[str, Callable[[PassContext], Score]] = {
    "l1": _magnitude(1),
    "l2": _magnitude(2),
    "bn-gamma": _scales,
    "mean": _distances(_from_mean),
    "fpgm": _distances(_from_all),
    "random": _random,
}
