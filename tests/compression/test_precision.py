from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.export import export
from compression.inference import infer
from compression.inspection import weights_by_dtype
from compression.model import OnnxModel, TorchModel
from compression.precision import Float16, Float16Settings
from compression.training import seeded
from tests.compression.foreign_graphs import HIDDEN, WEIGHT, WIDE, foreign, model, node, value
from tests.compression.small_digits import DIGITS, accuracy

FP16 = Float16(Float16Settings())


def with_weight(model: OnnxModel, value: float) -> OnnxModel:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    weight = next(tensor for tensor in proto.graph.initializer if len(tensor.dims) == 4)
    array = numpy_helper.to_array(weight).copy()
    array.flat[0] = value
    weight.CopyFrom(numpy_helper.from_array(array, weight.name))
    return OnnxModel(proto, model.signature)


def test_weights_are_half_as_large_and_answers_stay(artifact: OnnxModel, context: PassContext) -> None:
    before = artifact.proto.SerializeToString(deterministic=True)
    half = FP16.run(artifact, context)
    facts = FP16.ensures(artifact, half, context)
    assert artifact.proto.SerializeToString(deterministic=True) == before
    assert set(weights_by_dtype(half)) == {"float16"}
    assert facts["bytes_after"] < 0.6 * facts["bytes_before"]
    assert infer(half, context.splits.test, 1)[0].dtype == np.float32
    assert accuracy(half, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.01
    onnx.checker.check_model(half.proto, full_check=True)


def test_a_weight_beyond_its_range_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="holds 1e\\+06, beyond the 65504"):
        FP16.requires(with_weight(artifact, 1e6), context)


def test_a_weight_too_small_for_it_is_no_trouble(artifact: OnnxModel, context: PassContext) -> None:
    tiny = with_weight(artifact, 1e-9)
    FP16.ensures(tiny, FP16.run(tiny, context), context)


def test_doing_nothing_breaks_the_promise(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(BrokenPromiseError, match="no weight became float16"):
        FP16.ensures(artifact, artifact, context)


def test_keeping_every_operator_is_found_out(artifact: OnnxModel, context: PassContext) -> None:
    operators = tuple({node.op_type for node in artifact.proto.graph.node})
    timid = Float16(Float16Settings(keep_float32=operators))
    with pytest.raises(BrokenPromiseError):
        timid.ensures(artifact, timid.run(artifact, context), context)


def test_it_is_not_done_twice(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="no float32 weights"):
        FP16.requires(FP16.run(artifact, context), context)


def test_undoing_it_later_is_found_out(artifact: OnnxModel, context: PassContext) -> None:
    facts = FP16.ensures(artifact, FP16.run(artifact, context), context)
    with pytest.raises(BrokenPromiseError, match="still float16"):
        FP16.holds(facts, artifact)


class Amplified(nn.Module):
    """Values far beyond float16's range between two layers."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        large = torch.relu(self.first(image)) * 6e4
        return self.second(torch.sqrt(large * large + 1.0) / 6e4)  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def amplified() -> OnnxModel:
    with seeded(0):
        return export(TorchModel(Amplified().eval(), DIGITS))


def test_operators_that_overflow_return_to_float32(amplified: OnnxModel, context: PassContext) -> None:
    FP16.requires(amplified, context)
    half = FP16.run(amplified, context)
    facts = FP16.ensures(amplified, half, context)
    types = {node.name: node.op_type for node in amplified.proto.graph.node}
    returned = {types[name] for name in facts["returned_to_float32"]}
    assert {"Mul", "Sqrt"} <= returned
    assert "Gemm" not in returned
    assert facts["largest_error"] < 0.05
    assert set(weights_by_dtype(half)) >= {"float16"}
    onnx.checker.check_model(half.proto, full_check=True)


def test_what_cannot_be_exact_enough_fails_and_says_so(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(BrokenPromiseError, match="Raise tolerance or max_drop, or leave fp16 out"):
        Float16(Float16Settings(tolerance=1e-9)).run(artifact, context)


def test_the_models_own_metric_can_be_the_guard(artifact: OnnxModel, context: PassContext) -> None:
    guarded = Float16(Float16Settings(max_drop=0.01))
    guarded.requires(artifact, context)
    guarded.ensures(artifact, guarded.run(artifact, context), context)
    with pytest.raises(PassRefusedError, match="max_drop needs a metric"):
        guarded.requires(artifact, replace(context, quality=None))


def test_operators_are_kept_by_name(artifact: OnnxModel, context: PassContext) -> None:
    convolution = next(node.name for node in artifact.proto.graph.node if node.op_type == "Conv")
    half = Float16(Float16Settings(keep_nodes=(convolution,)))
    assert weights_by_dtype(half.run(artifact, context)).keys() == {"float16", "float32"}
    with pytest.raises(PassRefusedError, match="there is no node conv9"):
        Float16(Float16Settings(keep_nodes=("conv9",))).requires(artifact, context)


def test_sequences_of_tensors_are_refused() -> None:
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("SplitToSequence", ["h"], ["parts"], axis=1),
        node("ConcatFromSequence", ["parts"], ["y"], axis=1),
    ]
    graph, context = foreign(model(nodes, [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])], w=WEIGHT))
    with pytest.raises(PassRefusedError, match="SplitToSequence, ConcatFromSequence pass sequences"):
        FP16.requires(graph, context)


@pytest.mark.parametrize("between", [[], [node("Identity", ["t"], ["u"])]], ids=["directly", "Identity"])
@pytest.mark.parametrize("perm", [[1, 0, 2], [1, 2, 0, 3]], ids=str)
def test_a_transposition_that_onnxruntime_dies_of_in_float16_stays_float32(
    perm: list[int], between: list[onnx.NodeProto]
) -> None:
    """Where the processor is an x86: opening the graph would end this process."""
    ones = [1] * (len(perm) - 2)
    nodes = [
        node("Reshape", ["x", "shape"], ["r"]),
        node("Transpose", ["r"], ["t"], name="fatal", perm=perm),
        *between,
        node("MatMul", ["u" if between else "t", "w"], ["p"]),
        node("Transpose", ["p"], ["y"], perm=np.argsort(perm).tolist()),
    ]
    ends = [value("x", ["N", WIDE])], [value("y", ["N", *ones, HIDDEN])]
    graph, context = foreign(model(nodes, *ends, shape=np.array([0, *ones, WIDE]), w=WEIGHT))
    half = FP16.run(graph, context)
    assert FP16.ensures(graph, half, context)["returned_to_float32"] == ["fatal"]
    assert weights_by_dtype(half) == {"float16": WEIGHT.size}
