from __future__ import annotations

import io

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper
from onnxruntime.quantization import QuantType, quantize_dynamic
from torch import Tensor, nn

from compression.export import export
from compression.inspection import parameters, quantization_marks, quantized_operators
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.signature import Array, Signature, TensorSpec
from compression.training import seeded

STEPS, WIDE, HIDDEN = 5, 3, 4
RANDOM = np.random.default_rng(0)


def graph(node: onnx.NodeProto, inputs: dict[str, tuple[int | str, ...]], **stored: Array) -> OnnxModel:
    """One node between inputs and the output `y`, whose shape nobody says."""
    ends = [
        helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, axes) for name, axes in inputs.items()
    ]
    proto = helper.make_model(
        helper.make_graph(
            [node],
            "tried",
            ends,
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [numpy_helper.from_array(array.astype(np.float32), name) for name, array in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=8,
    )
    specs = tuple(TensorSpec(name, "float32", axes) for name, axes in inputs.items())
    return OnnxModel(proto, Signature(specs, (TensorSpec("y", "float32", ("batch",)),)))


def weights(*shape: int) -> Array:
    return RANDOM.standard_normal(shape)


class Recurrent(nn.Module):
    """A recurrent layer in both directions, over `(batch, steps, width)`."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layer = kind(WIDE, HIDDEN, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(x)[0]  # type: ignore[no-any-return]


def recurrent(kind: type[nn.RNNBase]) -> OnnxModel:
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", "steps", WIDE)),),
        (TensorSpec("y", "float32", ("batch", "steps", 2 * HIDDEN)),),
    )
    with seeded(0):
        return export(TorchModel(Recurrent(kind).eval(), signature))


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
@pytest.mark.parametrize("steps", [1, STEPS])
def test_a_recurrent_layer_applies_its_weights_in_every_step(
    kind: type[nn.RNNBase], gates: int, steps: int
) -> None:
    applied = 2 * gates * HIDDEN * (WIDE + HIDDEN)
    assert flops(recurrent(kind), {"x": np.zeros((1, steps, WIDE), np.float32)}) == 2 * steps * applied


@pytest.mark.parametrize("per_channel", [False, True])
def test_a_quantized_recurrent_layer_has_the_weights_and_operations_of_the_one_it_was(
    per_channel: bool,
) -> None:
    before, file = recurrent(nn.LSTM), io.BytesIO()
    quantize_dynamic(before.proto, file, per_channel=per_channel, weight_type=QuantType.QInt8)
    after = OnnxModel(onnx.load_from_string(file.getvalue()), before.signature)
    assert quantized_operators(after) == quantization_marks(after) == {"DynamicQuantizeLSTM": 1}
    row = {"x": np.zeros((1, STEPS, WIDE), np.float32)}
    assert flops(after, row) == flops(before, row)
    assert parameters(after) == parameters(before)


@pytest.mark.parametrize(
    ("equation", "inputs", "stored", "multiplied"),
    [
        ("bi,ij->bj", {"x": ("batch", WIDE)}, (WIDE, HIDDEN), WIDE * HIDDEN),
        ("b...i, ij -> b...j", {"x": ("batch", STEPS, WIDE)}, (WIDE, HIDDEN), STEPS * WIDE * HIDDEN),
        ("bqd,bkd->bqk", {"x": ("batch", STEPS, WIDE), "z": ("batch", 7, WIDE)}, None, STEPS * 7 * WIDE),
        ("bii->bi", {"x": ("batch", WIDE, WIDE)}, None, 0),
    ],
)
def test_einsum_multiplies_over_every_index(
    equation: str,
    inputs: dict[str, tuple[int | str, ...]],
    stored: tuple[int, ...] | None,
    multiplied: int,
) -> None:
    read = [*inputs, *(("w",) if stored else ())]
    node = helper.make_node("Einsum", read, ["y"], equation=equation)
    model = graph(node, inputs, **({"w": weights(*stored)} if stored else {}))
    assert flops(model) == 2 * multiplied


def test_onnxruntimes_attention_is_its_projections_and_two_products_of_activations() -> None:
    node = helper.make_node("Attention", ["x", "w", "b"], ["y"], domain="com.microsoft", num_heads=2)
    inputs: dict[str, tuple[int | str, ...]] = {"x": ("batch", STEPS, HIDDEN)}
    model = graph(node, inputs, w=weights(HIDDEN, 3 * HIDDEN), b=weights(3 * HIDDEN))
    assert flops(model) == 2 * (STEPS * HIDDEN * 3 * HIDDEN + 2 * STEPS * STEPS * HIDDEN)


def test_attention_of_several_heads_is_two_products_of_activations() -> None:
    node = helper.make_node("MultiHeadAttention", ["x", "k", "v"], ["y"], domain="com.microsoft", num_heads=2)
    shapes: dict[str, tuple[int | str, ...]] = {
        "x": ("batch", STEPS, HIDDEN),
        "k": ("batch", 7, HIDDEN),
        "v": ("batch", 7, HIDDEN),
    }
    assert flops(graph(node, shapes)) == 2 * 2 * STEPS * 7 * HIDDEN


def test_what_a_runtime_fuses_counts_as_it_did() -> None:
    node = helper.make_node("FusedMatMul", ["x", "w"], ["y"], domain="com.microsoft", transB=1)
    assert flops(graph(node, {"x": ("batch", WIDE)}, w=weights(HIDDEN, WIDE))) == 2 * WIDE * HIDDEN


def test_a_length_that_the_data_decide_is_that_of_a_real_row() -> None:
    nodes = [
        helper.make_node("Squeeze", ["size", "first"], ["sides"]),
        helper.make_node("Expand", ["w", "sides"], ["wide"]),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    proto = helper.make_model(
        helper.make_graph(
            nodes,
            "tried",
            [
                helper.make_tensor_value_info("x", onnx.TensorProto.FLOAT, ["batch", WIDE]),
                helper.make_tensor_value_info("size", onnx.TensorProto.INT64, ["batch", 2]),
            ],
            [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, None)],
            [
                numpy_helper.from_array(np.ones((WIDE, 1), np.float32), "w"),
                numpy_helper.from_array(np.array([0]), "first"),
            ],
        ),
        opset_imports=[helper.make_opsetid("", 18)],
        ir_version=8,
    )
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", WIDE)), TensorSpec("size", "int64", ("batch", 2))),
        (TensorSpec("y", "float32", ("batch", "wide")),),
    )
    row = {"x": np.ones((1, WIDE), np.float32), "size": np.array([[WIDE, HIDDEN]])}
    assert flops(OnnxModel(proto, signature), row) == 2 * WIDE * HIDDEN
