from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compression.base import AnyPass, BrokenPromiseError, PassContext, PassRefusedError
from compression.inference import infer
from compression.inspection import count, flops, parameters, quantized_operators, weights_by_dtype
from compression.model import OnnxModel
from compression.precision import Float16, Float16Settings
from compression.quantization import DynamicInt8, DynamicInt8Settings, StaticInt8, StaticInt8Settings
from tests.compression.small_digits import accuracy

DYNAMIC = DynamicInt8(DynamicInt8Settings())
STATIC = StaticInt8(StaticInt8Settings())
BOTH = pytest.mark.parametrize("each", [DYNAMIC, STATIC], ids=lambda each: str(each.name))


@BOTH
def test_weights_become_integers_and_answers_stay(
    each: AnyPass, artifact: OnnxModel, context: PassContext
) -> None:
    each.requires(artifact, context)
    small = each.run(artifact, context)
    facts = each.ensures(artifact, small, context)
    each.holds(facts, small)
    assert facts["int8_weights"] == weights_by_dtype(small)["int8"] > 0
    assert facts["bytes_after"] < facts["bytes_before"]
    assert accuracy(small, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.02


@BOTH
def test_any_batch_runs(each: AnyPass, artifact: OnnxModel, context: PassContext) -> None:
    small = each.run(artifact, context)
    for rows in (1, 9):
        assert infer(small, context.splits.test, rows)[0].shape == (rows, 10)


@BOTH
def test_it_is_counted_as_the_same_model(each: AnyPass, artifact: OnnxModel, context: PassContext) -> None:
    small = each.run(artifact, context)
    assert parameters(small) == parameters(artifact)
    assert flops(small) == flops(artifact)
    assert 0.9 * parameters(artifact) < count(small).nonzero_parameters <= parameters(artifact)


@BOTH
def test_it_is_refused_on_what_is_already_small(
    each: AnyPass, artifact: OnnxModel, context: PassContext
) -> None:
    for done in (DYNAMIC.run(artifact, context), STATIC.run(artifact, context)):
        with pytest.raises(PassRefusedError, match="quantized already"):
            each.requires(done, context)
    with pytest.raises(PassRefusedError, match="float16"):
        each.requires(Float16(Float16Settings()).run(artifact, context), context)


@BOTH
def test_doing_nothing_breaks_the_promise(each: AnyPass, artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(BrokenPromiseError, match="no operator computes on integers"):
        each.ensures(artifact, artifact, context)
    facts = each.ensures(artifact, each.run(artifact, context), context)
    with pytest.raises(BrokenPromiseError, match="still quantized"):
        each.holds(facts, artifact)


@BOTH
def test_it_says_nothing(
    each: AnyPass, artifact: OnnxModel, context: PassContext, capfd: pytest.CaptureFixture[str]
) -> None:
    each.run(artifact, context)
    assert capfd.readouterr() == ("", "")


def test_dynamic_leaves_convolutions_alone(artifact: OnnxModel, context: PassContext) -> None:
    small = DYNAMIC.run(artifact, context)
    assert quantized_operators(small) == {"MatMulInteger": 2}
    assert sum(node.op_type == "Conv" for node in small.proto.graph.node) == 3


def test_static_quantizes_everything_heavy_with_a_scale_per_channel(
    artifact: OnnxModel, context: PassContext
) -> None:
    small = STATIC.run(artifact, context)
    assert quantized_operators(small) == {"Conv": 3, "Gemm": 2}
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.proto.graph.initializer}
    scales = [
        stored[node.input[1]].size
        for node in small.proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
        if stored[node.input[0]].dtype == np.int8
    ]
    assert sorted(scales) == [10, 16, 32, 32, 64]


def test_static_activations_are_unsigned(artifact: OnnxModel, context: PassContext) -> None:
    small = STATIC.run(artifact, context)
    stored = {tensor.name: tensor.data_type for tensor in small.proto.graph.initializer}
    zeros = {stored[node.input[2]] for node in small.proto.graph.node if node.op_type == "QuantizeLinear"}
    assert zeros == {onnx.TensorProto.UINT8}


@pytest.mark.parametrize("calibration", ["entropy", "percentile"])
def test_other_calibrations_answer_well_and_say_nothing(
    calibration: str, artifact: OnnxModel, context: PassContext, capfd: pytest.CaptureFixture[str]
) -> None:
    settings = StaticInt8Settings.model_validate({"calibration": calibration, "rows": 70})
    small = StaticInt8(settings).run(artifact, context)
    assert capfd.readouterr() == ("", "")
    assert accuracy(small, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.03


def test_excluded_operators_and_nodes_stay_float(artifact: OnnxModel, context: PassContext) -> None:
    no_gemm = StaticInt8(StaticInt8Settings(exclude_operators=("Gemm",))).run(artifact, context)
    assert quantized_operators(no_gemm) == {"Conv": 3}
    first = next(node.name for node in artifact.proto.graph.node if node.op_type == "Conv")
    no_first = StaticInt8(StaticInt8Settings(exclude_nodes=(first,)))
    no_first.requires(artifact, context)
    assert quantized_operators(no_first.run(artifact, context))["Conv"] == 2


def test_excluding_a_node_that_is_not_there_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="there is no node nonsense"):
        StaticInt8(StaticInt8Settings(exclude_nodes=("nonsense",))).requires(artifact, context)
