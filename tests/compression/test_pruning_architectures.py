"""Structured pruning of networks whose channels hang together: residual, grouped, attention, recurrent."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise
from typing import cast

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.base import PassContext, PassRefusedError
from compression.channels import multiply_accumulates, narrowed
from compression.data import Split, Splits
from compression.importance import ranked_channels
from compression.model import TorchModel
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.recipe import step
from compression.registry import make_pass
from compression.signature import Signature, TensorSpec
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS
from variants.zoo.cifar10 import ResNet9


def pruning(**settings: object) -> StructuredPruning:
    return StructuredPruning(StructuredPruningSettings.model_validate({"epochs": 0, **settings}))


def images(count: int, shape: tuple[int, ...], dtype: type[np.generic]) -> Splits:
    """Random rows with random labels."""
    random = np.random.default_rng(0)
    rows = random.integers(0, 255, (4 * count, *shape)).astype(dtype)
    cuts = [rows[a:b] for a, b in pairwise(range(0, 5 * count, count))]
    return Splits(*(Split({"image": part}, random.integers(0, 10, count)) for part in cuts))


def test_a_residual_network_on_raw_pixels_keeps_its_sums(context: PassContext) -> None:
    signature = Signature((TensorSpec("image", "uint8", ("batch", 32, 32, 3)),), DIGITS.outputs)
    with seeded(0):
        model = TorchModel(ResNet9(16), signature)
    pixels = replace(context, splits=images(8, (32, 32, 3), np.uint8))
    prune = pruning(target_macs=0.5, importance="taylor", global_pruning=True)
    prune.requires(model, pixels)
    narrow = prune.run(model, pixels)
    facts = prune.ensures(model, narrow, pixels)
    assert facts["macs_after"] <= 0.5 * facts["macs_before"]
    assert all(width % 8 == 0 for _, width in facts["widths"].values())


class Grouped(nn.Sequential):
    """Depthwise and grouped convolutions."""

    def __init__(self) -> None:
        super().__init__(
            nn.Unflatten(1, (1, 8, 8)),
            nn.Conv2d(1, 16, 3, padding=1),
            nn.Conv2d(16, 16, 3, padding=1, groups=16),
            nn.BatchNorm2d(16),
            nn.Conv2d(16, 32, 1),
            nn.Conv2d(32, 64, 3, groups=4),
            nn.GroupNorm(4, 64),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(64, 10),
        )


@pytest.mark.parametrize("importance", ["l2", "taylor", "fpgm"])
@pytest.mark.parametrize("round_to", [1, 8])
def test_grouped_and_depthwise_convolutions_shrink_together(
    importance: str, round_to: int, context: PassContext
) -> None:
    with seeded(0):
        model = TorchModel(Grouped(), DIGITS)
    prune = pruning(importance=importance, round_to=round_to, ratio=0.5)
    narrow = prune.run(model, context)
    facts = prune.ensures(model, narrow, context)
    assert facts["widths"] == {"1": [16, 8], "2": [16, 8], "4": [32, 16], "5": [64, 32]}
    found = ranked_channels(model, context, "l2")
    widths = {group.name: group.rounded(group.width * 0.75, 4) for group in found.groups}
    smaller = narrowed(model, context.splits.train, found.groups, widths)
    assert multiply_accumulates(smaller, context.splits.train) == pytest.approx(found.macs(widths))


class Attention(nn.Module):
    """A transformer's block whose heads are cut out of linear layers."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Linear(8, 32)
        self.query, self.key, self.value = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 32)
        self.mixed, self.norm = nn.Linear(32, 32), nn.LayerNorm(32)
        self.up, self.down, self.head = nn.Linear(32, 64), nn.Linear(64, 32), nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(image.view(-1, 8, 8))
        shape = (*tokens.shape[:2], -1, 8)
        heads = [layer(tokens).view(shape).transpose(1, 2) for layer in (self.query, self.key, self.value)]
        seen = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        tokens = self.norm(tokens + self.mixed(seen))
        tokens = tokens + self.down(torch.relu(self.up(tokens)))
        return self.head(tokens.mean(1))


def test_attention_heads_stay_whole(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Attention(), DIGITS)
    prune = pruning()
    facts = prune.ensures(model, prune.run(model, context), context)
    assert facts["widths"] == {name: [32, 16] for name in ("embed", "mixed", "down")} | {"up": [64, 32]}


class FusedAttention(Attention):
    """The same, whose heads are cut out of parts of one layer, or of what was scaled before."""

    def __init__(self, fused: bool) -> None:
        super().__init__()
        self.qkv = nn.Linear(32, 96) if fused else None

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        tokens = self.embed(image.view(-1, 8, 8))
        if self.qkv is None:
            parts = [self.query(tokens) * 0.5, self.key(tokens) * 0.5, torch.relu(self.value(tokens))]
        else:
            parts = list(self.qkv(tokens).chunk(3, -1))
        heads = [part.reshape(*tokens.shape[:2], -1, 8).transpose(1, 2) for part in parts]
        seen = nn.functional.scaled_dot_product_attention(*heads).transpose(1, 2).flatten(2)
        return self.head((tokens + self.mixed(seen)).mean(1))


@pytest.mark.parametrize("fused", [False, True])
def test_heads_stay_whole_that_are_cut_out_of_parts_or_scaled_channels(
    context: PassContext, fused: bool
) -> None:
    with seeded(0):
        model = TorchModel(FusedAttention(fused), DIGITS)
    prune = pruning()
    facts = prune.ensures(model, prune.run(model, context), context)
    assert facts["widths"].keys() <= {"embed", "mixed"}
    assert {tuple(widths) for widths in facts["widths"].values()} == {(32, 16)}


class _Recurrent(nn.Module):
    """A convolution whose rows a GRU reads."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(1, 16, 3, padding=1)
        self.recurrent = nn.GRU(16, 32, batch_first=True)
        self.last = nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        rows = torch.relu(self.conv(image.reshape(-1, 1, 8, 8))).mean(3).transpose(1, 2)
        return self.last(self.recurrent(rows)[0][:, -1])  # type: ignore[no-any-return]


def test_what_the_library_cannot_follow_is_refused_with_what_can_be_done(context: PassContext) -> None:
    model = TorchModel(_Recurrent().eval(), DIGITS)
    with pytest.raises(PassRefusedError, match=r"recurrent.* prune-unstructured"):
        pruning().run(model, context)


class Gating(nn.Module):
    """Experts whose answers are weighted by columns of another layer, taken for channels by the library."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = nn.Linear(64, 3)
        self.experts = nn.ModuleList(
            nn.Sequential(nn.Linear(64, 32), nn.GELU(), nn.Linear(32, 64)) for _ in range(3)
        )
        self.last = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.gate(x).softmax(-1)
        parts = [shares[:, place : place + 1] * expert(x) for place, expert in enumerate(self.experts)]
        return cast("Tensor", self.last(x + sum(parts)))


class Halved(nn.Module):
    """One half of the channels is gone through by itself: both must stay as wide as they are."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Linear(64, 32)
        self.inner = nn.Sequential(nn.Linear(16, 64), nn.ReLU(), nn.Linear(64, 16))
        self.last = nn.Linear(32, 10)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.first(x).chunk(2, -1)
        return cast("Tensor", self.last(torch.cat([left, self.inner(right)], -1)))


@pytest.mark.parametrize("given", ["prune-structured", "prune-search"])
@pytest.mark.parametrize("module", [Gating, Halved])
def test_what_cannot_be_cut_keeps_its_width_and_the_rest_is_pruned(
    module: type[nn.Module], given: str, context: PassContext
) -> None:
    with seeded(0):
        model = TorchModel(module().eval(), DIGITS)
    prune = make_pass(step(given, target_macs=0.8, epochs=0))
    small = prune.run(model, context)
    facts = prune.ensures(model, small, context)
    assert facts["kept_whole"]
    assert facts["widths"]
    assert not set(facts["kept_whole"]) & facts["widths"].keys()
    assert predict(small, context.splits.test)[0].shape == (len(context.splits.test), 10)
