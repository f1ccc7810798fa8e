"""Single weights set to zero and held there: smaller once packed, not faster on the runtimes here."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import ClassVar, Self

import numpy as np
import torch
from pydantic import Field, model_validator
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
from compression.finetuning import FineTuning, GradualFineTuning
from compression.inspection import nonzero_parameters, parameters
from compression.layer_weights import LayerWeight, layer_weights
from compression.model import Form, OnnxModel, TorchModel
from compression.prunable_layers import layers_of, layers_of_shared_weights
from compression.signature import Array


class Mask(nn.Module):
    """A parametrization under which some weights are zero whatever is learned.

    Args:
        kept: Of the weight's shape, true where the weight lives.
    """

    kept: Tensor

    def __init__(self, kept: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with zeros where it does not live."""
        return weight * self.kept.to(weight.dtype)


class UnstructuredPruningSettings(GradualFineTuning):
    """Settings of `prune-unstructured`.

    Attributes:
        ratio: Fraction of the weights that are zero in the end.
        global_pruning: Compares the weights of all layers; otherwise each layer loses the same fraction.
        ignore: Names of modules whose weights all stay.
    """

    ratio: float = Field(default=0.8, gt=0.0, lt=1.0)
    global_pruning: bool = True
    ignore: tuple[str, ...] = ()


class UnstructuredPruning(Pass[UnstructuredPruningSettings, TorchModel, TorchModel]):
    """Sets the smallest weights to zero and fine-tunes the others. A storage technique.

    Han et al. 2015, "Learning both Weights and Connections for Efficient Neural Networks"; over several
    rounds the ratio grows as in Zhu and Gupta 2017, "To Prune, or Not to Prune": fast at first, slowly at the
    end. Biases, normalizations and weights that modules share are left alone.
    """

    name: ClassVar[str] = "prune-unstructured"
    version: ClassVar[int] = 2
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    holds_weights: ClassVar[bool] = True
    makes_zeros: ClassVar[bool] = True
    settings_class: ClassVar[type[Settings]] = UnstructuredPruningSettings

    def __init__(self, settings: UnstructuredPruningSettings) -> None:
        super().__init__(settings)
        self._rounds: list[Facts] = []

    def refused_after(self, before: AnyPass) -> str:
        """Refuses weights that share values: zeros would be one more."""
        return _shared_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are weights to prune, and what teaches and judges the others."""
        masked_layers(model.module, self.settings.ignore)
        self.settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the sparse, fine-tuned model."""
        settings = self.settings

        def cut(dense: TorchModel, number: int) -> TorchModel:
            ratio = settings.ratio * (1.0 - (1.0 - number / settings.rounds) ** 3)
            sparse = TorchModel(copy.deepcopy(dense.module).eval(), dense.signature)
            for layer, kept in self._kept(sparse.module, ratio).items():
                mask(layer, kept)
            return sparse

        sparse, self._rounds = settings.descend(model, context, cut)
        return sparse

    def _kept(self, module: nn.Module, ratio: float) -> dict[nn.Module, Tensor]:
        layers = masked_layers(module, self.settings.ignore)
        sizes = {layer: weight_of(layer).abs() for layer in layers.values()}
        if not self.settings.global_pruning:
            return {layer: _largest(size, ratio) for layer, size in sizes.items()}
        kept = _largest(torch.cat([size.flatten() for size in sizes.values()]), ratio)
        parts = torch.split(kept, [size.numel() for size in sizes.values()])
        return {
            layer: part.reshape(size.shape) for part, (layer, size) in zip(parts, sizes.items(), strict=True)
        }

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that the share of zeros was reached, or the floor first."""
        stopped = self.settings.check_rounds(self._rounds)
        facts = zero_facts(before, after, self.settings.ignore)
        rounding = max(1e-3, len(facts["layers"]) / facts["weights"])  # each layer's count is a whole one
        if not stopped and facts["sparsity"] < self.settings.ratio - rounding:
            raise BrokenPromiseError(
                f"{facts['sparsity']:.4f} of the weights are zero; {self.settings.ratio} were asked for."
            )
        return {**facts, "rounds": self._rounds, "stopped_by_floor": stopped}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact has at least as many zeros, in whatever number format."""
        stored = parameters(artifact)
        zeros = stored - nonzero_parameters(artifact)
        if zeros < facts["zeros"]:
            raise BrokenPromiseError(
                f"{zeros} of the artifact's {stored} weights are zero; pruning left {facts['zeros']}. A "
                "later step filled them: let it come first, or leave it out."
            )


class SemiStructuredSettings(FineTuning):
    """Settings of `prune-nm`.

    Attributes:
        n: Weights that live of each `m`.
        m: Neighbours along the input channels that share `n` places.
        ignore: Names of modules whose weights all stay.
    """

    n: int = Field(default=2, ge=1)
    m: int = Field(default=4, ge=2)
    ignore: tuple[str, ...] = ()

    @model_validator(mode="after")
    def _fewer(self) -> Self:
        if self.n >= self.m:
            raise ValueError("n must be less than m")
        return self


class SemiStructuredPruning(Pass[SemiStructuredSettings, TorchModel, TorchModel]):
    """Keeps the N largest of every M weights along the input channels, then fine-tunes.

    Mishra et al. 2021, "Accelerating Sparse Deep Neural Networks": 2:4 is what sparse tensor cores multiply.
    On a CPU it is a storage technique. Layers whose input channels are no multiple of M are left alone, as
    are biases, normalizations and weights that modules share.
    """

    name: ClassVar[str] = "prune-nm"
    version: ClassVar[int] = 2
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    holds_weights: ClassVar[bool] = True
    makes_zeros: ClassVar[bool] = True
    settings_class: ClassVar[type[Settings]] = SemiStructuredSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses weights that share values: zeros would be one more."""
        return _shared_by(before)

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that a layer has input channels in multiples of M, and what teaches it."""
        if not self._fitting(model.module):
            raise PassRefusedError(
                f"no layer has input channels in multiples of {self.settings.m}. Choose another m."
            )
        self.settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the sparse, fine-tuned model."""
        sparse = TorchModel(copy.deepcopy(model.module).eval(), model.signature)
        for layer in self._fitting(sparse.module).values():
            mask(layer, _largest_of_neighbours(weight_of(layer).abs(), self.settings.n, self.settings.m))
        return self.settings.fit(sparse, context)

    def _fitting(self, module: nn.Module) -> dict[str, nn.Module]:
        layers = masked_layers(module, self.settings.ignore)
        return {
            name: layer for name, layer in layers.items() if weight_of(layer).shape[1] % self.settings.m == 0
        }

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks the pattern in every layer that it fits."""
        n, m = self.settings.n, self.settings.m
        fitting = self._fitting(after.module)
        for name, layer in fitting.items():
            if not _follows(weight_of(layer).numpy(), 1, n, m):
                raise BrokenPromiseError(f"{name} has more than {n} of {m} weights.")
        facts = zero_facts(before, after, self.settings.ignore)
        left = sorted(masked_layers(after.module, self.settings.ignore).keys() - fitting.keys())
        return {**facts, "n": n, "m": m, "patterned": list(fitting), "left_alone": left}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many layers of the artifact have the pattern, in whatever number format."""
        n, m = facts["n"], facts["m"]
        found = sum(_has_pattern(weight, n, m) for weight in layer_weights(artifact))
        if found < len(facts["patterned"]):
            raise BrokenPromiseError(
                f"{found} layers of the artifact have {n} of {m} weights; pruning left "
                f"{len(facts['patterned'])}. A later step filled them: let it come first, or leave it out."
            )


def _shared_by(before: AnyPass) -> str:
    """What both say of a pass that holds weights at shared values, not at zero."""
    return "" if before.makes_zeros else held_by(before)


def masked_layers(module: nn.Module, ignore: tuple[str, ...]) -> dict[str, nn.Module]:
    """The layers whose weights may become zero, by name.

    Raises:
        PassRefusedError: A name in `ignore` is unknown, or no layer is left.
    """
    known = dict(module.named_modules())
    check_known("module", ignore, known)
    spared = {part for name in ignore for part in known[name].modules()}
    spared |= layers_of_shared_weights(module)  # with a mask in one, the file would hold both
    layers = {name: layer for name, layer in layers_of(module) if layer not in spared}
    if not layers:
        raise PassRefusedError(
            "the model has no convolution or linear layer with a weight of its own to prune. Ignore fewer."
        )
    return layers


def mask(layer: nn.Module, kept: Tensor) -> None:
    """Holds a layer's other weights at zero from now on, beside those that a mask held before."""
    if parametrize.is_parametrized(layer, "weight"):
        for part in layer.parametrizations["weight"]:  # type: ignore[index]
            if isinstance(part, Mask):
                part.kept &= kept
                return
    parametrize.register_parametrization(layer, "weight", Mask(kept))


def weight_of(layer: nn.Module) -> Tensor:
    """The weight that a layer computes with, outside the gradient graph."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach()


def zero_facts(before: TorchModel, after: TorchModel, ignore: tuple[str, ...]) -> Facts:
    """How many of the weights that could become zero did.

    Raises:
        BrokenPromiseError: None did.
    """
    zeros, earlier = _zeros(after.module, ignore), _zeros(before.module, ignore)
    if sum(zeros.values()) <= sum(earlier.values()):
        raise BrokenPromiseError("no weight became zero: the model was as sparse before. Prune more.")
    sizes = {name: weight_of(layer).numel() for name, layer in masked_layers(after.module, ignore).items()}
    return {
        "weights": sum(sizes.values()),
        "zeros": sum(zeros.values()),
        "sparsity": sum(zeros.values()) / sum(sizes.values()),
        "layers": {name: zeros[name] / size for name, size in sizes.items()},
    }


def _zeros(module: nn.Module, ignore: tuple[str, ...]) -> Mapping[str, int]:
    layers = masked_layers(module, ignore)
    return {name: int((weight_of(layer) == 0).sum()) for name, layer in layers.items()}


def _largest(sizes: Tensor, ratio: float) -> Tensor:
    """True everywhere but at that fraction of smallest sizes."""
    kept = torch.ones(sizes.numel(), dtype=torch.bool, device=sizes.device)
    kept[torch.argsort(sizes.flatten(), stable=True)[: round(ratio * sizes.numel())]] = False
    return kept.reshape(sizes.shape)


def _largest_of_neighbours(sizes: Tensor, n: int, m: int) -> Tensor:
    """True at the n largest of every m neighbours along axis 1."""
    groups = sizes.movedim(1, -1).reshape(-1, m)
    kept = torch.zeros_like(groups, dtype=torch.bool)
    kept.scatter_(1, torch.argsort(groups, dim=1, descending=True, stable=True)[:, :n], True)
    last = sizes.movedim(1, -1)
    return kept.reshape(last.shape).movedim(-1, 1).contiguous()


def _has_pattern(weight: LayerWeight, n: int, m: int) -> bool:
    return _follows(weight.values, weight.input_axis, n, m)


def _follows(values: Array, axis: int, n: int, m: int) -> bool:
    """Whether no m neighbours along the axis have more than n that are not zero."""
    if values.shape[axis] % m:
        return False
    groups = np.moveaxis(values, axis, -1).reshape(-1, m)
    return bool((np.count_nonzero(groups, axis=1) <= n).all())
