"""Models of a user's own: what is registered, what becomes of each recipe, what is refused and why."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import helper

from compression.base import PassContext, PassRefusedError
from compression.importing import ImportRefusedError
from compression.inference import infer
from compression.model import OnnxModel
from compression.pipeline import compress
from compression.signature import Array
from compression.training import Training
from tests.commands import mipgate, said
from tests.compression.foreign_graphs import (
    ROWS,
    TAKEN,
    WIDE,
    Foreign,
    X,
    model,
    node,
    plain,
    quantized,
    scalar,
    value,
)
from tests.conftest import Homes
from variants.build_worker import quality_of
from variants.registering import add
from variants.registration import AddJob, RegistrationError, folder_of, registered
from variants.serving_spec import SpecError
from variants.spec import GRAPH_RECIPES, load_spec

LABELS = np.arange(ROWS) % 4


@pytest.fixture
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path / "mipgate"))
    return tmp_path


def job(home: Path, foreign: Foreign, arrays: Mapping[str, Array] | None = None) -> AddJob:
    onnx.save_model(foreign.proto, home / "mine.onnx")
    np.savez(home / "rows.npz", **(foreign.rows if arrays is None else arrays))  # type: ignore[arg-type]
    return AddJob(str(home / "mine.onnx"), home / "rows.npz")


# ---- what is taken in


def test_a_registered_file_is_found_by_name_with_its_rows_divided(home: Path) -> None:
    added = add(job(home, plain(), {"input:x": X, "labels": LABELS}))
    assert (added.rows, added.labelled, added.changed) == (ROWS, True, True)
    assert registered() == ["mine"]
    spec = load_spec("mine")
    splits = spec.splits()
    assert [len(split) for _, split in splits.items()] == [12, 12, 18, 18]
    assert all(split.labels is not None for _, split in splits.items())
    assert (spec.metric, spec.reference) == ("accuracy", "fp32")
    assert isinstance(spec.factory(), OnnxModel)
    assert spec.digest(spec.recipe("fp16")) == load_spec("mine").digest(spec.recipe("fp16"))


def test_without_labels_the_reference_is_the_judge(home: Path) -> None:
    assert add(job(home, plain())).registration.graph.metric == "agreement"  # type: ignore[union-attr]


def test_other_labels_are_numbers_to_meet(home: Path) -> None:
    numbers = X[:, :4].astype(np.float64)
    wanted = replace(job(home, plain(), {"x": X, "target": numbers}), labels="target")
    assert add(wanted).registration.graph.metric == "mse"  # type: ignore[union-attr]


def test_one_value_holds_for_all_rows_and_doubles_become_floats(home: Path) -> None:
    add(job(home, scalar(), {"x": X.astype(np.float64), "scale": np.array(2.0)}))
    rows = load_spec("mine").splits().test
    assert {array.dtype.name for array in rows.inputs.values()} == {"float32"}
    assert (rows.inputs["scale"] == 2.0).all()


def test_the_same_again_changes_nothing_and_another_needs_to_replace(home: Path) -> None:
    add(job(home, plain()))
    assert not add(job(home, plain())).changed
    other = job(home, plain(), {"x": X[:50]})
    with pytest.raises(RegistrationError, match="--replace"):
        add(other)
    assert add(replace(other, replace=True)).rows == 50
    assert add(replace(other, name="second")).changed
    assert registered() == ["mine", "second"]


def test_what_cannot_be_replaced_is_there_still(home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    add(job(home, plain()))
    other = job(home, plain(), {"x": X[:50]})
    rename = Path.rename

    def failing(path: Path, target: Path) -> Path:
        if target == folder_of("mine") and path.suffix != ".old":
            raise OSError("no space left on device")
        return rename(path, target)

    with monkeypatch.context() as full:
        full.setattr(Path, "rename", failing)
        with pytest.raises(OSError, match="no space left"):
            add(replace(other, replace=True))
    assert not add(job(home, plain())).changed
    assert [path.name for path in folder_of("mine").parent.iterdir()] == ["mine"]


def test_a_damaged_copy_is_not_built(home: Path) -> None:
    add(job(home, plain()))
    copy = folder_of("mine") / "model.onnx"
    copy.write_bytes(copy.read_bytes()[:-1] + b"!")
    with pytest.raises(RegistrationError, match="missing or altered"):
        load_spec("mine").factory()
    assert add(job(home, plain())).changed
    load_spec("mine").factory()


def test_a_spec_is_found_by_its_own_name(home: Path) -> None:
    add(AddJob("tests.variants.tiny_specs:TINY"))
    assert load_spec("tiny").name == "tiny"
    with pytest.raises(RegistrationError, match="names itself"):
        add(AddJob("tests.variants.tiny_specs:TINY", name="other"))


# ---- what becomes of each recipe

BUILT, MODULE = "", "takes a torch module, and this model is an ONNX file"
INSIDE = "inside a Scan, Loop or If"
LOSES = "more than 0.01 is lost"
# Eighteen rows of a small random graph decide: its rounding, which is the processor's, may tip them.
EITHER = "either"
QUANTIZED, WEIGHTS = "is quantized already", "quantized already"
USUAL = dict.fromkeys(("fp32", "fp16", "int8-dynamic", "int8-static", "int8-accuracy-control"), BUILT)
USUAL |= dict.fromkeys(("pruned", "distilled"), MODULE)
USUAL["int8-smoothquant"] = "no LayerNormalization"
INT8 = ("int8-dynamic", "int8-static", "int8-accuracy-control", "int8-smoothquant")
SCANNED = USUAL | dict.fromkeys(INT8, INSIDE)
DONE = USUAL | {"fp16": WEIGHTS} | dict.fromkeys(INT8, QUANTIZED)
EXPECTED = {
    "plain": USUAL,
    "opset 11": USUAL,
    "opset 21": USUAL,
    "constants": USUAL,
    "initializers as inputs": USUAL,
    "many ends": USUAL | {"int8-accuracy-control": EITHER},
    "reshape to one row": USUAL,
    "free axes": USUAL | {"int8-accuracy-control": EITHER},
    "looping": USUAL | {"int8-accuracy-control": EITHER},
    "function": USUAL,
    "scalar": SCANNED,
    "attention of one row": SCANNED,
    "masked attention": USUAL | {"int8-accuracy-control": EITHER},
    "branching": SCANNED,
    "double": USUAL | {"fp16": "no float32 weights"} | dict.fromkeys(INT8, "is float64"),
    "qdq": DONE,
    "qlinear": DONE,
    "dynamically quantized": DONE,
    "weights only": DONE | dict.fromkeys(INT8, WEIGHTS),
}


@contextmanager
def built_or_refused(reason: str) -> Iterator[None]:
    try:
        yield
    except PassRefusedError as refused:
        if reason not in str(refused):
            raise


@pytest.mark.parametrize("kind", EXPECTED)
def test_each_recipe_is_built_or_skipped_as_expected(home: Path, kind: str) -> None:
    add(job(home, TAKEN[kind]()))
    spec = load_spec("mine")
    source, splits = spec.factory(), spec.splits()
    assert isinstance(source, OnnxModel)
    context = PassContext(
        splits, None, {}, Training(), 0, lambda phrase, fraction: None, quality=partial(quality_of, spec)
    )
    for recipe in GRAPH_RECIPES:
        reason = EXPECTED[kind][recipe.name]
        if reason == EITHER:
            with built_or_refused(LOSES):
                infer(compress(recipe, source, context).artifact, splits.validation, 3)
        elif reason:
            with pytest.raises(PassRefusedError, match=reason):
                compress(recipe, source, context)
        else:
            artifact = compress(recipe, source, context).artifact
            assert artifact.signature == spec.signature
            infer(artifact, splits.validation, 3)


# ---- refusals


@pytest.mark.parametrize(
    ("arrays", "said"),
    [
        ({"z": X}, 'has an array "z".* --labels z'),
        ({}, "Give every input as many rows"),
        ({"x": X[:, :3]}, r"shape \[3\]; the model takes \[16\]"),
        ({"x": X[:30]}, "30 different rows; 40 are the fewest"),
        ({"x": np.concatenate([X[:20]] * 4)}, "20 different rows; 40 are the fewest"),
        ({"x": np.where(X > 2, np.nan, X)}, "NaN or infinity in"),
        ({"x": np.full_like(X, 1e300, np.float64)}, "do not fit float32"),
        ({"x": X.astype(str)}, "holds <U"),
        ({"x": X.astype(object)}, "cannot be read"),
        ({"x": X, "labels": LABELS[:9]}, "60 rows and labels of shape"),
        ({"x": X, "labels": LABELS.astype(str)}, "finite numbers"),
        ({"x": X, "labels": np.full(ROWS, np.nan)}, "finite numbers"),
        ({"x": X, "labels": np.where(np.arange(ROWS) == ROWS - 1, 7, LABELS)}, "label 7 is none of the 4"),
        ({"x": X, "labels": LABELS[:, None]}, "Give one class number for each row"),
    ],
)
def test_data_that_does_not_fit_says_what_would(home: Path, arrays: dict[str, Array], said: str) -> None:
    of_rows = "fewest" in said or "class number" in said or "label 7" in said
    with pytest.raises(ValueError if of_rows else ImportRefusedError, match=said):
        add(job(home, plain(), arrays))
    assert registered() == []


def test_answers_that_nothing_can_be_compared_with_are_refused_before_anything_is_built(home: Path) -> None:
    for row, name in ((0, "first"), (ROWS - 1, "last")):
        x = np.abs(X) + 1
        x[row, 0] = -1  # has no logarithm
        masked = model(
            [node("MatMul", ["x", "w"], ["h"]), node("Log", ["h"], ["y"])],
            [value("x", ["N", WIDE])],
            [value("y", ["N", 1])],
            w=np.eye(WIDE, 1, dtype=np.float32),
        )
        with pytest.raises(ImportRefusedError, match=r'"y" holds NaN or infinity.* Mask with a large number'):
            add(job(home, Foreign(masked, {"x": x})))
        assert registered() == [], name


def test_what_gives_no_tensors_says_how_to_export_it(home: Path) -> None:
    proto = model(
        [helper.make_node("ZipMap", ["x"], ["y"], domain="ai.onnx.ml", classlabels_int64s=list(range(WIDE)))],
        [value("x", ["N", WIDE])],
        [helper.make_tensor_sequence_value_info("y", onnx.TensorProto.FLOAT, None)],
        domains=["ai.onnx.ml"],
    )
    scores = helper.make_map_type_proto(onnx.TensorProto.INT64, helper.make_tensor_type_proto(1, None))
    proto.graph.output[0].type.CopyFrom(helper.make_sequence_type_proto(scores))
    with pytest.raises(ImportRefusedError, match=r'output "y" is a sequence.* zipmap=False'):
        add(job(home, Foreign(proto, {"x": X})))


def test_axes_of_one_name_and_several_lengths_are_told_apart(home: Path) -> None:
    proto = model(
        [
            node("ReduceMean", ["a"], ["p"], axes=[1], keepdims=0),
            node("ReduceMean", ["b"], ["q"], axes=[1], keepdims=0),
            node("Add", ["p", "q"], ["y"]),
        ],
        [value(name, ["None", "None", WIDE]) for name in ("a", "b")],
        [value("y", ["None", WIDE])],
    )
    rows = {
        name: np.random.default_rng(0).normal(size=(ROWS, length, WIDE)).astype(np.float32)
        for name, length in (("a", 3), ("b", 5))
    }
    add(job(home, Foreign(proto, rows)))
    shapes = [spec.shape for spec in load_spec("mine").signature.inputs]
    assert shapes == [("batch", "a_1", WIDE), ("batch", "b_1", WIDE)]


def test_values_that_an_integer_cannot_hold_are_refused(home: Path) -> None:
    foreign = TAKEN["many ends"]()
    halves = foreign.rows | {"token": foreign.rows["token"] + 0.5}
    with pytest.raises(ImportRefusedError, match='"token" is float64 and its values do not fit int64'):
        add(job(home, foreign, halves))


def test_a_file_names_its_model_whatever_it_is_called(home: Path) -> None:
    named = job(home, plain())
    source = Path(named.source).rename(home / "My Net v1.2.onnx")
    add(replace(named, source=str(source)))
    assert registered() == ["my-net-v1-2"]


def test_not_finite_rows_are_taken_when_the_model_takes_them(home: Path) -> None:
    clipped = model(
        [node("Clip", ["x", "", "most"], ["h"]), node("MatMul", ["h", "w"], ["y"])],
        [value("x", ["N", WIDE])],
        [value("y", ["N", 4])],
        most=np.array(2.0, np.float32),
        w=np.ones((WIDE, 4), np.float32),
    )
    holes = job(home, Foreign(clipped, {"x": np.where(X > 2, np.inf, X).astype(np.float32)}))
    add(replace(holes, allow_non_finite=True))
    assert load_spec("mine").allow_non_finite


@pytest.mark.parametrize(
    ("change", "error", "said"),
    [
        ({"name": "digits"}, RegistrationError, 'Mipgate brings a model "digits"'),
        ({"name": "../mine"}, SpecError, "cannot name a model"),
        ({"metric": "beauty"}, ValueError, 'unknown metric "beauty"'),
        ({"labels": "truth"}, ImportRefusedError, 'no array "truth"'),
        ({"data": None}, ImportRefusedError, "--data"),
        ({"data": Path("nowhere.npz")}, ImportRefusedError, "no file nowhere.npz"),
        ({"source": "mine"}, RegistrationError, "neither an ONNX file nor a spec"),
        ({"source": "nowhere.onnx"}, ImportRefusedError, "no file nowhere.onnx"),
    ],
)
def test_a_job_that_cannot_be_done_says_why(
    home: Path, change: dict[str, object], error: type[Exception], said: str
) -> None:
    with pytest.raises(error, match=said):
        add(replace(job(home, plain()), **change))  # type: ignore[arg-type]
    assert registered() == []


def test_a_nameless_array_is_refused(home: Path) -> None:
    wanted = job(home, plain())
    np.save(home / "rows.npy", X)
    with pytest.raises(ImportRefusedError, match="nameless"):
        add(replace(wanted, data=home / "rows.npy"))


# ---- the command line


def test_add_builds_and_serves_what_it_was_given(empty: Homes, tmp_path: Path) -> None:
    wanted = job(tmp_path, quantized())
    ended = mipgate(empty, "add", wanted.source, "--data", str(wanted.data), "--name", "ready", "--jobs", "2")
    assert "ready is registered: 60 different rows without labels, judged by agreement" in ended.stderr
    statuses = {variant["name"]: variant["status"] for variant in said(empty, "show", "ready")["variants"]}
    assert statuses == {"fp32": "serving"} | dict.fromkeys(EXPECTED["qdq"].keys() - {"fp32"}, "skipped")
    assert "fp16: recipe fp16: fp16 was refused: the model is quantized already" in ended.stdout
    again = mipgate(empty, "build", "ready", "--quiet")
    assert "ready: 0 built, 1 cached, 7 not built" in again.stderr


def test_a_file_that_is_none_ends_with_a_sentence(empty: Homes, tmp_path: Path) -> None:
    (tmp_path / "junk.onnx").write_bytes(b"junk" * 100)
    np.savez(tmp_path / "rows.npz", x=X)
    ended = mipgate(empty, "add", str(tmp_path / "junk.onnx"), "--data", str(tmp_path / "rows.npz"), status=1)
    assert "Error: junk.onnx" in ended.stderr
    assert "Traceback" not in ended.stderr
