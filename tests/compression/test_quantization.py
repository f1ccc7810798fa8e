from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compression import importing
from compression.base import AnyPass, BrokenPromiseError, PassContext, PassRefusedError
from compression.data import Split, Splits, divided
from compression.export import export
from compression.inference import infer
from compression.inspection import count, parameters, quantized_operators, weights_by_dtype
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.pipeline import RecipeRefusedError, compress
from compression.precision import Float16, Float16Settings
from compression.quantization import DynamicInt8, DynamicInt8Settings, StaticInt8, StaticInt8Settings
from compression.recipe import Recipe, step
from compression.registry import make_pass
from compression.signature import Signature, TensorSpec
from compression.training import Training
from tests.compression.foreign_graphs import LAST, WEIGHT, WIDE, X, foreign, looping, model, node, value
from tests.compression.small_digits import accuracy, silent

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


@pytest.mark.parametrize(
    "settings",
    [
        {"calibration": "entropy"},
        {"calibration": "entropy", "symmetric": True},
        {"calibration": "percentile", "percentile": 99.9},
        {"symmetric": True},
        {"symmetric": True, "activations": "int8"},
        {"per_channel": False},
    ],
    ids=str,
)
def test_every_setting_answers_well_and_says_nothing(
    settings: dict[str, Any], artifact: OnnxModel, context: PassContext, capfd: pytest.CaptureFixture[str]
) -> None:
    small = StaticInt8(StaticInt8Settings.model_validate({"rows": 70, **settings})).run(artifact, context)
    assert capfd.readouterr() == ("", "")
    assert quantized_operators(small) == {"Conv": 3, "Gemm": 2}
    assert accuracy(small, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.03


def test_symmetric_activations_have_their_zero_in_the_middle(
    artifact: OnnxModel, context: PassContext
) -> None:
    for activations, middle in (("uint8", 128), ("int8", 0)):
        settings = StaticInt8Settings.model_validate({"symmetric": True, "activations": activations})
        small = StaticInt8(settings).run(artifact, context)
        stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.proto.graph.initializer}
        points = [
            stored[node.input[2]] for node in small.proto.graph.node if node.op_type == "QuantizeLinear"
        ]
        assert {point.dtype.name for point in points} == {activations}
        assert {int(point) for point in points} == {middle}


def test_what_the_model_answers_is_not_rounded(artifact: OnnxModel, context: PassContext) -> None:
    small = STATIC.run(artifact, context)
    makers = {name: node.op_type for node in small.proto.graph.node for name in node.output}
    assert makers["logits"] == "Gemm"


def test_excluded_operators_and_nodes_stay_float(artifact: OnnxModel, context: PassContext) -> None:
    no_gemm = StaticInt8(StaticInt8Settings(exclude_operators=("Gemm",))).run(artifact, context)
    assert quantized_operators(no_gemm) == {"Conv": 3}
    first = next(node.name for node in artifact.proto.graph.node if node.op_type == "Conv")
    no_first = StaticInt8(StaticInt8Settings(exclude_nodes=(first,)))
    no_first.requires(artifact, context)
    assert quantized_operators(no_first.run(artifact, context))["Conv"] == 2


def test_pixels_are_normalized_in_float_and_residual_sums_are_rounded(
    residual: tuple[TorchModel, PassContext],
) -> None:
    model, context = residual
    graph = export(model)
    small = STATIC.run(graph, context)
    facts = STATIC.ensures(graph, small, context)
    assert facts["quantized_operators"] == {"Conv": 3, "Gemm": 1}
    makers = {name: node for node in small.proto.graph.node for name in node.output}
    (added,) = (node for node in small.proto.graph.node if node.op_type == "Add")
    assert {makers[name].op_type for name in added.input} == {"DequantizeLinear"}
    (divided,) = (node for node in small.proto.graph.node if node.op_type == "Div")
    assert makers[divided.input[0]].op_type == "Sub"
    assert accuracy(small, context.splits.test) >= accuracy(graph, context.splits.test) - 0.02


def normalized(opset: int) -> OnnxModel:
    """A convolution with its normalization beside it, as converters wrote them years ago."""
    draw = np.random.default_rng(0)
    stored = {
        "w": draw.normal(size=(64, 3, 3, 3)),
        "gain": draw.uniform(0.5, 2, 64),
        "shift": draw.normal(size=64),
        "mean": draw.normal(size=64),
        "variance": draw.uniform(0.5, 2, 64),
    }
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["raw"], name="conv", pads=[1, 1, 1, 1]),
        helper.make_node(
            "BatchNormalization", ["raw", "gain", "shift", "mean", "variance"], ["even"], name="norm"
        ),
        helper.make_node("Relu", ["even"], ["y"]),
    ]
    ends = Signature(
        (TensorSpec("x", "float32", ("batch", 3, 8, 8)),), (TensorSpec("y", "float32", ("batch", 64, 8, 8)),)
    )
    infos = [
        helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, list(spec.shape))
        for spec in (*ends.inputs, *ends.outputs)
    ]
    tensors = [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "normalized", infos[:1], infos[1:], tensors),
        opset_imports=[helper.make_opsetid("", opset)],
        ir_version=8,
    )
    return OnnxModel(proto, ends)


def noise(context: PassContext) -> PassContext:
    draw = np.random.default_rng(1)
    parts = {
        name: Split({"x": draw.normal(size=(8, 3, 8, 8)).astype(np.float32)})
        for name, _ in context.splits.items()
    }
    return replace(context, splits=Splits(**parts))


@pytest.mark.parametrize("opset", [11, 12, 17])
def test_graphs_of_any_age_get_a_scale_per_channel(opset: int, context: PassContext) -> None:
    model, context = normalized(opset), noise(context)
    small = STATIC.run(model, context)
    STATIC.ensures(model, small, context)
    onnx.checker.check_model(small.proto)
    right, close = (infer(each, context.splits.test, 8)[0] for each in (model, small))
    assert np.linalg.norm(close - right) < 0.02 * np.linalg.norm(right)


def test_a_node_that_is_folded_away_cannot_be_excluded(context: PassContext) -> None:
    only = StaticInt8(StaticInt8Settings(exclude_nodes=("norm",)))
    only.requires(normalized(17), context)
    with pytest.raises(PassRefusedError, match="folded into its neighbours"):
        only.run(normalized(17), noise(context))


def test_excluding_a_node_that_is_not_there_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="there is no node nonsense"):
        StaticInt8(StaticInt8Settings(exclude_nodes=("nonsense",))).requires(artifact, context)


@pytest.mark.parametrize("name", ["int8-static", "int8-accuracy-control", "int8-smoothquant"])
def test_nothing_to_quantize_is_refused_before_anything_is_tried(name: str) -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", WIDE])]
    graph, context = foreign(model([node("Relu", ["x"], ["r"]), node("Add", ["r", "x"], ["y"])], *ends))
    with pytest.raises(PassRefusedError, match="no convolution or matrix product with weights"):
        make_pass(step(name)).requires(graph, context)


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "int4-weights", "fp16"])
def test_a_model_too_small_to_gain_is_skipped_and_not_failed(name: str) -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", 2])]
    graph, context = foreign(model([node("MatMul", ["x", "w"], ["y"])], *ends, w=WEIGHT[:, :2]))
    with pytest.raises(RecipeRefusedError, match=r"would grow from \d+ to \d+ bytes.*so small a model"):
        compress(Recipe(name="tiny", steps=(step(name),)), graph, context)


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "int4-weights"])
def test_what_only_the_body_of_a_loop_reads_stays_stored(name: str) -> None:
    graph, context = foreign(looping().proto)
    artifact = compress(Recipe(name="looped", steps=(step(name),)), graph, context).artifact
    rows = context.splits.validation
    right, close = (infer(each, rows, len(rows))[0] for each in (graph, artifact))
    assert np.linalg.norm(close - right) < 0.2 * np.linalg.norm(right)


@pytest.mark.parametrize("is_read_outside", [False, True])
def test_what_a_branch_reads_from_outside_is_still_computed(is_read_outside: bool) -> None:
    branches = {
        name: helper.make_graph(
            [node("MatMul", ["h", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [value(f"{name}_y", ["N", LAST.shape[1]])],
            [numpy_helper.from_array(weight, f"{name}_w")],
        )
        for name, weight in (("then_branch", LAST), ("else_branch", -LAST))
    }
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("ReduceMean", ["h" if is_read_outside else "x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["is_positive"]),
        node("If", ["is_positive"], ["y"], **branches),
    ]
    ends = [value("x", ["N", WIDE])], [value("y", ["N", LAST.shape[1]])]
    proto = importing.normalized(model(nodes, *ends, w=WEIGHT, zero=np.zeros((), np.float32)))
    inputs, outputs = (
        (TensorSpec(end.name, "float32", ("N", end.type.tensor_type.shape.dim[1].dim_value)),)
        for (end,) in ends
    )
    graph = OnnxModel(proto, Signature(inputs, outputs))
    rows = Split({"x": X})
    context = PassContext(divided(rows), None, {}, Training(), 0, silent)
    artifact = compress(Recipe(name="branched", steps=(step("int8-static"),)), graph, context).artifact
    right, close = (infer(each, rows, len(rows))[0] for each in (graph, artifact))
    assert np.linalg.norm(close - right) < 0.05 * np.linalg.norm(right)
