from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch
from pydantic import ValidationError
from torch import nn
from torch.nn.utils import parametrize

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.export import export
from compression.factorization import LowRank, LowRankSettings, splittable
from compression.inspection import parameters
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.training import seeded
from tests.compression.small_digits import DIGITS, accuracy


def low_rank(**settings: object) -> LowRank:
    return LowRank(LowRankSettings.model_validate({"epochs": 0, "round_to": 4, **settings}))


def test_thin_chains_keep_the_answers_and_cost_less(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    thin = low_rank(energy=0.7, epochs=2)
    thin.requires(reference, context)
    factored = thin.run(reference, context)
    facts = thin.ensures(reference, factored, context)
    assert "13" in facts["layers"]  # the first linear layer
    assert all(layer["macs_share"] < 1 for layer in facts["layers"].values())
    small = export(factored)
    thin.holds(facts, small)
    assert flops(small) < 0.9 * flops(artifact)
    assert accuracy(small, context.splits.test) > accuracy(artifact, context.splits.test) - 0.05
    with pytest.raises(BrokenPromiseError, match="A later step replaced"):
        thin.holds(facts, artifact)


@pytest.mark.parametrize("stride", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_a_convolution_of_low_rank_is_split_exactly(stride: int, bias: bool) -> None:
    with seeded(0):
        layer = nn.Conv2d(16, 32, 3, stride, padding=1, bias=bias)
        core, ins, outs = torch.randn(8, 4, 3, 3), torch.randn(16, 4), torch.randn(32, 8)
        layer.weight.data = torch.einsum("rshw,or,is->oihw", core, outs, ins)
        features = torch.randn(2, 16, 7, 7)
    thin = low_rank(energy=0.999999).split(TorchModel(nn.Sequential(layer), DIGITS)).module
    assert [part.weight.shape[:2] for part in thin[0]] == [(4, 16), (8, 4), (32, 8)]  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert torch.allclose(thin(features), layer(features), rtol=1e-3, atol=1e-2)


@pytest.mark.parametrize("layer", [nn.Linear(48, 40), nn.Conv2d(48, 40, 1, stride=2)])
def test_a_matrix_of_low_rank_is_split_exactly(layer: nn.Linear | nn.Conv2d) -> None:
    with seeded(0):
        layer.weight.data = (torch.randn(40, 8) @ torch.randn(8, 48)).reshape(layer.weight.shape)
        features = torch.randn(2, 48) if isinstance(layer, nn.Linear) else torch.randn(2, 48, 5, 5)
    thin = low_rank(energy=0.999999).split(TorchModel(nn.Sequential(layer), DIGITS)).module
    assert sum(part.weight.numel() for part in thin[0]) == 8 * 88  # type: ignore[index, union-attr]
    with torch.no_grad():
        assert torch.allclose(thin(features), layer(features), rtol=1e-3, atol=1e-3)


def test_a_full_side_of_a_convolution_is_not_split() -> None:
    module = nn.Sequential(nn.Conv2d(3, 64, 3))
    thin = low_rank(ratio=0.25, round_to=8).split(TorchModel(module, DIGITS)).module
    assert [part.weight.shape[:2] for part in thin[0]] == [(8, 3), (64, 8)]  # type: ignore[index, union-attr]


class Encoded(nn.Module):
    """An encoder layer of torch, which reads the weights of its linear layers itself in eval mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.TransformerEncoderLayer(8, 2, 64, batch_first=True)
        self.last = nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(self.layer(image.view(-1, 8, 8)).flatten(1))  # type: ignore[no-any-return]


def test_an_encoder_layer_calls_its_thin_chains(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Encoded().eval(), DIGITS)
    step = low_rank(ratio=0.5)
    thin = step.run(model, context)
    facts = step.ensures(model, thin, context)
    assert {"layer.linear1", "layer.linear2"} <= facts["layers"].keys()
    step.holds(facts, export(thin))


class Tied(nn.Module):
    """Weights that something else reads too: none of them may be replaced."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 64)
        self.second.weight = self.first.weight
        self.grouped = nn.Conv2d(64, 64, 3, groups=2)
        self.masked = nn.Linear(64, 64)
        parametrize.register_parametrization(self.masked, "weight", nn.ReLU())
        self.attention = nn.MultiheadAttention(64, 4)


def test_weights_that_others_read_stay_whole(context: PassContext) -> None:
    assert not splittable(Tied())
    with pytest.raises(PassRefusedError, match="put low-rank first"):
        low_rank().requires(TorchModel(Tied(), DIGITS), context)


def test_what_saves_nothing_is_refused(reference: TorchModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match=r"saves multiply-accumulates at ratio 0\.99"):
        low_rank(ratio=0.99).requires(reference, context)
    with pytest.raises(PassRefusedError, match="there is no module head"):
        low_rank(ignore=["head"]).requires(reference, context)
    bare = replace(context.splits, train=replace(context.splits.train, labels=None))
    with pytest.raises(PassRefusedError, match="needs labels"):
        low_rank(epochs=1).requires(reference, replace(context, splits=bare))
    with pytest.raises(BrokenPromiseError, match="nothing is saved"):
        low_rank().ensures(reference, reference, context)
    with pytest.raises(ValidationError, match="give one of them"):
        low_rank(energy=0.5, ratio=0.5)


class Asking(nn.Module):
    """Reads the type and the width of layers beside calling them, and computes with a weight if told."""

    def __init__(self, computes: bool) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv2d(1, 32, 3, stride=2, padding=1), nn.Linear(512, 10)
        self.computes = computes

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        image = x.to(self.conv.weight.dtype).reshape(-1, 1, 8, 8)
        features = self.conv(image).reshape(-1, self.last.in_features)
        scores = self.last(features) + self.last.weight.shape[0]
        return cast("torch.Tensor", scores + self.last.weight.mean() if self.computes else scores)


def test_what_a_module_reads_of_a_layer_stays_after_the_split(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Asking(computes=False).eval(), DIGITS)
    split = low_rank(ratio=0.9, round_to=1, epochs=0)
    thin = split.run(model, context)
    facts = split.ensures(model, thin, context)
    assert facts["layers"].keys() == {"last"}
    assert parameters(export(thin)) == facts["parameters_after"]
    assert thin.module.last.weight.shape == (10, 512)


def test_a_module_that_computes_with_a_weight_is_refused(context: PassContext) -> None:
    model = TorchModel(Asking(computes=True).eval(), DIGITS)
    with pytest.raises(PassRefusedError, match="computes with the weight of a layer"):
        low_rank(ratio=0.9, round_to=1, epochs=0).run(model, context)
