"""Layers written otherwise, with the same answers: for the exporter, and for passes that change weights."""

from __future__ import annotations

import copy
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.nn.utils import parametrize, remove_weight_norm
from torch.nn.utils.parametrizations import _WeightNorm, weight_norm
from torch.nn.utils.weight_norm import WeightNorm

from compression.model import TorchModel

_REDUCTIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "sum": lambda found: found.sum(1),
    "mean": lambda found: found.mean(1),
    "max": lambda found: found.amax(1),
}
_NORMALIZATIONS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d)


def baked(module: nn.Module) -> nn.Module:
    """The module with its parametrizations (masks, shared values) turned into plain weights, in place."""
    for part in list(module.modules()):
        if parametrize.is_parametrized(part):
            _bake(part)
    return module


def _bake(part: nn.Module) -> None:
    # Not `remove_parametrizations`: it changes the class, which copies of the module share.
    originals = {
        name: held.original if hasattr(held, "original") else held.original0
        for name, held in part.parametrizations.items()  # type: ignore[union-attr, operator]
    }
    weights = {name: getattr(part, name).detach().clone() for name in originals}
    del part.parametrizations
    part.__class__ = type(part).__bases__[0]
    for name, weight in weights.items():
        if isinstance(originals[name], nn.Parameter):
            part.register_parameter(name, nn.Parameter(weight, originals[name].requires_grad))
        else:
            part.register_buffer(name, weight)


def modernized(module: nn.Module) -> nn.Module:
    """The module with weight norms of torch's older kind, which cannot be copied, in its newer, in place."""
    for part in module.modules():
        for hook in list(part._forward_pre_hooks.values()):
            if isinstance(hook, WeightNorm):
                remove_weight_norm(part, hook.name)
                weight_norm(part, hook.name, hook.dim)
    return module


def plain(model: TorchModel) -> TorchModel:
    """The model as passes know layers; itself, where there is nothing to write otherwise.

    A weight norm (Salimans and Kingma 2016, "Weight Normalization") helps training, and means nothing to a
    pass; other parametrizations constrain weights, and stay. The `Conv1D` of Hugging Face's GPT-2 is a
    linear layer whose weight is kept the other way round.
    """
    if not any(_is_normed(part) or _is_turned(part) for part in model.module.modules()):
        return model
    module = copy.deepcopy(model.module)
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if _is_normed(part):
            _bake(part)
        elif name and _is_turned(part):
            module.set_submodule(name, _linear(part))
    return TorchModel(module, model.signature)


def _is_normed(part: nn.Module) -> bool:
    return parametrize.is_parametrized(part) and all(
        type(each) is _WeightNorm
        for held in part.parametrizations.values()  # type: ignore[operator]
        for each in held
    )


def _is_turned(part: nn.Module) -> bool:
    return f"{type(part).__module__}.{type(part).__name__}" == "transformers.pytorch_utils.Conv1D"


def _linear(turned: nn.Module) -> nn.Linear:
    weight, bias = (turned.get_parameter(name) for name in ("weight", "bias"))
    linear = nn.Linear(*weight.shape)
    linear.weight, linear.bias = nn.Parameter(weight.detach().T.contiguous()), bias
    return linear


class Scale(nn.Module):
    """What a batch normalization does in eval mode, as a product and a sum that no exporter folds.

    A runtime folds them when it loads the graph.
    """

    scale: Tensor
    shift: Tensor

    def __init__(self, norm: nn.Module) -> None:
        super().__init__()
        assert isinstance(norm, _NORMALIZATIONS)
        assert norm.running_mean is not None
        assert norm.running_var is not None
        scale = torch.rsqrt(norm.running_var + norm.eps)
        if norm.affine:
            scale = scale * norm.weight.detach()
        shift = -norm.running_mean * scale
        self.register_buffer("scale", scale)
        self.register_buffer("shift", shift + norm.bias.detach() if norm.affine else shift)

    def forward(self, features: Tensor) -> Tensor:
        """Scales and shifts each channel of `(batch, channels, ...)`."""
        shape = (-1, *[1] * (features.ndim - 2))
        return features * self.scale.view(shape) + self.shift.view(shape)


def is_stored_as_is(part: nn.Module) -> bool:
    """Whether it is a parametrization whose values a factor per channel would undo."""
    return bool(getattr(part, "stored_as_is", False))


def set_scales_apart(module: nn.Module) -> None:
    """Replaces batch normalizations in place, so that the exporter does not fold them into weights."""
    for name, part in list(module.named_modules()):
        if isinstance(part, _NORMALIZATIONS) and part.running_mean is not None:
            module.set_submodule(name, Scale(part))


class Bag(nn.Module):
    """An `nn.EmbeddingBag` as a look-up and a reduction over bags of one length.

    The exporter writes it as a loop over the batch, with sequences of tensors.
    """

    def __init__(self, bag: nn.EmbeddingBag) -> None:
        super().__init__()
        self.weight, self.mode, self.padding_idx = bag.weight, bag.mode, bag.padding_idx
        self.include_last_offset = bag.include_last_offset

    def forward(
        self, rows: Tensor, offsets: Tensor | None = None, per_sample_weights: Tensor | None = None
    ) -> Tensor:
        """Reduces the table's rows of each bag, given as `(batch, length)` or, flat, by offsets."""
        if rows.ndim != 2:
            return functional.embedding_bag(
                rows,
                self.weight,
                offsets,
                mode=self.mode,
                per_sample_weights=per_sample_weights,
                include_last_offset=self.include_last_offset,
                padding_idx=self.padding_idx,
            )
        found = functional.embedding(rows, self.weight)
        if per_sample_weights is not None:
            found = found * per_sample_weights.unsqueeze(-1)
        if self.padding_idx is None:
            return _REDUCTIONS[self.mode](found)
        counted = (rows != self.padding_idx).unsqueeze(-1)
        if self.mode == "max":
            largest = found.masked_fill(~counted, -torch.inf).amax(1)
            return largest.masked_fill(~counted.any(1), 0.0)
        total = found.masked_fill(~counted, 0.0).sum(1)
        return total if self.mode == "sum" else total / counted.sum(1).clamp(min=1)


def open_bags(module: nn.Module) -> None:
    """Replaces bags of embeddings in place; those that norm their rows as they go stay as they are."""
    for name, part in list(module.named_modules(remove_duplicate=False)):
        if name and type(part) is nn.EmbeddingBag and part.max_norm is None:
            module.set_submodule(name, Bag(part))
