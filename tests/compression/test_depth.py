from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.depth import DepthPruning, DepthPruningSettings, skippable_blocks
from compression.export import export
from compression.model import TorchModel
from compression.operations import flops
from compression.training import Training, fit, seeded
from tests.compression.small_digits import DIGITS, accuracy, silent


class Residual(nn.Module):
    """Two layers beside the identity, times a factor that says how much they matter."""

    def __init__(self, factor: float) -> None:
        super().__init__()
        self.first, self.second, self.factor = nn.Linear(32, 32), nn.Linear(32, 32), factor

    def forward(self, features: torch.Tensor) -> torch.Tensor:
        return features + self.factor * self.second(torch.relu(self.first(features)))


class Wrapped(Residual):
    """A block that gives a tuple and takes more than it needs, as transformers' do."""

    def forward(self, features: torch.Tensor, weight: float = 1.0) -> tuple[torch.Tensor]:  # type: ignore[override]
        return (weight * super().forward(features),)


class Deep(nn.Module):
    """Three blocks between a stem and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.head = nn.Linear(64, 32), nn.Linear(32, 10)
        self.blocks = nn.Sequential(Residual(1.0), Residual(1e-3))
        self.last = Wrapped(2e-3)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = torch.relu(self.stem(image))
        return self.head(self.last(self.blocks(features), weight=1.0)[0])


@pytest.fixture(scope="module")
def deep(context: PassContext) -> TorchModel:
    with seeded(0):
        model = TorchModel(Deep(), DIGITS)
    splits = context.splits
    return fit(model, splits.train, splits.validation, Training(epochs=5), seed=0, report=silent).model


def pruning(**settings: object) -> DepthPruning:
    return DepthPruning(DepthPruningSettings.model_validate({"epochs": 0, **settings}))


def test_the_blocks_that_the_loss_misses_least_are_gone(deep: TorchModel, context: PassContext) -> None:
    prune = pruning(remove=2, epochs=2)
    prune.requires(deep, context)
    before = deep.weights_digest()
    shallow = prune.run(deep, context)
    facts = prune.ensures(deep, shallow, context)
    assert deep.weights_digest() == before
    assert sorted(facts["removed"]) == ["blocks.1", "last"]
    assert facts["judged"][0]["rises"]["blocks.0"] > max(
        facts["judged"][0]["rises"][name] for name in ("blocks.1", "last")
    )
    assert facts["parameters_before"] - facts["parameters_after"] == 4 * (32 * 32 + 32)
    exported = export(shallow)
    prune.holds(facts, exported)
    assert flops(exported) == 2 * facts["macs_after"] == flops(export(deep)) - 8 * 32 * 32
    assert accuracy(exported, context.splits.test) > 0.85


def test_named_blocks_alone_are_chosen_from(deep: TorchModel, context: PassContext) -> None:
    prune = pruning(blocks=["blocks.0"])
    assert prune.ensures(deep, prune.run(deep, context), context)["removed"] == ["blocks.0"]
    with pytest.raises(PassRefusedError, match=r"stem cannot be left out"):
        pruning(blocks=["stem"]).requires(deep, context)


def test_blocks_are_modules_that_keep_the_shape_and_no_stacks_of_them(
    deep: TorchModel, reference: TorchModel, context: PassContext
) -> None:
    train = context.splits.train
    assert skippable_blocks(deep, train) == {"blocks.0": False, "blocks.1": False, "last": True}
    assert skippable_blocks(deep, train, ("blocks.0.first",)) == {"blocks.0.first": False}
    with pytest.raises(PassRefusedError, match=r"the model has 0 that give what they take"):
        pruning().requires(reference, context)
    with pytest.raises(PassRefusedError, match=r"4 blocks are to go and the model has 3"):
        pruning(remove=4).requires(deep, context)


class Tokens(nn.Module):
    """torch's own encoder over the eight rows of a digit; it asks its first layer how it attends."""

    def __init__(self) -> None:
        super().__init__()
        layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 3), nn.Linear(8, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.head(self.encoder(image.reshape(-1, 8, 8)).mean(1))  # type: ignore[no-any-return]


def test_a_block_that_its_owner_looks_into_is_not_offered(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Tokens().eval(), DIGITS)
    assert list(skippable_blocks(model, context.splits.train)) == ["encoder.layers.1", "encoder.layers.2"]
    prune = pruning(remove=2)
    prune.requires(model, context)
    shallow = prune.run(model, context)
    prune.holds(prune.ensures(model, shallow, context), export(shallow))
    with pytest.raises(PassRefusedError, match=r"encoder\.layers\.0 cannot be left out.*reads nothing else"):
        pruning(blocks=["encoder.layers.0"]).requires(model, context)


def test_blocks_that_come_back_are_found_out(deep: TorchModel, context: PassContext) -> None:
    prune = pruning()
    facts = prune.ensures(deep, prune.run(deep, context), context)
    with pytest.raises(BrokenPromiseError, match="is still there"):
        prune.ensures(deep, deep, context)
    with pytest.raises(BrokenPromiseError, match="nearer to the"):
        prune.holds(facts, export(deep))


def test_validation_without_labels_cannot_judge(deep: TorchModel, context: PassContext) -> None:
    bare = replace(context.splits, validation=replace(context.splits.validation, labels=None))
    with pytest.raises(PassRefusedError, match="has no labels"):
        pruning().requires(deep, replace(context, splits=bare))
