from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.base import PassContext, PassRefusedError
from compression.channels import multiply_accumulates, narrowed
from compression.importance import ranked_channels
from compression.model import TorchModel
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.training import seeded
from tests.compression.small_digits import DIGITS


class Narrowing(nn.Module):
    """Convolves at half the sides, comes back by a transposed convolution, and joins what it had."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.deep = nn.Conv2d(1, 16, 3, padding=1), nn.Conv2d(16, 32, 3, padding=1)
        self.back, self.joined = nn.ConvTranspose2d(32, 16, 2, 2), nn.Conv2d(32, 16, 3, padding=1)
        self.head = nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        wide = torch.relu(self.first(image.reshape(-1, 1, 8, 8)))
        deep = torch.relu(self.deep(functional.max_pool2d(wide, 2)))
        joined = torch.relu(self.joined(torch.cat([self.back(deep), wide], 1)))
        return self.head(joined.mean((2, 3)))  # type: ignore[no-any-return]


class Tied(nn.Module):
    """Two layers of one weight behind two layers of their own."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 48), nn.Linear(48, 32)
        self.one, self.two, self.head = nn.Linear(32, 32), nn.Linear(32, 32), nn.Linear(32, 10)
        self.two.weight = self.one.weight

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.second(torch.relu(self.first(image))))
        return self.head(torch.relu(self.two(torch.relu(self.one(features)))))  # type: ignore[no-any-return]


class Gated(nn.Module):
    """Halves of a layer's channels gate the others."""

    def __init__(self) -> None:
        super().__init__()
        self.gated, self.plain, self.head = nn.Linear(64, 64), nn.Linear(32, 32), nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(functional.glu(self.gated(image), 1))
        return self.head(torch.relu(self.plain(features)))  # type: ignore[no-any-return]


class Joined(nn.Module):
    """A grouped convolution reads what two layers made."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.beside = nn.Conv2d(1, 16, 3), nn.Conv2d(16, 8, 3, padding=1)
        self.grouped, self.head = nn.Conv2d(24, 16, 3, groups=4), nn.Linear(16, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = torch.relu(self.first(image.reshape(-1, 1, 8, 8)))
        features = torch.cat([features, self.beside(features)], 1)
        return self.head(torch.relu(self.grouped(features)).mean((2, 3)))  # type: ignore[no-any-return]


class Sliced(nn.Module):
    """Halves of a layer's channels are multiplied by hand, which the library does not see."""

    def __init__(self) -> None:
        super().__init__()
        self.halved, self.head = nn.Linear(64, 64), nn.Linear(32, 10)

    def forward(self, image: Tensor) -> Tensor:
        made = torch.relu(self.halved(image))
        return self.head(made[:, :32] * torch.sigmoid(made[:, 32:]))  # type: ignore[no-any-return]


def pruning(**settings: object) -> StructuredPruning:
    return StructuredPruning(StructuredPruningSettings.model_validate({"epochs": 0, **settings}))


@pytest.mark.parametrize("importance", ["l2", "taylor", "fpgm"])
@pytest.mark.parametrize(
    ("module", "narrower"),
    [
        (Narrowing, {"first": [16, 8], "deep": [32, 16], "joined": [16, 8]}),
        (Tied, {"first": [48, 24]}),
        (Gated, {"plain": [32, 16]}),
        (Joined, {"grouped": [16, 8]}),
    ],
)
def test_channels_that_cannot_go_stay_and_the_others_go(
    module: Callable[[], nn.Module], narrower: dict[str, list[int]], importance: str, context: PassContext
) -> None:
    with seeded(0):
        model = TorchModel(module(), DIGITS)
    prune = pruning(importance=importance)
    prune.requires(model, context)
    assert prune.ensures(model, prune.run(model, context), context)["widths"] == narrower


def test_what_a_transposed_convolution_costs_is_known(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Narrowing(), DIGITS)
    found = ranked_channels(model, context, "l2", ())
    assert found.macs({}) == pytest.approx(multiply_accumulates(model, context.splits.train))
    widths = {"first": 8, "deep": 16, "joined": 8}
    narrow = narrowed(model, context.splits.train, found.groups, widths)
    assert found.macs(widths) == pytest.approx(multiply_accumulates(narrow, context.splits.train))


def test_a_layer_whose_channels_cannot_be_followed_is_named(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Sliced(), DIGITS)
    with pytest.raises(PassRefusedError, match=r"channels of halved.*`ignore`"):
        pruning().run(model, context)
    with pytest.raises(PassRefusedError, match=r"no layer may lose channels.*use prune-unstructured"):
        pruning(ignore=["halved"]).run(model, context)
