"""Structured pruning: which channels go, how many are left, and what is refused."""

from __future__ import annotations

import copy
from dataclasses import replace
from typing import get_args

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.cutting import check_runs
from compression.export import export
from compression.importance import Importance, ranked_channels
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.recipe import step
from compression.registry import make_pass
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


@pytest.mark.parametrize("importance", get_args(Importance))
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


class Coded(nn.Module):
    """An output that another layer reads, and one that is made of it."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner = nn.Linear(64, 32), nn.Linear(32, 16)
        self.second, self.classes = nn.Linear(16, 32), nn.Linear(32, 10)

    def forward(self, image: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        code = self.inner(torch.relu(self.first(image)))
        return self.classes(torch.relu(self.second(code))), code


@pytest.mark.parametrize("given", ["prune-structured", "prune-search"])
def test_an_output_that_another_layer_reads_keeps_its_width(given: str, context: PassContext) -> None:
    outputs = (TensorSpec("classes", "float32", ("batch", 10)), TensorSpec("code", "float32", ("batch", 16)))
    with seeded(0):
        model = TorchModel(Coded(), Signature(DIGITS.inputs, outputs))
    search = {"trials": 4, "rows": 100, "folds": 2} if given == "prune-search" else {}
    prune = make_pass(step(given, epochs=1, **search))
    facts = prune.ensures(model, prune.run(model, context), context)
    assert facts["widths"].keys() == {"first", "second"}


def test_an_output_of_another_shape_is_found_before_anything_is_trained(context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match=r'output "logits" has shape \[2, 8\] after pruning'):
        check_runs(TorchModel(nn.Linear(64, 8), DIGITS), context)


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


def planted(module: nn.Module, importance: str, channels: list[int]) -> None:
    """Makes channels of the second convolution as worthless as this importance can tell."""
    convolution, norm, after = module[4], module[5], module[8]
    with torch.no_grad():
        if importance in ("l1", "l2"):
            convolution.weight[channels] *= 0.01
            after.weight[:, channels] *= 0.01
            norm.weight[channels] *= 0.01
        elif importance == "taylor":
            after.weight[:, channels] = 0.0
            norm.weight[channels], norm.bias[channels] = 0.0, 0.0
        elif importance == "bn-gamma":
            norm.weight[channels] = 0.001
        else:
            convolution.weight[channels] = convolution.weight.mean(0)


@pytest.mark.parametrize("importance", ["l1", "l2", "taylor", "bn-gamma", "mean", "fpgm"])
def test_the_worthless_channels_go_first(
    importance: Importance, reference: TorchModel, context: PassContext
) -> None:
    worthless = [3, 4, 11, 17, 18, 19, 28, 31]
    module = copy.deepcopy(reference.module)
    planted(module, importance, worthless)
    found = ranked_channels(TorchModel(module, DIGITS), context, importance)
    group = next(group for group in found.groups if group.name == "4")
    assert group.removed(24) == worthless


def test_random_is_random_by_the_seed_alone(reference: TorchModel, context: PassContext) -> None:
    prune = pruning(importance="random")
    first, second = (prune.run(reference, context).weights_digest() for _ in range(2))
    other = prune.run(reference, replace(context, seed=1)).weights_digest()
    assert first == second != other


def test_slimming_makes_scales_few_before_they_are_ranked(
    reference: TorchModel, context: PassContext
) -> None:
    settings = {"importance": "bn-gamma", "ratio": 0.3, "round_to": 1, "learning_rate": 1e-2}
    plain, slim = (
        pruning(**settings, slimming=weight)._slim(reference, context).module for weight in (1e-6, 0.05)
    )
    scales = [
        sum(part.weight.detach().abs().sum().item() for part in module if isinstance(part, nn.BatchNorm2d))
        for module in (plain, slim)
    ]
    assert scales[1] < 0.9 * scales[0]
    prune = pruning(**settings, slimming=0.05)
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert facts["widths"].keys() == {"1", "4", "8"}  # the linear layers have no scale
    with pytest.raises(PassRefusedError, match="l2 does not read"):
        pruning(slimming=1e-2).requires(reference, context)
    with pytest.raises(PassRefusedError, match="no batch normalization"):
        pruning(importance="bn-gamma").requires(TorchModel(TwoHeads(), DIGITS), context)


@pytest.mark.parametrize("global_pruning", [False, True])
def test_at_most_the_target_of_multiply_accumulates_is_left(
    global_pruning: bool, reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    prune = pruning(target_macs=0.5, global_pruning=global_pruning, round_to=4)
    narrow = prune.run(reference, context)
    facts = prune.ensures(reference, narrow, context)
    assert 0.35 < facts["macs_after"] / facts["macs_before"] <= 0.5
    assert facts["macs_before"] * 2 == flops(artifact)
    assert facts["macs_after"] * 2 == flops(export(narrow))
    with pytest.raises(PassRefusedError, match="at its least width"):
        pruning(target_macs=0.01, round_to=16).run(reference, context)


def test_rounds_go_to_the_target_step_by_step(reference: TorchModel, context: PassContext) -> None:
    prune = pruning(target_macs=0.25, rounds=2, epochs=2, round_to=4, importance="taylor", floor=0.5)
    prune.requires(reference, context)
    narrow = prune.run(reference, context)
    facts = prune.ensures(reference, narrow, context)
    assert facts["macs_after"] <= 0.25 * facts["macs_before"]
    assert [entry["round"] for entry in facts["rounds"] if entry["kept"]] == [1, 2]
    assert not facts["stopped_by_floor"]
    assert accuracy(export(narrow), context.splits.test) > 0.85


def test_the_last_round_above_the_floor_is_kept(reference: TorchModel, context: PassContext) -> None:
    prune = pruning(ratio=0.97, rounds=4, epochs=3, floor=0.8, round_to=1, learning_rate=3e-3)
    narrow = prune.run(reference, context)
    facts = prune.ensures(reference, narrow, context)
    *kept, last = facts["rounds"]
    assert facts["stopped_by_floor"]
    assert all(entry["quality_ratio"] >= 0.8 for entry in kept)
    assert last["quality_ratio"] < 0.8
    assert facts["parameters_after"] < facts["parameters_before"]
    prune = pruning(ratio=0.9, floor=0.99)
    with pytest.raises(BrokenPromiseError, match="the first round left"):
        prune.ensures(reference, prune.run(reference, context), context)
    with pytest.raises(PassRefusedError, match="needs a metric"):
        prune.requires(reference, replace(context, quality=None))


def test_the_reference_can_teach_what_is_left(reference: TorchModel, context: PassContext) -> None:
    bare = replace(context.splits, train=replace(context.splits.train, labels=None))
    unlabelled = replace(context, splits=bare)
    prune = pruning(epochs=3, teacher=1.0)
    prune.requires(reference, unlabelled)
    assert accuracy(export(prune.run(reference, unlabelled)), context.splits.test) > 0.85


def test_masked_weights_are_refused(reference: TorchModel, context: PassContext) -> None:
    masked = copy.deepcopy(reference.module)
    parametrize.register_parametrization(masked[4], "weight", nn.Identity())
    with pytest.raises(PassRefusedError, match=r"the weights of 4 are held .* before those that mask"):
        pruning().requires(TorchModel(masked, DIGITS), context)
