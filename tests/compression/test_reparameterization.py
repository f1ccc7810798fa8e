from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.distillation import Distillation, DistillationSettings
from compression.export import export
from compression.model import TorchModel
from compression.reparameterization import Branches, Fuse, FuseSettings, one_convolution
from compression.training import seeded
from tests.compression.small_digits import DIGITS

FUSE = Fuse(FuseSettings())


def branches(channels_in: int, channels_out: int) -> Branches:
    sides = [
        nn.Sequential(
            nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        for side in (3, 1)
    ]
    return Branches([*sides, nn.BatchNorm2d(channels_out)] if channels_in == channels_out else sides)


def repvgg() -> nn.Module:
    blocks = [branches(1, 8), nn.ReLU(), nn.MaxPool2d(2), branches(8, 16), nn.ReLU(), branches(16, 16)]
    return nn.Sequential(nn.Unflatten(1, (1, 8, 8)), *blocks, nn.ReLU(), nn.Flatten(), nn.Linear(256, 10))


def lived_in(module: nn.Module, shape: Sequence[int]) -> nn.Module:
    """Normalizations with scales, offsets and statistics as training leaves them."""
    with torch.no_grad():
        for part in module.modules():
            if isinstance(part, nn.BatchNorm2d):
                part.weight.uniform_(0.2, 2.0)
                part.bias.normal_()
        module.train()(torch.randn(*shape) * 3 + 1)
    return module.eval()


def test_normalizations_fold_and_answers_stay(reference: TorchModel, context: PassContext) -> None:
    FUSE.requires(reference, context)
    fused = FUSE.run(reference, context)
    facts = FUSE.ensures(reference, fused, context)
    assert facts["normalizations_folded"] == 3
    assert facts["blocks_fused"] == 0
    assert facts["largest_error"] < 1e-5
    assert sum(isinstance(part, nn.BatchNorm2d) for part in reference.module.modules()) == 3
    FUSE.holds(facts, export(fused))


def test_a_distilled_repvgg_becomes_a_plain_chain(reference: TorchModel, context: PassContext) -> None:
    task = replace(context, students={"repvgg": repvgg})
    distill = Distillation(DistillationSettings(student="repvgg", epochs=2))
    distill.requires(reference, task)
    taught = distill.run(reference, task)
    FUSE.requires(taught, task)
    fused = FUSE.run(taught, task)
    facts = FUSE.ensures(taught, fused, task)
    assert facts["blocks_fused"] == 3
    artifact = export(fused)
    assert sum(node.op_type == "Conv" for node in artifact.proto.graph.node) == 3
    FUSE.holds(facts, artifact)
    with pytest.raises(BrokenPromiseError, match="A later step replaced what fuse made"):
        FUSE.holds(facts, export(taught))


@pytest.mark.parametrize(("groups", "stride"), [(1, 1), (4, 1), (1, 2)])
def test_branches_of_any_stride_and_groups_are_one_convolution(groups: int, stride: int) -> None:
    with seeded(0):
        sides = [
            nn.Sequential(
                nn.Conv2d(8, 8, side, stride, side // 2, groups=groups, bias=side == 1), nn.BatchNorm2d(8)
            )
            for side in (1, 5, 3)
        ]
        identity = [nn.BatchNorm2d(8)] if stride == 1 else []
        block = lived_in(Branches([*sides, *identity]), (16, 8, 9, 9))
        features = torch.randn(2, 8, 9, 9)
    assert isinstance(block, Branches)
    with torch.no_grad():
        assert torch.allclose(one_convolution(block)(features), block(features), atol=1e-4)


def test_branches_that_do_not_fit_are_refused() -> None:
    with pytest.raises(PassRefusedError, match="cannot become one"):
        one_convolution(Branches([nn.Conv2d(4, 4, 3, padding=1), nn.Conv2d(4, 4, 3)]))
    with pytest.raises(PassRefusedError, match="Branches are a Conv2d"):
        one_convolution(Branches([nn.Conv2d(4, 4, 3, padding=1), nn.ReLU()]))


class Shared(nn.Module):
    """A convolution that is read twice: once plain, once normalized."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.norm, self.head = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Linear(144, 10)

    def forward(self, image: Tensor) -> Tensor:
        plain = self.layer(image.reshape(-1, 1, 8, 8))
        return self.head((plain + self.norm(plain)).flatten(1))  # type: ignore[no-any-return]


class Choosing(nn.Module):
    def forward(self, image: Tensor) -> Tensor:
        return image[:, :10] if image.sum() > 0 else -image[:, :10]


def test_what_cannot_be_fused_is_refused(reference: TorchModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="there is no batch normalization behind"):
        FUSE.requires(TorchModel(Shared().eval(), DIGITS), context)
    with pytest.raises(PassRefusedError, match="cannot be traced"):
        FUSE.requires(TorchModel(Choosing(), DIGITS), context)
    masked = replace(reference, module=nn.Sequential(nn.Linear(64, 10)))
    parametrize.register_parametrization(masked.module[0], "weight", nn.ReLU())  # type: ignore[index]
    with pytest.raises(PassRefusedError, match="masked or shared"):
        FUSE.requires(masked, context)


def test_an_answer_that_changed_breaks_the_promise(reference: TorchModel, context: PassContext) -> None:
    fused = FUSE.run(reference, context)
    with torch.no_grad():
        next(fused.module.parameters()).mul_(1.1)
    with pytest.raises(BrokenPromiseError, match="after fusing"):
        FUSE.ensures(reference, fused, context)
    with pytest.raises(BrokenPromiseError, match="no batch normalization was folded"):
        FUSE.ensures(reference, reference, context)
