from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.container import expand
from compression.export import export
from compression.model import Form, OnnxModel, Storage, TorchModel
from compression.pipeline import RecipeError, check, compress
from compression.quantization import DynamicInt8, DynamicInt8Settings, StaticInt8, StaticInt8Settings
from compression.recipe import Recipe, step
from compression.storage import Huffman, HuffmanSettings, save, serialized, weight_spans
from compression.training import Training, fit, seeded
from tests.compression.small_digits import DIGITS, accuracy, digits_net, silent


@pytest.fixture(scope="module")
def huffman() -> Huffman:
    return Huffman(HuffmanSettings())


def few_values(artifact: OnnxModel, values: int = 8) -> OnnxModel:
    """The graph with weights rounded to few values, some of them negative zeros."""
    proto = onnx.ModelProto()
    proto.CopyFrom(artifact.proto)
    for tensor in proto.graph.initializer:
        array = numpy_helper.to_array(tensor)
        if array.ndim > 1:
            step_size = np.abs(array).max() / values
            tensor.CopyFrom(numpy_helper.from_array(np.round(array / step_size) * step_size, tensor.name))
    return OnnxModel(proto, artifact.signature)


def test_a_packed_graph_is_small_and_comes_back_byte_by_byte(
    huffman: Huffman, artifact: OnnxModel, context: PassContext, tmp_path: Path
) -> None:
    before = few_values(artifact)
    huffman.requires(before, context)
    after = huffman.run(before, context)
    facts = huffman.ensures(before, after, context)
    huffman.holds(facts, after)
    path = save(after, tmp_path / "model.onnx")
    assert path.name == "model.mpk"
    assert [each.name for each in tmp_path.iterdir()] == ["model.mpk"]
    assert path.stat().st_size == facts["bytes_after"] < before.proto.ByteSize() / 5
    assert expand(path.read_bytes()) == serialized(after)
    for was, now in zip(before.proto.graph.initializer, after.proto.graph.initializer, strict=True):
        assert np.array_equal(numpy_helper.to_array(was), numpy_helper.to_array(now))


def test_a_plain_graph_is_written_where_it_was_asked(artifact: OnnxModel, tmp_path: Path) -> None:
    path = save(artifact, tmp_path / "model.onnx")
    assert path == tmp_path / "model.onnx"
    assert onnx.load(path) == artifact.proto


def test_integer_weights_are_coded_too(huffman: Huffman, artifact: OnnxModel, context: PassContext) -> None:
    quantized = StaticInt8(StaticInt8Settings(rows=32)).run(artifact, context)
    facts = huffman.ensures(quantized, huffman.run(quantized, context), context)
    assert facts["bytes_after"] < 0.9 * facts["bytes_before"]


def test_tensors_are_found_wherever_a_graph_keeps_them(artifact: OnnxModel) -> None:
    weight = np.arange(100, dtype=np.float32)
    branch = helper.make_graph(
        [helper.make_node("Constant", [], ["y"], value=numpy_helper.from_array(weight, "inside"))],
        "branch",
        [],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [100])],
    )
    choice = helper.make_node("If", ["which"], ["y"], then_branch=branch, else_branch=branch)
    graph = helper.make_graph(
        [choice],
        "graph",
        [helper.make_tensor_value_info("which", onnx.TensorProto.BOOL, [])],
        [helper.make_tensor_value_info("y", onnx.TensorProto.FLOAT, [100])],
        [numpy_helper.from_array(weight.astype(np.float16), "unused")],
    )
    model = OnnxModel(helper.make_model(graph), artifact.signature)
    plain = serialized(model)
    spans = weight_spans(model, plain)
    assert [(span.items, span.width) for span in spans] == [(100, 4), (100, 4), (100, 2)]
    assert plain[spans[2].offset : spans[2].end] == weight.astype(np.float16).tobytes()


def test_coding_that_does_not_pay_breaks_the_promise(
    huffman: Huffman, artifact: OnnxModel, context: PassContext
) -> None:
    with pytest.raises(BrokenPromiseError, match="prune-unstructured, cluster or a quantization"):
        huffman.ensures(artifact, huffman.run(artifact, context), context)


def test_packing_comes_once_and_last(huffman: Huffman, artifact: OnnxModel, context: PassContext) -> None:
    packed = replace(artifact, storage=Storage.HUFFMAN)
    with pytest.raises(PassRefusedError, match="packed already"):
        huffman.requires(packed, context)
    rewritten = DynamicInt8(DynamicInt8Settings()).run(packed, context)
    with pytest.raises(BrokenPromiseError, match="Put huffman last"):
        huffman.holds({}, rewritten)


def test_deep_compression_makes_a_fifteenth_of_the_bytes_with_nearly_the_same_answers(
    context: PassContext, tmp_path: Path
) -> None:
    """Prune, share, code: Han, Mao and Dally 2016."""
    with seeded(0):
        untrained = TorchModel(digits_net((32, 64, 64), 128), DIGITS)
    splits = context.splits
    reference = fit(
        untrained, splits.train, splits.validation, Training(epochs=5), seed=0, report=silent
    ).model
    recipe = Recipe(
        name="deep-compression",
        steps=(
            step("prune-unstructured", ratio=0.85, epochs=4),
            step("cluster", clusters=16, epochs=2),
            step("huffman"),
        ),
    )
    compressed = compress(recipe, reference, replace(context, reference=reference))
    plain = export(reference)
    before = save(plain, tmp_path / "plain.onnx").stat().st_size
    after = save(compressed.artifact, tmp_path / "deep.onnx").stat().st_size
    assert before / after > 18
    assert accuracy(compressed.artifact, splits.test) >= accuracy(plain, splits.test) - 0.03
    _, clustered, coded = (entry["facts"] for entry in compressed.facts)
    assert max(layer["values"] for layer in clustered["layers"].values()) <= 16
    assert coded["bytes_after"] == after


@pytest.mark.parametrize("later", ["huffman", "fp16", "int8-dynamic"])
def test_a_step_after_packing_is_refused_before_anything_is_built(later: str) -> None:
    with pytest.raises(RecipeError, match=f"{later} writes the graph anew, which undoes huffman"):
        check(Recipe(name="undone", steps=(step("huffman"), step(later))), Form.ONNX)
    check(Recipe(name="last", steps=(step("cluster"), step("huffman"))), Form.TORCH)
