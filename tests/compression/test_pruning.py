from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.export import export
from compression.inspection import flops
from compression.model import OnnxModel, TorchModel
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.signature import Signature, TensorSpec
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS, accuracy


def pruning(**settings: object) -> StructuredPruning:
    return StructuredPruning(StructuredPruningSettings.model_validate({"epochs": 0, **settings}))


def test_channels_are_gone_and_fine_tuning_brings_the_answers_back(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    prune = pruning(epochs=4)
    prune.requires(reference, context)
    before = reference.weights_digest()
    narrow = prune.run(reference, context)
    facts = prune.ensures(reference, narrow, context)
    assert reference.weights_digest() == before
    assert list(facts["widths"].values()) == [[16, 8], [32, 16], [64, 32], [32, 16]]
    assert facts["parameters_after"] < 0.35 * facts["parameters_before"]
    exported = export(narrow)
    prune.holds(facts, exported)
    assert flops(exported) < 0.35 * flops(artifact)
    assert accuracy(exported, context.splits.test) > 0.9


@pytest.mark.parametrize("importance", ["l1", "l2"])
@pytest.mark.parametrize("global_pruning", [False, True])
def test_widths_stay_multiples_of_eight(
    importance: str, global_pruning: bool, reference: TorchModel, context: PassContext
) -> None:
    prune = pruning(ratio=0.4, importance=importance, global_pruning=global_pruning)
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert all(width % 8 == 0 and width > 0 for _, width in facts["widths"].values())


@pytest.mark.parametrize(
    ("ratio", "widths"),
    [(0.2, [[32, 24], [64, 48], [32, 24]]), (0.95, [[16, 8], [32, 8], [64, 8], [32, 8]])],
)
def test_what_is_left_is_the_nearest_multiple_and_never_nothing(
    ratio: float, widths: list[list[int]], reference: TorchModel, context: PassContext
) -> None:
    prune = pruning(ratio=ratio)
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert list(facts["widths"].values()) == widths


def test_ignored_layers_keep_their_width(reference: TorchModel, context: PassContext) -> None:
    prune = pruning(ignore=["1"])
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert "1" not in facts["widths"]
    with pytest.raises(PassRefusedError, match="there is no module nonsense"):
        pruning(ignore=["nonsense"]).requires(reference, context)


class TwoHeads(nn.Module):
    """A residual trunk with two outputs, one behind a softmax, one read in the middle."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.block = nn.Linear(64, 32), nn.Linear(32, 32)
        self.classes, self.box = nn.Linear(32, 10), nn.Linear(32, 12)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        trunk = torch.relu(self.stem(image))
        trunk = trunk + torch.relu(self.block(trunk))
        return torch.softmax(self.classes(trunk), -1), self.box(trunk)


def test_every_output_keeps_its_shape_whatever_stands_behind_it(context: PassContext) -> None:
    outputs = (TensorSpec("classes", "float32", ("batch", 10)), TensorSpec("box", "float32", ("batch", 12)))
    with seeded(0):
        model = TorchModel(TwoHeads(), Signature(DIGITS.inputs, outputs))
    prune = pruning(round_to=1)
    narrow = prune.run(model, context)
    facts = prune.ensures(model, narrow, context)
    assert facts["widths"] == {"stem": [32, 16], "block": [32, 16]}
    assert [output.shape[1] for output in predict(narrow, context.splits.validation)] == [10, 12]


def test_frozen_weights_stay_frozen(context: PassContext) -> None:
    with seeded(0):
        module = nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 16), nn.ReLU(), nn.Linear(16, 10))
    module[0].requires_grad_(False)
    narrow = pruning().run(TorchModel(module, DIGITS), context).module
    assert [name for name, weight in narrow.named_parameters() if not weight.requires_grad] == [
        "0.weight",
        "0.bias",
    ]


def test_a_ratio_that_rounding_eats_breaks_the_promise(reference: TorchModel, context: PassContext) -> None:
    prune = pruning(ratio=0.05, round_to=16)
    with pytest.raises(BrokenPromiseError, match="no channel was removed"):
        prune.ensures(reference, prune.run(reference, context), context)


def test_a_later_step_that_brings_the_channels_back_is_found_out(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    prune = pruning()
    facts = prune.ensures(reference, prune.run(reference, context), context)
    with pytest.raises(BrokenPromiseError, match="nearer to the"):
        prune.holds(facts, artifact)


def test_a_single_layer_is_refused(context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="all its channels are outputs"):
        pruning().requires(TorchModel(nn.Linear(64, 10), DIGITS), context)


def test_fine_tuning_without_labels_is_refused(reference: TorchModel, context: PassContext) -> None:
    bare = replace(context.splits, train=replace(context.splits.train, labels=None))
    with pytest.raises(PassRefusedError, match="needs labels"):
        pruning(epochs=2).requires(reference, replace(context, splits=bare))
