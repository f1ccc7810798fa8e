from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.base import PassContext
from compression.channels import multiply_accumulates, parameters_of
from compression.data import Split, Splits
from compression.export import export
from compression.model import TorchModel
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.quantization import StaticInt8, StaticInt8Settings
from compression.signature import Signature, TensorSpec
from compression.students import FAMILIES, make_student
from compression.training import Training, predict, seeded
from tests.compression.small_digits import silent
from variants.spec import ModelSpec
from variants.zoo import cifar10

COLOURS = Signature(
    (TensorSpec("image", "float32", ("batch", 3, 16, 16)),), (TensorSpec("logits", "float32", ("batch", 10)),)
)


@pytest.fixture(scope="module")
def context() -> PassContext:
    with seeded(0):
        pictures = torch.rand(4, 8, 3, 16, 16).numpy()
    return PassContext(
        Splits(*(Split({"image": part}) for part in pictures)), None, {}, Training(), 0, silent
    )


def student(family: str) -> TorchModel:
    with seeded(0):
        return TorchModel(make_student(family, nn.Identity(), 3, 10, width=16).eval(), COLOURS)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_loses_channels_in_multiples_of_8(family: str, context: PassContext) -> None:
    model = student(family)
    prune = StructuredPruning(StructuredPruningSettings(ratio=0.5, epochs=0))
    prune.requires(model, context)
    narrow = prune.run(model, context)
    widths = prune.ensures(model, narrow, context)["widths"]
    assert all(width % 8 == 0 for _, width in widths.values())
    assert parameters_of(narrow.module) < 0.4 * parameters_of(model.module)


@pytest.mark.parametrize("family", ["shufflenet", "vovnet"])  # those with the most uncommon graphs
def test_a_student_is_exported_and_quantized_whole(family: str, context: PassContext) -> None:
    artifact = export(student(family))
    quantize = StaticInt8(StaticInt8Settings(rows=8))
    facts = quantize.ensures(artifact, quantize.run(artifact, context), context)
    assert sum(facts["quantized_operators"].values()) == facts["heavy_operators"]


def test_separating_costs_few_operations(context: PassContext) -> None:
    plain, light = (
        multiply_accumulates(student(family), context.splits.train) for family in ("vgg", "mobilenet")
    )
    assert light < plain / 5


def test_a_shuffled_student_reads_every_input_channel_in_every_output(context: PassContext) -> None:
    model = student("shufflenet")
    image = torch.rand(1, 3, 16, 16, requires_grad=True)
    model.module(image)[0, 0].backward()
    assert image.grad is not None
    assert bool((image.grad.abs().amax((0, 2, 3)) > 0).all())


def test_wrong_names_and_widths_are_errors() -> None:
    with pytest.raises(ValueError, match=r'no family "resnext"\. There are cspnet'):
        make_student("resnext", nn.Identity(), 3, 10, width=8)
    with pytest.raises(ValueError, match=r"width 20 is no multiple of 8\. Use 16"):
        make_student("vgg", nn.Identity(), 3, 10, width=20)


@pytest.mark.parametrize("name", cifar10.SPEC.students)
def test_photograph_students_have_a_quarter_of_the_parameters_and_half_of_the_work(name: str) -> None:
    spec: ModelSpec = cifar10.SPEC
    student, teacher = (
        TorchModel(make().eval(), spec.signature) for make in (spec.students[name], spec.factory)
    )
    pictures = Split({"image": torch.randint(0, 256, (2, 32, 32, 3), dtype=torch.uint8).numpy()})
    assert predict(student, pictures)[0].shape == (2, 10)
    assert parameters_of(student.module) * 4 < parameters_of(teacher.module)
    assert multiply_accumulates(student, pictures) * 2 < multiply_accumulates(teacher, pictures)
