from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import onnxruntime
import pytest
from numpy.testing import assert_allclose
from onnx import helper, numpy_helper

from compression.inspection import count, heavy_operators, nonzero_parameters, parameters, weights_by_dtype
from compression.model import OnnxModel
from compression.nbits import with_plain_products
from compression.operations import UnknownShapeError
from compression.signature import Array, Signature, TensorSpec

X = TensorSpec("x", "float32", ("batch", 4))
Y = TensorSpec("y", "float32", ("batch", 3))
WEIGHT = np.array([[1, 0, 2], [0, 0, 3], [4, 5, 6], [7, 8, 9]])


def graph(nodes: list[onnx.NodeProto], length: int = 4, **stored: Array) -> OnnxModel:
    x = replace(X, shape=("batch", length))
    ends = [
        helper.make_tensor_value_info(spec.name, onnx.TensorProto.FLOAT, list(spec.shape)) for spec in (x, Y)
    ]
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    proto = helper.make_model(
        helper.make_graph(nodes, "tried", [ends[0]], [ends[1]], tensors),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    return OnnxModel(proto, Signature((x,), (Y,)))


def answer(model: OnnxModel, x: Array) -> Array:
    session = onnxruntime.InferenceSession(
        model.proto.SerializeToString(), providers=["CPUExecutionProvider"]
    )
    (y,) = session.run(None, {"x": x})
    return np.asarray(y)


def test_a_float_graph() -> None:
    model = graph([helper.make_node("MatMul", ["x", "w"], ["y"])], w=WEIGHT.astype(np.float32))
    counts = count(model)
    assert (counts.parameters, counts.nonzero_parameters) == (12, 9)
    assert counts.flops == 2 * 4 * 3
    assert counts.quantized_operators == {}


def test_a_weight_in_a_constant_node_counts_and_a_scalar_of_the_formula_does_not() -> None:
    weight = numpy_helper.from_array(WEIGHT.astype(np.float32))
    nodes = [
        helper.make_node("Constant", [], ["w"], value=weight),
        helper.make_node("MatMul", ["x", "w"], ["product"]),
        helper.make_node("Mul", ["product", "half"], ["y"]),
    ]
    model = graph(nodes, half=np.array(0.5, np.float32))
    assert (parameters(model), count(model).flops) == (12, 24)


def test_an_integer_weight_is_zero_at_its_zero_point_per_channel() -> None:
    points = np.array([1, 0, -2], np.int8)
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "x_scale", "x_zero"], ["xq"]),
        helper.make_node("DequantizeLinear", ["xq", "x_scale", "x_zero"], ["xd"]),
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=1),
        helper.make_node("MatMul", ["xd", "wd"], ["y"]),
    ]
    model = graph(
        nodes,
        w=(WEIGHT + points).astype(np.int8),
        w_scale=np.ones(3, np.float32),
        w_zero=points,
        x_scale=np.array(0.1, np.float32),
        x_zero=np.array(128, np.uint8),
    )
    counts = count(model)
    assert (counts.parameters, counts.nonzero_parameters, counts.flops) == (12, 9, 24)
    assert counts.quantized_operators == {"MatMul": 1}


def test_an_integer_weight_may_have_zero_points_by_the_block() -> None:
    points = np.array([[1, 0, -2], [0, 3, 0]], np.int8)  # of two rows each
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "w_scale", "w_zero"], ["wd"], axis=0, block_size=2),
        helper.make_node("MatMul", ["x", "wd"], ["y"]),
    ]
    model = graph(
        nodes,
        w=(WEIGHT + np.repeat(points, 2, axis=0)).astype(np.int8),
        w_scale=np.ones((2, 3), np.float32),
        w_zero=points,
    )
    assert (parameters(model), nonzero_parameters(model)) == (12, 9)


@pytest.mark.parametrize("bits", [4, 8])
@pytest.mark.parametrize("is_asymmetric", [False, True])
@pytest.mark.parametrize("is_constant", [False, True])
def test_products_of_few_bits_of_others_are_what_the_runtime_makes_of_them(
    bits: int, is_asymmetric: bool, is_constant: bool
) -> None:
    chance = np.random.default_rng(0)
    length, width, block = 64, 3, 32
    stored = {
        "w": chance.integers(0, 256, (width, length // block, block * bits // 8)).astype(np.uint8),
        "scales": chance.random(width * (length // block)).astype(np.float32),
    }
    if is_asymmetric:
        stored["zeros"] = chance.integers(0, 256, (width, -(-(length // block) * bits // 8))).astype(np.uint8)
    said = {"bits": bits} if bits != 4 else {}  # four where nothing is said
    product = helper.make_node(
        "MatMulNBits",
        ["x", *stored],
        ["y"],
        domain="com.microsoft",
        K=length,
        N=width,
        block_size=block,
        **said,
    )
    nodes = [product]
    if is_constant:
        tensor = numpy_helper.from_array(stored.pop("w"))
        nodes.insert(0, helper.make_node("Constant", [], ["w"], value=tensor))
    model = graph(nodes, length, **stored)
    x = chance.random((2, length)).astype(np.float32)
    ours, theirs = (answer(each, x) for each in (with_plain_products(model), model))
    assert_allclose(ours, theirs, rtol=1e-4, atol=1e-3)
    assert parameters(model) == length * width
    assert weights_by_dtype(model) == {f"int{bits}": length * width}


def test_what_a_packed_product_leaves_out_takes_no_other_node_with_it() -> None:
    weight = np.zeros((1, 16, 4), np.float32), np.zeros((1, 16, 4), np.float32)
    nodes = [
        helper.make_node(
            "MatMulNBits", ["x", "w", "scales", "", "", "bias"], ["p"], domain="com.microsoft",
            K=4, N=4, bits=4, block_size=16,
        ),
        helper.make_node("Unsqueeze", ["p", "first"], ["rows"]),
        helper.make_node("LSTM", ["rows", "own", "back"], ["", "y"], hidden_size=4),
    ]  # fmt: skip
    model = graph(
        nodes,
        w=np.zeros((4, 1, 8), np.uint8),
        scales=np.ones(4, np.float32),
        bias=np.ones(4, np.float32),
        first=np.zeros(1, np.int64),
        own=weight[0],
        back=weight[1],
    )
    assert [node.op_type for node in with_plain_products(model).proto.graph.node] == [
        "MatMul",
        "Add",
        "Unsqueeze",
        "LSTM",
    ]


@pytest.mark.parametrize("zeros", [None, np.full(3, 8.0, np.float32)])
def test_four_bit_products_of_others_are_read_by_position(zeros: Array | None) -> None:
    packed = np.full((3, 1, 8), 0x99, np.uint8)  # codes of 9, where 8 is zero
    packed[0] = 0x88
    inputs = ["x", "w", "scales", "zeros" if zeros is not None else "", "", "bias"]
    node = helper.make_node(
        "MatMulNBits", inputs, ["y"], domain="com.microsoft", K=4, N=3, bits=4, block_size=16
    )
    stored = {} if zeros is None else {"zeros": zeros}
    bias = np.ones(3, np.float32)
    model = graph([node], w=packed, scales=np.ones(3, np.float32), bias=bias, **stored)
    assert (parameters(model), nonzero_parameters(model)) == (15, 11)


def test_integer_operators_and_their_scales() -> None:
    nodes = [
        helper.make_node("DynamicQuantizeLinear", ["x"], ["xq", "x_scale", "x_zero"]),
        helper.make_node("MatMulInteger", ["xq", "w", "x_zero", "w_zero"], ["sum"]),
        helper.make_node("Cast", ["sum"], ["float_sum"], to=onnx.TensorProto.FLOAT),
        helper.make_node("Mul", ["x_scale", "w_scale"], ["scale"]),
        helper.make_node("Mul", ["float_sum", "scale"], ["y"]),
    ]
    model = graph(
        nodes,
        w=WEIGHT.astype(np.int8),
        w_scale=np.ones(3, np.float32),
        w_zero=np.zeros(3, np.int8),
    )
    counts = count(model)
    assert (counts.parameters, counts.nonzero_parameters, counts.flops) == (12, 9, 24)
    assert counts.quantized_operators == {"MatMulInteger": 1} == heavy_operators(model)


@pytest.mark.parametrize("turned", [0, 1])
def test_a_quantized_gemm_has_a_zero_point_for_each_of_its_outputs(turned: int) -> None:
    zeros, weight = np.array([1, 0, 2], np.int8), WEIGHT.astype(np.int8)
    names = ["x", "one", "none", "w", "scales", "zeros"]
    node = helper.make_node("QGemm", names, ["y"], domain="com.microsoft", transB=turned)
    model = graph(
        [node],
        w=np.ascontiguousarray(weight.T) if turned else weight,
        one=np.ones((), np.float32),
        none=np.zeros((), np.uint8),
        scales=np.ones(3, np.float32),
        zeros=zeros,
    )
    assert (parameters(model), nonzero_parameters(model)) == (12, np.count_nonzero(weight != zeros))


def test_a_quantized_table_counts_whoever_takes_rows_of_it() -> None:
    nodes = [
        helper.make_node("Cast", ["x"], ["places"], to=onnx.TensorProto.INT64),
        helper.make_node("Gather", ["table", "places"], ["rows"]),
        helper.make_node("DequantizeLinear", ["rows", "scale", "zero"], ["y"]),
    ]
    table = WEIGHT.astype(np.uint8)
    model = graph(nodes, table=table, scale=np.float32(0.1), zero=np.uint8(3))
    assert parameters(model) == 12
    assert nonzero_parameters(model) == np.count_nonzero(table != 3)
    assert weights_by_dtype(model) == {"uint8": 12}


def test_what_classical_models_keep_in_attributes_counts() -> None:
    node = helper.make_node(
        "LinearRegressor",
        ["x"],
        ["y"],
        domain="ai.onnx.ml",
        targets=3,
        coefficients=WEIGHT.astype(np.float32).T.ravel().tolist(),
        intercepts=[0.5, 0.0, 1.0],
    )
    model = graph([node])
    model.proto.opset_import.append(helper.make_opsetid("ai.onnx.ml", 1))
    assert (parameters(model), nonzero_parameters(model)) == (15, 11)


def test_a_shared_weight_is_stored_once() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["left"]),
        helper.make_node("MatMul", ["x", "w"], ["right"]),
        helper.make_node("Add", ["left", "right"], ["y"]),
    ]
    model = graph(nodes, w=WEIGHT.astype(np.float32))
    assert (parameters(model), nonzero_parameters(model), count(model).flops) == (12, 9, 48)


def test_a_shape_that_nobody_knows_is_an_error() -> None:
    nodes = [
        helper.make_node("Mystery", ["x"], ["hidden"], domain="nobody"),
        helper.make_node("MatMul", ["hidden", "w"], ["y"]),
    ]
    model = graph(nodes, w=WEIGHT.astype(np.float32))
    model.proto.opset_import.append(helper.make_opsetid("nobody", 1))
    with pytest.raises(UnknownShapeError, match="cannot be inferred"):
        count(model)
