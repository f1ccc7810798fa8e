from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.base import PassContext
from compression.codebook import CodebookError, Codes, expanded, packed, store_as_codes, stored_codes
from compression.inference import infer
from compression.inspection import parameters, weights_by_dtype
from compression.model import OnnxModel
from compression.operations import flops
from compression.signature import Array


def weights(model: OnnxModel) -> dict[str, Array]:
    return {tensor.name: numpy_helper.to_array(tensor) for tensor in model.proto.graph.initializer}


def coded(model: OnnxModel, bits: int) -> dict[str, Codes]:
    found = {}
    for name, weight in weights(model).items():
        if weight.ndim > 1:
            book = np.quantile(weight, np.linspace(0.01, 0.99, 2**bits)).astype(np.float32)
            found[name] = Codes(np.abs(weight[..., None] - book).argmin(-1), book, bits)
    return found


@pytest.mark.parametrize("bits", [1, 2, 3, 4, 5, 8, 9])
def test_the_graph_expands_to_the_values_of_the_codebook(
    bits: int, artifact: OnnxModel, context: PassContext
) -> None:
    codes = coded(artifact, bits)
    assert len(codes) == 5
    stored = store_as_codes(artifact, codes)
    onnx.checker.check_model(stored.proto, full_check=True)
    plain = expanded(stored)
    for name, each in codes.items():
        np.testing.assert_array_equal(weights(plain)[name], each.codebook[each.indices])
    split = context.splits.validation
    np.testing.assert_array_equal(infer(stored, split, 9)[0], infer(plain, split, 9)[0])


def test_what_is_stored_is_read_back(artifact: OnnxModel) -> None:
    codes = coded(artifact, 3)
    found = stored_codes(store_as_codes(artifact, codes))
    assert found.keys() == codes.keys()
    for name, each in codes.items():
        np.testing.assert_array_equal(found[name].indices, each.indices)
        np.testing.assert_array_equal(found[name].codebook, each.codebook)
        assert found[name].bits == 3
    assert stored_codes(artifact) == {}
    assert expanded(artifact) is artifact


def test_codes_are_counted_as_the_weights_that_they_stand_for(artifact: OnnxModel) -> None:
    codes = coded(artifact, 3)
    stored = store_as_codes(artifact, codes)
    assert parameters(stored) == parameters(artifact)
    assert flops(stored) == flops(artifact)
    assert weights_by_dtype(stored)["codes4"] == sum(each.indices.size for each in codes.values())
    assert weights_by_dtype(stored)["float32"] == weights_by_dtype(artifact)["float32"] - sum(
        each.indices.size for each in codes.values()
    )


def test_a_scale_per_channel_multiplies_the_values(artifact: OnnxModel) -> None:
    name, weight = next((name, each) for name, each in weights(artifact).items() if each.ndim == 4)
    scale = np.abs(weight).mean(axis=(1, 2, 3), keepdims=True)
    signs = Codes((weight > 0).astype(np.int64), np.array([-1.0, 1.0]), 1, scale)
    found = stored_codes(store_as_codes(artifact, {name: signs}))[name]
    np.testing.assert_allclose(found.weight(), np.where(weight > 0, scale, -scale))


@pytest.mark.parametrize(("bits", "share"), [(1, 0.11), (4, 0.16), (8, 0.29)])
def test_the_file_shrinks_with_the_length_of_a_code(bits: int, share: float) -> None:
    weight = np.random.default_rng(0).standard_normal((255, 401)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "w"], ["y"])],
        "one",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 255])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 401])],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)])
    model = OnnxModel(proto, signature=None)  # type: ignore[arg-type]  # not looked at
    assert store_as_codes(model, coded(model, bits)).proto.ByteSize() < share * proto.ByteSize()


def test_several_codes_share_a_byte_from_its_lowest_bits() -> None:
    assert packed(np.array([[1, 2], [3, 15], [7, 0]]), 4).tolist() == [0x21, 0xF3, 0x07]
    assert packed(np.array([1, 0, 0, 0, 0, 0, 0, 1, 1]), 1).tolist() == [0x81, 0x01]


def test_codes_that_do_not_fit_are_refused(artifact: OnnxModel) -> None:
    book = np.zeros(3, np.float32)
    with pytest.raises(CodebookError, match="does not fit codes of 1 bits"):
        Codes(np.zeros(2, np.int64), book, 1)
    with pytest.raises(CodebookError, match="run from 0 to 3"):
        Codes(np.arange(4), book, 2)
    with pytest.raises(CodebookError, match="Give integers"):
        Codes(np.zeros(4), book, 2)
    with pytest.raises(CodebookError, match="17 bits"):
        Codes(np.arange(4), book, 17)
    with pytest.raises(CodebookError, match="no initializer"):
        store_as_codes(artifact, {"nothing": Codes(np.zeros(2, np.int64), book, 2)})
    name = next(iter(coded(artifact, 2)))
    with pytest.raises(CodebookError, match="one code per weight"):
        store_as_codes(artifact, {name: Codes(np.zeros(2, np.int64), book, 2)})
