"""Files that others wrote: taken in whole, computing what they did, or refused with the reason."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import external_data_helper, helper, numpy_helper

from compression.batching import batched
from compression.data import FEWEST_ROWS, Split, SplitError, distinct, divided
from compression.ends import check_ends
from compression.importing import (
    ImportRefusedError,
    modernized,
    normalized,
    open_graph,
    opset,
    read_graph,
    run,
)
from compression.inspection import count
from compression.model import OnnxModel
from compression.signature import Array
from tests.compression.foreign_graphs import (
    CLASSES,
    HIDDEN,
    STORED,
    TAKEN,
    TOKENS,
    WEIGHT,
    WIDE,
    Foreign,
    X,
    attention_of_one_row,
    constants,
    input_returned,
    looping,
    model,
    node,
    plain,
    quantized,
    recurrent_state,
    scalar,
    value,
)

PARAMETERS = WIDE * HIDDEN + HIDDEN * CLASSES


def taken(foreign: Foreign) -> OnnxModel:
    check_ends(foreign.proto)
    return batched(normalized(foreign.proto), foreign.rows)


@pytest.mark.parametrize("kind", TAKEN)
def test_every_kind_answers_rows_together_as_it_answered_each_alone(kind: str) -> None:
    foreign = TAKEN[kind]()
    imported = taken(foreign)
    assert all(spec.shape[0] == "batch" for spec in (*imported.signature.inputs, *imported.signature.outputs))
    rows = {name: array[7:19] for name, array in foreign.rows.items()}
    imported.signature.check_inputs(rows)
    together = run(imported.proto, rows)
    before, copies = open_graph(foreign.proto), 4 if kind.startswith("fixed") else 1
    for row in range(12):
        feed = {name: _alone(before, name, array[row], copies) for name, array in rows.items()}
        answers = zip(imported.signature.outputs, run(before, feed), together, strict=True)
        for spec, alone, batch in answers:
            assert spec.accepts_shape(batch.shape)
            assert batch.dtype == np.dtype(spec.dtype)
            close = 1.0 if kind == "dynamically quantized" else 1e-3
            assert np.allclose(alone.reshape(-1)[: batch[row].size], batch[row].reshape(-1), atol=close)


def _alone(session: ort.InferenceSession, name: str, row: Array, copies: int) -> Array:
    """One row as the file takes it."""
    (rank,) = (len(each.shape) for each in session.get_inputs() if each.name == name)
    return np.asarray(row) if np.ndim(row) == rank else np.repeat(row[None], copies, axis=0)


@pytest.mark.parametrize("kind", TAKEN)
def test_every_kind_is_counted(kind: str) -> None:
    foreign = TAKEN[kind]()
    imported = taken(foreign)
    counts = count(imported, {name: rows[:1] for name, rows in foreign.rows.items()})
    assert counts.parameters >= WIDE * HIDDEN
    assert counts.flops >= 2 * WIDE * HIDDEN
    if kind in ("plain", "constants", "scalar", "no batch anywhere", "batch of one", "mean of all"):
        assert (counts.parameters, counts.flops) == (PARAMETERS, 2 * PARAMETERS)


def test_products_in_a_scan_count_whatever_computes_their_shapes() -> None:
    imported = taken(attention_of_one_row())
    assert "Scan" in {each.op_type for each in imported.proto.graph.node}
    of_weights, of_tokens = TOKENS * PARAMETERS, TOKENS * TOKENS * (WIDE + HIDDEN)
    assert count(imported).flops == 2 * (of_weights + of_tokens)


def test_a_state_that_comes_out_goes_in_again() -> None:
    imported = taken(recurrent_state())
    (_, given), (_, made) = imported.signature.inputs, imported.signature.outputs
    assert given.shape == made.shape == ("batch", 1, 1, WIDE)


def test_weights_in_constant_nodes_become_initializers() -> None:
    assert {tensor.name for tensor in normalized(constants().proto).graph.initializer} == set(STORED)


@pytest.mark.parametrize("flat", [True, False])
def test_weights_that_are_stored_by_what_is_not_zero_are_stored_whole(flat: bool) -> None:
    proto, thin = plain().proto, np.where(np.abs(WEIGHT) > 1, WEIGHT, 0)
    places = np.flatnonzero(thin) if flat else np.argwhere(thin)
    values, indices = numpy_helper.from_array(thin[thin != 0], "w"), numpy_helper.from_array(places)
    proto.graph.sparse_initializer.append(helper.make_sparse_tensor(values, indices, thin.shape))
    del proto.graph.initializer[0]
    imported = taken(Foreign(proto, {"x": X}))
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in imported.proto.graph.initializer}
    assert np.array_equal(stored["w"], thin)


def test_a_loop_keeps_its_loop_and_the_weight_inside_counts_once() -> None:
    imported = taken(looping())
    assert "Loop" in {each.op_type for each in imported.proto.graph.node}
    assert count(imported).flops == 2 * (WIDE * WIDE + WIDE * HIDDEN)


@pytest.mark.parametrize("version", [11, 12])
def test_an_old_opset_is_converted_where_it_computes_the_same(version: int) -> None:
    old = normalized(plain(opset=version).proto)
    new = modernized(old, [{"x": X[:3]}])
    assert opset(old) == version
    assert opset(new) == 18
    assert np.allclose(run(old, {"x": X[:3]})[0], run(new, {"x": X[:3]})[0], atol=1e-5)


def test_a_new_opset_stays() -> None:
    newest = normalized(plain(opset=21).proto)
    assert modernized(newest, [{"x": X[:3]}]) is newest


# ---- refusals


def refused(foreign: Foreign) -> str:
    with pytest.raises(ImportRefusedError) as caught:
        taken(foreign)
    return str(caught.value)


def test_data_that_does_not_fit_is_refused_with_what_would() -> None:
    proto = plain().proto
    assert 'has an array "z"; the model takes x' in refused(Foreign(proto, {"z": X}))
    assert 'no array "scale"' in refused(Foreign(scalar().proto, {"x": X}))
    assert 'rows of array "x" have shape [5]; the model takes [16]' in refused(
        Foreign(proto, {"x": X[:, :5]})
    )
    assert "has shape [16]" in refused(Foreign(proto, {"x": X[0]}))


def test_an_output_whose_shape_depends_on_the_values_is_refused() -> None:
    nodes = [node("Greater", ["x", "zero"], ["p"]), node("NonZero", ["p"], ["y"])]
    ends = [value("x", ["N", WIDE])], [value("y", [2, "found"], onnx.TensorProto.INT64)]
    proto = model(nodes, *ends, zero=np.zeros((), np.float32))
    assert "depending on the values of a row" in refused(Foreign(proto, {"x": X}))


def test_a_fixed_batch_of_several_whose_rows_meet_is_refused() -> None:
    nodes = [node("Reshape", ["x", "shape"], ["flat"]), node("MatMul", ["flat", "w"], ["y"])]
    proto = model(
        nodes,
        [value("x", [4, 4])],
        [value("y", [1, HIDDEN])],
        shape=np.array([1, 16]),
        w=STORED["w"],
    )
    assert "exactly 4 rows" in refused(Foreign(proto, {"x": X[:, :4].copy()}))


def test_ends_that_are_no_tensors_of_numbers_are_refused() -> None:
    nodes = [node("Identity", ["x"], ["y"])]
    text = model(
        nodes, [value("x", ["N"], onnx.TensorProto.STRING)], [value("y", ["N"], onnx.TensorProto.STRING)]
    )
    assert 'input "x" holds string' in refused(Foreign(text, {"x": np.array(["a", "b"])}))
    wrapped = model(
        [node("SequenceConstruct", ["x"], ["y"])],
        [value("x", ["N", WIDE])],
        [helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)],
    )
    assert 'output "y" is a sequence' in refused(Foreign(wrapped, {"x": X}))


def test_an_output_that_was_an_input_has_a_name_of_its_own() -> None:
    assert [spec.name for spec in taken(input_returned()).signature.outputs] == ["y", "x_out"]


# ---- files


def saved(proto: onnx.ModelProto, path: Path) -> Path:
    onnx.save_model(proto, path)
    return path


def unreadable(path: Path) -> str:
    with pytest.raises(ImportRefusedError) as caught:
        read_graph(path)
    return str(caught.value)


def test_what_is_no_model_is_refused(tmp_path: Path) -> None:
    assert "there is no file" in unreadable(tmp_path / "nothing.onnx")
    for content in (b"", b"GIF89a, or so it says", b"\x00" * 100, plain().proto.SerializeToString()[:-300]):
        (tmp_path / "broken.onnx").write_bytes(content)
        assert "broken.onnx" in unreadable(tmp_path / "broken.onnx")


def test_an_operator_that_onnxruntime_does_not_have_is_named(tmp_path: Path) -> None:
    nodes = [node("Sorcery", ["x"], ["y"], domain="acme")]
    proto = model(nodes, [value("x", ["N", 4])], [value("y", ["N", 4])], domains=["acme"])
    assert "needs acme::Sorcery" in unreadable(saved(proto, tmp_path / "m.onnx"))


def test_an_output_that_is_listed_twice_is_refused(tmp_path: Path) -> None:
    proto = plain().proto
    proto.graph.output.append(proto.graph.output[0])
    with pytest.raises(ImportRefusedError, match='lists output "y" more than once'):
        read_graph(saved(proto, tmp_path / "twice.onnx"))


def test_a_graph_that_cannot_be_is_refused(tmp_path: Path) -> None:
    proto = model([node("Relu", ["nobody"], ["y"])], [value("x", ["N", 4])], [value("y", ["N", 4])])
    assert "no valid ONNX" in unreadable(saved(proto, tmp_path / "m.onnx"))


def outside(folder: Path, location: str) -> Path:
    """A model whose first weight is said to lie there."""
    proto = plain().proto
    tensor = proto.graph.initializer[0]
    external_data_helper.set_external_data(tensor, location, 0, tensor.ByteSize() and len(tensor.raw_data))
    (folder / "w.bin").write_bytes(tensor.raw_data)
    tensor.ClearField("raw_data")
    (folder / "m.onnx").write_bytes(proto.SerializeToString())
    return folder / "m.onnx"


def test_external_data_beside_the_model_is_read(tmp_path: Path) -> None:
    proto = read_graph(outside(tmp_path, "w.bin"))
    assert np.array_equal(numpy_helper.to_array(proto.graph.initializer[0]), STORED["w"])


@pytest.mark.parametrize(
    ("location", "said"),
    [
        ("../w.bin", "outside the model's folder"),
        ("a/../../w.bin", "outside the model's folder"),
        ("/etc/passwd", "outside the model's folder"),
        ("C:\\w.bin", "outside the model's folder"),
        ("", "outside the model's folder"),
        ("gone.bin", "is missing"),
        ("link.bin", "behind the link"),
        ("away/w.bin", "behind the link"),
        ("short.bin", "beyond the end"),
    ],
)
def test_external_data_stays_in_the_folder(tmp_path: Path, location: str, said: str) -> None:
    folder = tmp_path / "model"
    folder.mkdir()
    path = outside(folder, location)
    (tmp_path / "w.bin").write_bytes(b"0" * 4096)
    (folder / "link.bin").symlink_to(tmp_path / "w.bin")
    (folder / "away").symlink_to(tmp_path)
    (folder / "short.bin").write_bytes(b"0")
    assert said in unreadable(path)


# ---- rows


def rows(count: int) -> Split:
    return Split({"x": np.arange(count, dtype=np.float32)[:, None]}, np.arange(count))


def test_rows_are_dealt_out_the_same_way_every_time() -> None:
    splits = divided(rows(100))
    assert [len(split) for _, split in splits.items()] == [20, 20, 30, 30]
    assert divided(rows(100)).digest == splits.digest
    for _, split in splits.items():
        assert np.array_equal(split.inputs["x"][:, 0], split.labels)


def test_repeated_rows_count_once_and_too_few_are_refused() -> None:
    twice = Split({"x": np.concatenate([rows(50).inputs["x"]] * 2)})
    assert len(distinct(twice)) == 50
    divided(rows(FEWEST_ROWS))
    with pytest.raises(SplitError, match=f"{FEWEST_ROWS} are the fewest"):
        divided(distinct(rows(FEWEST_ROWS - 1)))


@pytest.mark.parametrize("kind", ["qdq", "qlinear", "dynamic"])
def test_an_already_quantized_file_is_recognised(kind: str) -> None:
    assert count(taken(quantized(kind))).quantized_operators


def test_more_weights_than_one_file_holds_are_refused_unread(tmp_path: Path) -> None:
    proto = plain().proto
    weight = proto.graph.initializer[0]
    weight.ClearField("raw_data")
    weight.data_location = onnx.TensorProto.EXTERNAL
    weight.external_data.add(key="location", value="weights.bin")
    onnx.save_model(proto, tmp_path / "huge.onnx")
    with (tmp_path / "weights.bin").open("wb") as file:
        file.truncate(2_400_000_000)  # holes, which take no room
    with pytest.raises(ImportRefusedError, match=r"2\.4 GB of weights, more than 2 GB.*float16 weights"):
        read_graph(tmp_path / "huge.onnx")
