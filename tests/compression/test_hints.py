from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn
from torch.nn import functional

from compression.base import PassContext, PassRefusedError
from compression.distillation import Distillation, DistillationSettings
from compression.export import export
from compression.hints import Watching, attention_loss, hint_loss, pairs_of, watched
from compression.losses import Batch
from compression.model import TorchModel
from compression.reparameterization import Fuse, FuseSettings
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS, small_net


def distillation(**settings: object) -> Distillation:
    return Distillation(DistillationSettings.model_validate({"student": "small", "epochs": 2, **settings}))


@pytest.fixture
def student() -> TorchModel:
    with seeded(0):
        return TorchModel(small_net(), DIGITS)


def attention_distance(student: TorchModel, context: PassContext) -> float:
    teacher, validation = context.reference, context.splits.validation
    assert teacher is not None
    pairs = pairs_of(teacher, student, validation)
    seen = []
    for model, names in ((student, [p.student for p in pairs]), (teacher, [p.teacher for p in pairs])):
        with watched(model.module, names) as features:
            predict(model, validation)
        seen.append([features[name] for name in names])
    return float(np.mean([float(attention_loss(a, b)) for a, b in zip(*seen, strict=True)]))


def test_layers_pair_by_the_size_of_their_maps(
    reference: TorchModel, student: TorchModel, context: PassContext
) -> None:
    pairs = pairs_of(reference, student, context.splits.validation)
    assert [(pair.teacher, pair.student, pair.channels) for pair in pairs] == [
        ("6", "6", (16, 32)),  # 8x8, the last before pooling
        ("10", "10", (16, 64)),  # 4x4
        ("11", "11", (16, 64)),  # 2x2
    ]


@pytest.mark.parametrize("inside", [{"hint_weight": 1.0}, {"attention_weight": 10.0, "hint_weight": 0.5}])
def test_teaching_from_inside_leaves_no_trace(
    reference: TorchModel, student: TorchModel, context: PassContext, inside: dict[str, float]
) -> None:
    distill = distillation(**inside)
    distill.requires(reference, context)
    taught = distill.run(reference, context)
    facts = distill.ensures(reference, taught, context)
    assert facts["hints"] == [["6", "6"], ["10", "10"], ["11", "11"]]
    assert taught.module.state_dict().keys() == student.module.state_dict().keys()
    assert not any(part._forward_hooks for part in taught.module.modules())
    distill.holds(facts, export(taught))
    assert taught.weights_digest() != distillation().run(reference, context).weights_digest()


def test_a_student_learns_to_look_where_its_teacher_looks(
    reference: TorchModel, context: PassContext
) -> None:
    looked = distillation(attention_weight=20.0).run(reference, context)
    alone = distillation().run(reference, context)
    assert attention_distance(looked, context) < 0.8 * attention_distance(alone, context)


def test_hints_alone_teach_too(reference: TorchModel, context: PassContext) -> None:
    distill = distillation(alpha=0.0, hint_weight=1.0, hints=[["12", "12"], ["14", "14"]])
    with pytest.raises(PassRefusedError, match="differ in channels only"):
        distillation(hint_weight=1.0, hints=[["3", "6"], ["7", "6"]]).requires(reference, context)
    distill.requires(reference, context)
    assert distill.ensures(reference, distill.run(reference, context), context)["taught"] is True


def test_what_cannot_be_compared_is_refused(reference: TorchModel, context: PassContext) -> None:
    def refused(message: str, **settings: object) -> None:
        with pytest.raises(PassRefusedError, match=message):
            distillation(**settings).requires(reference, context)

    refused('the teacher has no layer "body"', hint_weight=1.0, hints=[["body", "6"]])
    refused('the student has no layer "body"', hint_weight=1.0, hints=[["6", "body"]])
    refused("gives no feature maps", attention_weight=1.0, hints=[["14", "14"]])
    flat = {"small": lambda: nn.Sequential(nn.Linear(64, 8), nn.ReLU(), nn.Linear(8, 10))}
    with pytest.raises(PassRefusedError, match="Name pairs of layers in hints"):
        distillation(hint_weight=1.0).requires(reference, replace(context, students=flat))


def test_distances_do_not_depend_on_a_layers_scale() -> None:
    with seeded(0):
        ours, theirs = torch.randn(2, 3, 4, 4), torch.randn(2, 3, 4, 4)
    assert float(hint_loss(theirs, theirs)) == pytest.approx(0.0)
    assert float(attention_loss(ours, ours * 7)) == pytest.approx(0.0, abs=1e-6)
    assert float(hint_loss(ours * 7, theirs * 7)) == pytest.approx(float(hint_loss(ours, theirs)))


class Untraceable(nn.Module):
    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        outputs = self.inner(image)
        return outputs if bool(outputs.isfinite().all()) else torch.zeros_like(outputs)


@pytest.mark.parametrize("wrap", [lambda module: module, Untraceable], ids=["traced", "untraceable"])
def test_a_teacher_of_answers_alone_says_what_it_said_with_fewer_layers(
    reference: TorchModel, context: PassContext, wrap: Callable[[nn.Module], nn.Module]
) -> None:
    teacher = TorchModel(wrap(copy.deepcopy(reference.module)).eval(), reference.signature)
    watching = Watching(teacher, replace(context.training, autocast=False), context.splits.validation)
    norms = sum(isinstance(part, nn.BatchNorm2d) for part in watching.module.modules())
    assert norms == (0 if wrap is not Untraceable else 3)
    rows = context.splits.validation.take(slice(0, 32))
    batch = Batch(torch.arange(32), (torch.from_numpy(rows.inputs["image"]),), None)
    (said,) = watching.answers(batch)
    np.testing.assert_allclose(said.numpy(), predict(teacher, rows)[0], rtol=1e-3, atol=1e-3)


class Again(nn.Module):
    """An autoencoder's encoder, whose weight the decoder reads again."""

    def __init__(self) -> None:
        super().__init__()
        self.encode, self.norm, self.last = nn.Linear(64, 16), nn.BatchNorm1d(16), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        code = torch.relu(self.norm(self.encode(image)))
        return self.last(functional.linear(code, self.encode.weight.t()))  # type: ignore[no-any-return]


class OverPositions(nn.Module):
    """A normalization behind a linear layer whose channels are positions."""

    def __init__(self, wide: int) -> None:
        super().__init__()
        self.each, self.norm, self.last = nn.Linear(8, wide), nn.BatchNorm1d(8), nn.Linear(wide, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.norm(self.each(image.reshape(-1, 8, 8)))).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("make", [Again, lambda: OverPositions(8), lambda: OverPositions(12)])
def test_a_teacher_whose_layers_are_not_its_own_says_what_it_said(
    make: Callable[[], nn.Module], context: PassContext
) -> None:
    rows = context.splits.validation.take(slice(0, 32))
    images = torch.from_numpy(rows.inputs["image"])
    with seeded(0):
        module = make()
        with torch.no_grad():
            module.train()(images * 3 + 1)
    teacher = TorchModel(module.eval(), DIGITS)
    watching = Watching(teacher, replace(context.training, autocast=False), context.splits.validation)
    (said,) = watching.answers(Batch(torch.arange(32), (images,), None))
    np.testing.assert_allclose(said.numpy(), predict(teacher, rows)[0], rtol=1e-4, atol=1e-4)
    assert not any(isinstance(part, nn.Identity) for part in watching.module.modules())
    with pytest.raises(PassRefusedError, match="no batch normalization behind a layer of its own"):
        Fuse(FuseSettings()).requires(teacher, context)
