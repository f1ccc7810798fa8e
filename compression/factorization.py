"""Lower rank: one large layer as a chain of thin ones that does nearly the same."""

from __future__ import annotations

import copy
import math
from collections import Counter
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import torch
from pydantic import Field, model_validator
from torch import Tensor, nn

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
from compression.channels import EXAMPLE_ROWS, multiply_accumulates, parameters_of
from compression.finetuning import FineTuning
from compression.model import Form, OnnxModel, TorchModel
from compression.stored_size import check_stored, stored_facts
from compression.training import predict

# Alternating refinements of the two bases of a convolution; more change nothing that is worth the time.
_SWEEPS = 4


class LowRankSettings(FineTuning):
    """Settings of `low-rank`.

    Attributes:
        energy: Share of a layer's squared singular values that its rank keeps; ignored where `ratio` is set.
        ratio: Share of its full rank that every layer keeps, whatever that costs in energy.
        round_to: Ranks are rounded up to multiples of this, as vector units like them.
        ignore: Names of modules that stay whole.
        epochs: Fine-tuning afterwards; 0 for none.
    """

    energy: float = Field(default=0.8, gt=0.0, lt=1.0)
    ratio: float | None = Field(default=None, gt=0.0, lt=1.0)
    round_to: int = Field(default=8, ge=1)
    ignore: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _one_of_both(self) -> LowRankSettings:
        if {"energy", "ratio"} <= self.model_fields_set and self.ratio is not None:
            raise ValueError("energy and ratio both choose the rank; give one of them")
        return self


@dataclass(frozen=True)
class Factors:
    """What a layer is replaced by.

    Attributes:
        chain: The thin layers, one after the other.
        ranks: Their inner widths.
        share: Their multiply-accumulates over those of the layer.
        error: Distance of their product from its weight, over the weight's norm.
    """

    chain: Chain
    ranks: tuple[int, ...]
    share: float
    error: float


class Chain(nn.Sequential):
    """Thin layers in the place of one, which say of widths and types what it said."""

    def __init__(self, whole: nn.Linear | nn.Conv2d, *thin: nn.Module) -> None:
        super().__init__(*thin)
        for name in whole.__constants__:
            setattr(self, name, getattr(whole, name))
        self._shape = whole.weight.shape

    @property
    def weight(self) -> Tensor:
        """Of the whole layer's shape and type, and no numbers: what computes with it is found out."""
        return self[0].get_parameter("weight").new_full((), torch.nan).expand(self._shape)

    @property
    def bias(self) -> Tensor | None:
        """The whole layer's, which the last thin one adds."""
        last = self[-1]
        assert isinstance(last, nn.Linear | nn.Conv2d)
        return last.bias


class LowRank(Pass[LowRankSettings, TorchModel, TorchModel]):
    """Splits linear layers by singular values and convolutions by Tucker-2, then fine-tunes.

    Denton et al. 2014, "Exploiting Linear Structure Within Convolutional Networks for Efficient Evaluation";
    Kim et al. 2016, "Compression of Deep Convolutional Neural Networks for Fast and Low Power Mobile
    Applications" (Tucker-2). A layer whose factors would cost as much as itself stays whole.
    """

    name: ClassVar[str] = "low-rank"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    settings_class: ClassVar[type[Settings]] = LowRankSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses to split layers whose weights are held."""
        return held_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that at least one layer is cheaper as a chain."""
        settings = self.settings
        settings.check(context)
        names = dict(model.module.named_modules())
        check_known("module", settings.ignore, names)
        candidates = splittable(model.module, settings.ignore)
        if not candidates:
            raise PassRefusedError(
                "there is no Linear or ungrouped Conv2d with weights of its own. Masked and shared weights "
                "stay whole: put low-rank first."
            )
        if not any(self._factors(layer) for layer in candidates.values()):
            raise PassRefusedError(
                f"no layer saves multiply-accumulates at {self._wanted()}. Lower it, or lower round_to."
            )

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the model with thin chains in place of layers, fine-tuned."""
        thin = self.split(model)
        for output in predict(thin, context.splits.train.take(slice(0, EXAMPLE_ROWS))):
            if np.isnan(output).any():
                raise PassRefusedError(
                    "the module computes with the weight of a layer beside calling it, and a split one has "
                    "none. Name the layer in `ignore`."
                )
        return self.settings.fit(thin, context)

    def split(self, model: TorchModel) -> TorchModel:
        """The model with thin chains in place of layers."""
        module = copy.deepcopy(model.module)
        for name, layer in splittable(module, self.settings.ignore).items():
            if factors := self._factors(layer):
                module.set_submodule(name, factors.chain)
        return TorchModel(module.eval(), model.signature)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that weights and multiply-accumulates both became fewer."""
        split = context.splits.validation
        sizes = parameters_of(before.module), parameters_of(after.module)
        macs = multiply_accumulates(before, split), multiply_accumulates(after, split)
        if sizes[1] >= sizes[0] or macs[1] >= macs[0]:
            raise BrokenPromiseError(
                f"parameters went from {sizes[0]} to {sizes[1]}, multiply-accumulates from {macs[0]:.0f} to "
                f"{macs[1]:.0f}: nothing is saved. Lower energy or ratio."
            )
        layers = {
            name: {"ranks": list(factors.ranks), "macs_share": factors.share, "error": factors.error}
            for name, layer in splittable(before.module, self.settings.ignore).items()
            if (factors := self._factors(layer))
        }
        return {
            "layers": layers,
            "parameters_before": sizes[0],
            "parameters_after": sizes[1],
            **stored_facts(before, after),
            "macs_before": macs[0],
            "macs_after": macs[1],
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores the factors, not their products."""
        check_stored(facts, artifact, self.name)

    def _factors(self, layer: nn.Linear | nn.Conv2d) -> Factors | None:
        """The chain for a layer, or None where it saves nothing."""
        factors = (
            _split_linear(layer, self) if isinstance(layer, nn.Linear) else _split_convolution(layer, self)
        )
        return factors if factors.share < 1.0 else None

    def rank(self, values: Tensor) -> int:
        """How many of the singular values, largest first, are kept."""
        settings, full = self.settings, len(values)
        if settings.ratio is not None:
            wanted = settings.ratio * full
        else:
            kept = values.double().square().cumsum(0)
            wanted = int((kept < settings.energy * kept[-1]).sum()) + 1
        return min(full, math.ceil(wanted / settings.round_to) * settings.round_to)

    def _wanted(self) -> str:
        settings = self.settings
        return f"energy {settings.energy}" if settings.ratio is None else f"ratio {settings.ratio}"


def splittable(module: nn.Module, ignore: tuple[str, ...] = ()) -> dict[str, nn.Linear | nn.Conv2d]:
    """Layers that may be replaced, by name.

    Only these very classes: a parametrized layer's weight is held by something, and attention reads its
    projection's weight without calling it. Neither layers nor weights that stand in two places.
    """
    places = Counter(id(part) for _, part in module.named_modules(remove_duplicate=False))
    owners = Counter(id(weight) for part in module.modules() for weight in part.parameters(recurse=False))
    return {
        name: part
        for name, part in module.named_modules()
        if name
        and name not in ignore
        and (type(part) is nn.Linear or (type(part) is nn.Conv2d and part.groups == 1))
        and places[id(part)] == owners[id(part.weight)] == 1
    }


def _split_linear(layer: nn.Linear, by: LowRank) -> Factors:
    weight = layer.weight.detach()
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = by.rank(values)
    down = nn.Linear(layer.in_features, rank, bias=False)
    up = nn.Linear(rank, layer.out_features, bias=layer.bias is not None)
    root = values[:rank].sqrt()
    _fill(down, root[:, None] * right[:rank])
    _fill(up, left[:, :rank] * root, layer.bias)
    share = rank * sum(weight.shape) / weight.numel()
    return Factors(Chain(layer, down, up), (rank,), share, _error(weight, up.weight @ down.weight))


def _split_convolution(layer: nn.Conv2d, by: LowRank) -> Factors:
    """Fewer channels in, a smaller kernel between them, all channels out."""
    weight = layer.weight.detach()
    if weight.shape[2:] == (1, 1):
        return _split_pointwise(layer, by)
    outs, ins = (by.rank(torch.linalg.svdvals(_unfolded(weight, axis))) for axis in (0, 1))
    left, right = _bases(weight, outs, ins)
    core = torch.einsum("oihw,or,is->rshw", weight, left, right)
    product = torch.einsum("rshw,or,is->oihw", core, left, right)
    middle = copy.deepcopy(layer)
    middle.in_channels, middle.out_channels = ins, outs
    chain, macs = [middle], core.numel()
    if ins < layer.in_channels:
        chain.insert(0, nn.Conv2d(layer.in_channels, ins, 1, bias=False))
        _fill(chain[0], right.T[:, :, None, None])
        macs += right.numel() * math.prod(layer.stride)  # positions of the input for each of the output
    if outs < layer.out_channels:
        middle.bias = None
        chain.append(nn.Conv2d(outs, layer.out_channels, 1, bias=layer.bias is not None))
        _fill(chain[-1], left[:, :, None, None], layer.bias)
        macs += left.numel()
    _fill(middle, core)
    return Factors(Chain(layer, *chain), (ins, outs), macs / weight.numel(), _error(weight, product))


def _split_pointwise(layer: nn.Conv2d, by: LowRank) -> Factors:
    weight = layer.weight.detach()[:, :, 0, 0]
    left, values, right = torch.linalg.svd(weight, full_matrices=False)
    rank = by.rank(values)
    down = copy.deepcopy(layer)
    down.out_channels, down.bias = rank, None
    up = nn.Conv2d(rank, layer.out_channels, 1, bias=layer.bias is not None)
    root = values[:rank].sqrt()
    _fill(down, (root[:, None] * right[:rank])[:, :, None, None])
    _fill(up, (left[:, :rank] * root)[:, :, None, None], layer.bias)
    share = rank * sum(weight.shape) / weight.numel()
    product = left[:, :rank] * values[:rank] @ right[:rank]
    return Factors(Chain(layer, down, up), (rank,), share, _error(weight, product))


def _bases(weight: Tensor, outs: int, ins: int) -> tuple[Tensor, Tensor]:
    """Orthonormal bases of the output and the input channels.

    Higher-order orthogonal iteration: De Lathauwer et al. 2000, "On the Best Rank-1 and Rank-(R1, ..., RN)
    Approximation of Higher-Order Tensors".
    """
    right = _leading(_unfolded(weight, 1), ins)
    left = _leading(_unfolded(weight, 0), outs)
    for _ in range(_SWEEPS):
        left = _leading(_unfolded(torch.einsum("oihw,is->oshw", weight, right), 0), outs)
        right = _leading(_unfolded(torch.einsum("oihw,or->rihw", weight, left), 1), ins)
    return left, right


def _unfolded(weight: Tensor, axis: int) -> Tensor:
    return weight.movedim(axis, 0).flatten(1)


def _leading(matrix: Tensor, rank: int) -> Tensor:
    """The first left singular vectors, from a wide matrix's small square; for all of them the identity."""
    if rank == len(matrix):
        return torch.eye(rank, dtype=matrix.dtype, device=matrix.device)
    vectors: Tensor = torch.linalg.eigh((matrix @ matrix.T).double()).eigenvectors
    return vectors.flip(1)[:, :rank].to(matrix.dtype).contiguous()


def _fill(layer: nn.Linear | nn.Conv2d, weight: Tensor, bias: Tensor | None = None) -> None:
    layer.weight = nn.Parameter(weight.detach().clone().contiguous())
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone())


def _error(weight: Tensor, product: Tensor) -> float:
    return float((weight - product.detach()).norm() / weight.norm().clamp_min(1e-12))
