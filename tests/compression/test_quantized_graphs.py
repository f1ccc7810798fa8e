"""What quantization makes of operators that stand in graphs in ways of their own."""

from __future__ import annotations

import numpy as np
import onnx
import pytest

from compression.base import BrokenPromiseError, PassRefusedError
from compression.data import Split
from compression.inference import infer
from compression.inspection import quantized_operators, weights_by_dtype
from compression.model import OnnxModel
from compression.pipeline import compress
from compression.recipe import Recipe, step
from compression.registry import make_pass
from compression.sqnr import decibels
from tests.compression.foreign_graphs import HIDDEN, WEIGHT, WIDE, foreign, input_returned, model, node, value

# Rows that differ in size, so that a scale for each is not one for each column.
UNEVEN = ((WEIGHT.T @ WEIGHT) * np.geomspace(0.1, 10, HIDDEN)[:, None] / WIDE).astype(np.float32)


def agreement(right: OnnxModel, close: OnnxModel, rows: Split) -> float:
    """How much louder the answer is than its error, in decibels."""
    pairs = zip(*(infer(each, rows, len(rows)) for each in (right, close)), strict=True)
    return min(decibels(given, exact) for exact, given in pairs)


BOUNDS = {"low": np.array(-1.0, np.float32), "high": np.array(2.0, np.float32)}


@pytest.mark.parametrize(
    "activations",
    [
        [node("Relu", ["h"], ["r"])],
        [node("Clip", ["h", "low", "high"], ["r"])],
        [node("Relu", ["h"], ["s"]), node("Clip", ["s", "", "high"], ["r"])],
    ],
    ids=lambda nodes: " ".join(each.op_type for each in nodes),
)
@pytest.mark.parametrize("is_last", [True, False])
def test_an_activation_that_no_rounding_follows_is_still_applied(
    activations: list[onnx.NodeProto], is_last: bool
) -> None:
    end = node("Identity" if is_last else "Tanh", ["r"], ["y"])
    ends = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])]
    nodes = [node("MatMul", ["x", "w"], ["h"]), *activations, end]
    graph, context = foreign(model(nodes, *ends, w=WEIGHT, **BOUNDS))
    artifact = compress(Recipe(name="active", steps=(step("int8-static"),)), graph, context).artifact
    assert quantized_operators(artifact) == {"MatMul": 1}
    assert agreement(graph, artifact, context.splits.validation) > 20


def test_what_answers_something_else_breaks_the_promise() -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])]
    graph, context = foreign(model([node("MatMul", ["x", "w"], ["y"])], *ends, w=WEIGHT))
    static = make_pass(step("int8-static"))
    other, _ = foreign(model([node("MatMul", ["x", "w"], ["y"])], *ends, w=-WEIGHT))
    static.ensures(graph, static.run(graph, context), context)
    with pytest.raises(BrokenPromiseError, match='output "y" has nothing to do with the float graph'):
        static.ensures(graph, static.run(other, context), context)


def test_a_clip_that_lets_no_zero_through_still_clips() -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", WIDE])]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Clip", ["h", "one"], ["r"]),
        node("MatMul", ["r", "v"], ["y"]),
    ]
    stored = {"w": WEIGHT, "v": WEIGHT.T.copy(), "one": np.array(1.0, np.float32)}
    graph, context = foreign(model(nodes, *ends, **stored))
    artifact = compress(Recipe(name="clipped", steps=(step("int8-static"),)), graph, context).artifact
    assert quantized_operators(artifact) == {"MatMul": 2}
    assert agreement(graph, artifact, context.splits.validation) > 20


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic"])
def test_factors_of_a_product_and_its_bias_count(name: str) -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN]), value("z", ["N", HIDDEN])]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Gemm", ["h", "square", "b"], ["y"], alpha=0.5, beta=4.0),
        node("Gemm", ["h", "square", "b"], ["z"], alpha=2.0, beta=0.0),
    ]
    bias = np.linspace(-30, 30, HIDDEN).astype(np.float32)
    graph, context = foreign(model(nodes, *ends, w=WEIGHT, square=WEIGHT.T @ WEIGHT, b=bias))
    artifact = compress(Recipe(name="scaled", steps=(step(name),)), graph, context).artifact
    assert sum(quantized_operators(artifact).values()) == 3
    assert agreement(graph, artifact, context.splits.validation) > 20


@pytest.mark.parametrize("first", ["Gemm", "MatMul"])
def test_a_weight_that_is_also_read_transposed_has_one_scale(first: str) -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node(first, ["h", "shared"], ["a"]),
        node("Gemm", ["a", "shared"], ["y"], transB=1),
    ]
    graph, context = foreign(model(nodes, *ends, w=WEIGHT, shared=UNEVEN))
    artifact = compress(Recipe(name="shared", steps=(step("int8-static"),)), graph, context).artifact
    assert weights_by_dtype(artifact) == {"int8": WEIGHT.size + UNEVEN.size}
    assert agreement(graph, artifact, context.splits.validation) > 15


def test_an_embedding_that_is_also_the_last_layer_is_stored_once() -> None:
    tokens = 40
    ends = [value("x", ["N", WIDE])], [value("y", ["N", tokens])]
    nodes = [
        node("ArgMax", ["x"], ["token"], axis=1, keepdims=0),
        node("Gather", ["shared", "token"], ["e"]),
        node("Tanh", ["e"], ["a"]),
        node("Gemm", ["a", "shared", "bias"], ["y"], transB=1),
    ]
    stored = {"shared": WEIGHT.T[:tokens].repeat(8, axis=1), "bias": np.ones(tokens, np.float32)}
    graph, context = foreign(model(nodes, *ends, **stored))
    # Of seven bits: onnxruntime cannot keep sums of shared weights from overflowing without VNNI.
    recipe = Recipe(name="tied", steps=(step("int8-static", reduce_range=True),))
    artifact = compress(recipe, graph, context).artifact
    assert weights_by_dtype(artifact)["int8"] == stored["shared"].size
    assert agreement(graph, artifact, context.splits.validation) > 20


def test_transposed_convolutions_in_groups_have_one_scale() -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", 32, 4, 4])]
    nodes = [
        node("MatMul", ["x", "w"], ["h"]),
        node("Reshape", ["h", "shape"], ["image"]),
        node("ConvTranspose", ["image", "kernel", "bias"], ["y"], group=8, strides=[2, 2]),
    ]
    stored = {
        "w": WEIGHT,
        "shape": np.array([-1, 32, 2, 2]),
        "kernel": WEIGHT.reshape(32, -1)[:, :16].reshape(32, 4, 2, 2),
        "bias": np.ones(32, np.float32),
    }
    graph, context = foreign(model(nodes, *ends, **stored))
    artifact = compress(Recipe(name="grouped", steps=(step("int8-static"),)), graph, context).artifact
    assert quantized_operators(artifact) == {"ConvTranspose": 1, "MatMul": 1}
    assert agreement(graph, artifact, context.splits.validation) > 20


def test_a_stack_of_matrices_has_one_scale() -> None:
    ends = [value("x", ["N", WIDE])], [value("y", ["N", 8, 1, WIDE])]
    nodes = [node("Reshape", ["x", "shape"], ["rows"]), node("MatMul", ["rows", "stack"], ["y"])]
    stored = {"shape": np.array([-1, 1, 1, WIDE]), "stack": WEIGHT.T.reshape(8, WIDE, WIDE).copy()}
    graph, context = foreign(model(nodes, *ends, **stored))
    artifact = compress(Recipe(name="stacked", steps=(step("int8-static"),)), graph, context).artifact
    assert quantized_operators(artifact) == {"MatMul": 1}
    assert agreement(graph, artifact, context.splits.validation) > 20


ENDS = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])]
LAYERS = node("MatMul", ["x", "w"], ["h"]), node("Gemm", ["g", "square", "bias"], ["y"])
MIDDLES = {
    "of another domain": [node("Gelu", ["h"], ["g"], domain="com.microsoft")],
    "in double precision": [
        node("Cast", ["h"], ["d"], to=onnx.TensorProto.DOUBLE),
        node("Softmax", ["d"], ["p"]),
        node("Cast", ["p"], ["g"], to=onnx.TensorProto.FLOAT),
    ],
}


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "int8-accuracy-control"])
@pytest.mark.parametrize("middle", MIDDLES.values(), ids=MIDDLES)
def test_what_lies_behind_an_operator_that_stays_float_is_quantized(
    middle: list[onnx.NodeProto], name: str
) -> None:
    nodes = [LAYERS[0], *middle, LAYERS[1]]
    stored = {"w": WEIGHT, "square": WEIGHT.T @ WEIGHT, "bias": np.ones(HIDDEN, np.float32)}
    graph, context = foreign(model(nodes, *ENDS, domains=["com.microsoft"], **stored))
    lenient = {"max_drop": 0.5} if name == "int8-accuracy-control" else {}
    recipe = Recipe(name="stopped", steps=(step(name, **lenient),))
    artifact = compress(recipe, graph, context).artifact
    assert sum(quantized_operators(artifact).values()) == 2
    assert agreement(graph, artifact, context.splits.validation) > 20


@pytest.mark.parametrize(
    ("domain", "kind"), [("com.microsoft.nchwc", "Conv"), ("com.microsoft", "FusedMatMul")]
)
def test_what_onnxruntime_has_optimized_is_skipped(domain: str, kind: str) -> None:
    graph, context = foreign(model([node("MatMul", ["x", "w"], ["y"])], *ENDS, w=WEIGHT))
    graph.proto.graph.node[0].op_type, graph.proto.graph.node[0].domain = kind, domain
    for name in ("int8-static", "int8-dynamic", "int8-accuracy-control"):
        with pytest.raises(PassRefusedError, match=rf"\(1 {kind}\).*the file that it was optimized from"):
            make_pass(step(name)).requires(graph, context)
    if kind == "Conv":
        with pytest.raises(PassRefusedError, match="the file that it was optimized from"):
            make_pass(step("fp16")).requires(graph, context)


@pytest.mark.parametrize("name", ["int8-static", "int8-dynamic", "fp16"])
def test_an_output_that_was_an_input_is_answered(name: str) -> None:
    graph, context = foreign(input_returned().proto)
    artifact = compress(Recipe(name="returned", steps=(step(name),)), graph, context).artifact
    assert agreement(graph, artifact, context.splits.validation) > 15
