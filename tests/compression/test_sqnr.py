"""Noise and traffic of graphs small enough to count by hand."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.base import AnyPass, PassContext
from compression.codebook import Codes, store_as_codes
from compression.model import OnnxModel, TorchModel
from compression.pipeline import compress
from compression.probing import ProbeError, constants, probe
from compression.quantization import DynamicInt8, DynamicInt8Settings, StaticInt8, StaticInt8Settings
from compression.recipe import Recipe, Step, step
from compression.signature import Array, Signature, TensorSpec
from compression.sqnr import EXACT_DB, _like, decibels, sqnr
from compression.traffic import traffic

WIDE, HIDDEN, CLASSES = 8, 16, 4
SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", WIDE)),), (TensorSpec("y", "float32", ("batch", CLASSES)),)
)
GENERATOR = np.random.default_rng(0)
FIRST = GENERATOR.normal(size=(WIDE, HIDDEN)).astype(np.float32)
LAST = GENERATOR.normal(size=(HIDDEN, CLASSES)).astype(np.float32)
ROWS = {"x": GENERATOR.normal(size=(32, WIDE)).astype(np.float32)}
ROW = {"x": ROWS["x"][:1]}


def graph(first: Array = FIRST, last: Array = LAST) -> OnnxModel:
    nodes = [
        helper.make_node("MatMul", ["x", "first"], ["h"], "one"),
        helper.make_node("Relu", ["h"], ["r"]),
        helper.make_node("MatMul", ["r", "last"], ["y"], "two"),
    ]
    ends = [
        helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])
        for name, width in (("x", WIDE), ("y", CLASSES))
    ]
    tensors = [numpy_helper.from_array(first, "first"), numpy_helper.from_array(last, "last")]
    made = helper.make_graph(nodes, "tiny", ends[:1], ends[1:], tensors)
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    return OnnxModel(proto, SIGNATURE)


def quantized() -> OnnxModel:
    """The first weight in int8, and the activation between the two layers."""
    model = graph()
    scale = np.abs(FIRST).max(axis=0) / 127
    stored = {
        "first_quantized": np.rint(FIRST / scale).astype(np.int8),
        "first_scale": scale,
        "r_scale": np.float32(0.05),
        "r_zero_point": np.uint8(0),
    }
    proto = model.proto
    del proto.graph.initializer[0]
    proto.graph.initializer.extend(numpy_helper.from_array(np.asarray(a), n) for n, a in stored.items())
    one, _, two = proto.graph.node
    read = helper.make_node("DequantizeLinear", ["first_quantized", "first_scale"], ["first_read"], axis=1)
    one = helper.make_node("MatMul", ["x", "first_read"], ["r"], "one")  # the rounding is the ReLU
    between = [
        helper.make_node("QuantizeLinear", ["r", "r_scale", "r_zero_point"], ["r_q"]),
        helper.make_node("DequantizeLinear", ["r_q", "r_scale", "r_zero_point"], ["r_read"]),
    ]
    two = helper.make_node("MatMul", ["r_read", "last"], ["y"], "two")
    del proto.graph.node[:]
    proto.graph.node.extend([read, one, *between, two])
    onnx.checker.check_model(proto)
    return model


def test_decibels_are_ten_times_the_logarithm_of_the_ratio_of_powers() -> None:
    signal = np.array([3.0, 4.0])
    assert decibels(signal * 1.1, signal) == pytest.approx(20.0)
    assert decibels(signal, signal) == EXACT_DB
    assert decibels(signal, np.zeros(2)) == -EXACT_DB


def test_a_graph_is_exactly_itself() -> None:
    found = sqnr(graph(), graph(), ROWS)
    assert found.outputs == {"y": EXACT_DB}
    assert {layer.name for layer in found.layers} == {"first", "last"}
    assert {layer.worst_db for layer in found.layers} == {EXACT_DB}


def test_the_worst_layer_comes_first() -> None:
    spoiled = graph(last=LAST * 1.1)
    found = sqnr(spoiled, graph(), ROWS)
    assert [layer.name for layer in found.layers] == ["last", "first"]
    assert found.layers[0].weight_db == pytest.approx(20.0, abs=0.01)
    assert found.outputs["y"] == pytest.approx(20.0, abs=0.01)
    assert found.layers[1].activation_db == EXACT_DB


def test_int8_weights_and_activations_are_read_as_the_next_operator_reads_them() -> None:
    found = {layer.name: layer for layer in sqnr(quantized(), graph(), ROWS).layers}
    assert 35 < found["first"].weight_db < 60
    assert found["first"].activation_db is not None
    assert 25 < found["first"].activation_db < 60  # a MatMul that lost its ReLU would be near 0
    assert found["last"].weight_db == EXACT_DB


@pytest.mark.parametrize(
    "each", [DynamicInt8(DynamicInt8Settings()), StaticInt8(StaticInt8Settings())], ids=lambda each: each.name
)
def test_what_the_passes_make_of_a_real_graph_corresponds_layer_by_layer(
    each: AnyPass, artifact: OnnxModel, context: PassContext
) -> None:
    rows = context.splits.calibration.take(slice(0, 32)).inputs
    found = sqnr(each.run(artifact, context), artifact, rows)
    weights = {layer.name for layer in sqnr(artifact, artifact, rows).layers}
    assert {layer.name for layer in found.layers} == weights
    assert len(weights) == 5
    for layer in found.layers:
        assert layer.weight_db > 25
        assert layer.activation_db is not None
        assert layer.activation_db > 15
    assert found.outputs["logits"] > 20


@pytest.mark.parametrize(
    "steps",
    [
        [step("int4-weights")],
        [step("int8-qat", epochs=1)],
        [step("fp8-weights", epochs=1)],
        [step("cluster", clusters=8, epochs=1), step("int8-static")],
        [step("prune-unstructured", epochs=1), step("int8-qat", epochs=1)],
    ],
    ids=lambda steps: " ".join(each.pass_name for each in steps),
)
def test_layers_correspond_behind_passes_that_write_the_graph_anew(
    steps: list[Step], reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    rows = context.splits.calibration.take(slice(0, 32)).inputs
    small = compress(Recipe(name="tried", steps=tuple(steps)), reference, context).artifact
    layers = sqnr(small, artifact, rows).layers
    assert {layer.name for layer in layers} == {layer.name for layer in sqnr(artifact, artifact, rows).layers}
    assert all(0 < layer.weight_db <= EXACT_DB for layer in layers)


def test_codes_are_expanded_before_they_are_compared() -> None:
    values = np.sort(np.unique(np.round(FIRST, 1)))
    codes = Codes(np.abs(FIRST[..., None] - values).argmin(axis=-1), values, bits=8)
    found = {
        layer.name: layer for layer in sqnr(store_as_codes(graph(), {"first": codes}), graph(), ROWS).layers
    }
    assert found["first"].weight_db == pytest.approx(decibels(codes.weight(), FIRST))


def test_a_square_weight_is_compared_as_it_lies_nearer() -> None:
    square = GENERATOR.normal(size=(8, 8)).astype(np.float32)
    for found in (square + 1e-3, (square + 1e-3).T):
        assert np.abs(_like(found, square) - square).max() < 2e-3


def test_layers_of_other_widths_do_not_correspond() -> None:
    narrow = graph(FIRST[:, :8], LAST[:8])
    found = sqnr(narrow, graph(), ROWS)
    assert found.layers == []
    assert found.outputs["y"] < 20


def test_traffic_counts_every_tensor_once_written_and_once_per_reader() -> None:
    moved = traffic(graph(), ROW)
    assert moved.weight_bytes == 4 * (WIDE * HIDDEN + HIDDEN * CLASSES)
    # x is read; h and r are written and read; y is written.
    assert moved.activation_bytes == 4 * (WIDE + 4 * HIDDEN + CLASSES)
    assert moved.bytes == moved.weight_bytes + moved.activation_bytes


def test_quantized_tensors_move_as_bytes_and_their_encoding_not_at_all() -> None:
    moved = traffic(quantized(), ROW)
    encoding = 4 * HIDDEN + 4 + 1
    assert moved.weight_bytes == WIDE * HIDDEN + 4 * HIDDEN * CLASSES + encoding
    # x is read; r is written in int8 and read in int8; y is written.
    assert moved.activation_bytes == 4 * WIDE + 2 * HIDDEN + 4 * CLASSES


def test_four_bits_are_half_a_byte() -> None:
    model = graph()
    stored = [
        helper.make_tensor("codes", TensorProto.INT4, FIRST.shape, np.clip(np.round(FIRST), -8, 7).ravel()),
        numpy_helper.from_array(np.float32(1.0), "one"),
    ]
    model.proto.graph.initializer.remove(model.proto.graph.initializer[0])
    model.proto.graph.initializer.extend(stored)
    model.proto.graph.node.insert(0, helper.make_node("DequantizeLinear", ["codes", "one"], ["first"]))
    assert traffic(model, ROW).weight_bytes == WIDE * HIDDEN // 2 + 4 + 4 * HIDDEN * CLASSES


def test_constants_know_what_they_are_made_of() -> None:
    fixed = constants(quantized().proto.graph)
    assert fixed["first_read"] == {"first_quantized", "first_scale"}
    assert not {"x", "r", "r_q", "y"} & fixed.keys()


def test_a_graph_that_does_not_run_says_so() -> None:
    with pytest.raises(ProbeError, match="laid open"):
        probe(graph(), ["nothing"], ROW)
