from __future__ import annotations

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.nn.utils import parametrize

from compression.base import AnyPass, BrokenPromiseError, PassContext, PassRefusedError
from compression.codebook import expanded
from compression.data import Split, Splits
from compression.inspection import parameters
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.recipe import Step
from compression.registry import make_pass
from compression.weight_grids import GridRounding, bound, eight_bit_floats, fixed_points, powers_of_two, signs
from tests.compression.small_digits import accuracy

TECHNIQUES = {
    "pow2-weights": (0.2, 15),
    "fixed-point-weights": (0.4, 255),
    "binary-weights": (0.2, 2),
    "fp8-weights": (0.4, 253),
}


def made(name: str, **settings: object) -> AnyPass:
    return make_pass(Step(pass_name=name, settings={"epochs": 2, **settings}))


@pytest.mark.parametrize("name", TECHNIQUES)
def test_few_values_are_stored_small_and_answer_well(
    name: str, reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    share, values = TECHNIQUES[name]
    each = made(name)
    each.requires(reference, context)
    after = each.run(reference, context)
    facts = each.ensures(reference, after, context)
    each.holds(facts, after)
    assert facts["gain"] == "size only"
    assert max(facts["layers"].values()) <= values
    assert len(facts["layers"]) == (3 if name == "binary-weights" else 5)
    assert after.proto.ByteSize() < share * artifact.proto.ByteSize()
    assert parameters(after) == parameters(artifact)
    assert flops(after) == flops(artifact)
    assert accuracy(after, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.05
    with pytest.raises(BrokenPromiseError, match="no longer stored as codes"):
        each.holds(facts, expanded(after))


def test_channels_of_tiny_weights_are_as_near_as_others() -> None:
    weight = torch.randn(4, 100, generator=torch.Generator().manual_seed(0))
    weight[0] *= 1e-6
    rounding = GridRounding(eight_bit_floats, 0, 8)
    for near in (rounding(weight), torch.from_numpy(rounding.codes(weight).weight())):
        assert ((near - weight).norm(dim=1) < 0.04 * weight.norm(dim=1)).all()


def test_values_of_another_technique_break_the_promise(reference: TorchModel, context: PassContext) -> None:
    eighths = made("fp8-weights", epochs=0).run(reference, context)
    with pytest.raises(BrokenPromiseError, match="does not make"):
        made("fixed-point-weights").ensures(reference, eighths, context)


def test_masked_weights_stay_zero(reference: TorchModel, context: PassContext) -> None:
    module = copy.deepcopy(reference.module)
    layers = [each for each in module.modules() if isinstance(each, nn.Conv2d | nn.Linear)]
    for layer in layers:
        kept = layer.weight.detach().abs() > layer.weight.detach().abs().median()
        parametrize.register_parametrization(layer, "weight", Masked(kept))
    sparse = TorchModel(module, reference.signature)
    each = made("pow2-weights", epochs=1)
    each.requires(sparse, context)
    after = each.run(sparse, context)
    facts = each.ensures(sparse, after, context)
    assert facts["zero_weights"] >= 0.5 * facts["coded_weights"]
    with pytest.raises(PassRefusedError, match="has no zero"):
        made("binary-weights").requires(sparse, context)


def test_learning_needs_labels_and_rounding_alone_does_not(
    reference: TorchModel, context: PassContext
) -> None:
    bare = Splits(**{name: Split(split.inputs) for name, split in context.splits.items()})
    unlabelled = replace(context, splits=bare)
    with pytest.raises(PassRefusedError, match="no labels"):
        made("fp8-weights").requires(reference, unlabelled)
    made("fp8-weights", epochs=0).requires(reference, unlabelled)
    made("fp8-weights", teacher=1.0).requires(reference, unlabelled)


def test_two_layers_have_nothing_between_their_ends(reference: TorchModel, context: PassContext) -> None:
    small = TorchModel(nn.Sequential(nn.Linear(64, 32), nn.ReLU(), nn.Linear(32, 10)), reference.signature)
    with pytest.raises(PassRefusedError, match="exclude_ends"):
        made("binary-weights").requires(small, context)


def test_powers_of_two_end_where_the_largest_weight_is_nearest() -> None:
    values, scale = powers_of_two(3, torch.tensor([[0.7, -0.1]]), 0)
    assert scale is None
    assert values.tolist() == [-0.5, -0.25, -0.125, 0.0, 0.125, 0.25, 0.5]
    assert powers_of_two(3, torch.tensor([[0.8]]), 0)[0].max() == 1.0


def test_fixed_points_are_as_fine_as_the_largest_weight_allows() -> None:
    values, _ = fixed_points(4, torch.tensor([[0.4, -0.3]]), 0)
    assert values.tolist() == [step / 16 for step in range(-7, 8)]


def test_signs_carry_the_mean_size_of_their_channel() -> None:
    weight = torch.tensor([[1.0, -3.0], [0.5, 0.5]])
    rounded = GridRounding(signs, 0, 1)(weight)
    assert rounded.tolist() == [[2.0, -2.0], [0.5, 0.5]]


def test_the_gradient_passes_straight_through() -> None:
    weight = torch.tensor([[0.3, -0.2]], requires_grad=True)
    GridRounding(bound(powers_of_two, 4), 0, 4)(weight).sum().backward()
    assert weight.grad is not None
    assert weight.grad.tolist() == [[1.0, 1.0]]


class Masked(nn.Module):
    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.get_buffer("kept")
