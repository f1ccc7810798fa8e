"""Packed artifacts: stored small, and served like any other."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from torch import nn

from compression.container import Span, pack
from compression.model import OnnxModel, Storage, TorchModel
from compression.pipeline import Compressed
from compression.recipe import Recipe, step
from compression.signature import Signature
from compression.storage import save
from tests.commands import mipgate, said
from tests.conftest import ROOT, Homes
from variants.build_worker import exported
from variants.catalog import model_file
from variants.host import this_host
from variants.runtime import Runtime, RuntimeUnavailableError, available_runtimes, open_session

CPU = Runtime("onnxruntime-cpu", "f32", 1)
X = np.array([[1.0, 2.0, 3.0]], np.float32)


@pytest.fixture
def weight() -> np.ndarray:
    return np.random.default_rng(0).integers(-3, 4, (3, 500)).astype(np.float32)


@pytest.fixture
def packed(weight: np.ndarray, tmp_path: Path) -> Path:
    """`y = x @ weight`."""
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["x", "weight"], ["y"])],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["batch", 500])],
        [numpy_helper.from_array(weight, "weight")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=9)
    return save(OnnxModel(model, Signature((), ()), Storage.HUFFMAN), tmp_path / "model.onnx")


@pytest.mark.parametrize(("passes", "compared"), [
    (("cluster", "huffman"), True), ((), True), (("cluster", "int8-dynamic", "huffman"), False),
])  # fmt: skip
def test_a_packed_file_must_equal_the_module_it_was_made_of(passes: tuple[str, ...], compared: bool) -> None:
    module = TorchModel(nn.Linear(3, 2), Signature((), ()))
    made = Compressed(OnnxModel(onnx.ModelProto(), module.signature), (), module)
    recipe = Recipe(name="stored", steps=tuple(map(step, passes)))
    assert (exported(recipe, made) is module) is compared


def test_every_runtime_answers_from_a_packed_file(packed: Path, weight: np.ndarray) -> None:
    assert model_file(packed.parent) == packed
    for runtime in available_runtimes(this_host()):
        assert open_session(packed, runtime).run({"x": X})[0] == pytest.approx(X @ weight, rel=1e-2)


def test_opening_a_packed_file_needs_nothing_that_building_needs(packed: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from variants.runtime import *;"
        f"open_session(Path({str(packed)!r}), Runtime('onnxruntime-cpu', 'f32', 1));"
        "print(*{'onnx', 'torch', 'sklearn'} & sys.modules.keys())"
    )
    ended = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True, env=os.environ
    )
    assert ended.stdout.strip() == ""


def test_a_packed_file_that_is_damaged_is_refused_by_name(packed: Path) -> None:
    content = bytearray(packed.read_bytes())
    content[-3] ^= 0xFF
    packed.write_bytes(content)
    with pytest.raises(RuntimeUnavailableError, match=r"refuses model\.mpk: the packed file is damaged"):
        open_session(packed, CPU)


def test_a_packed_file_that_holds_no_graph_is_refused_by_name(tmp_path: Path) -> None:
    path = tmp_path / "model.mpk"
    path.write_bytes(pack(bytes(1000), [Span(0, 250, 4)]))
    with pytest.raises(RuntimeUnavailableError, match=r"refuses model\.mpk"):
        open_session(path, CPU)


def test_a_packed_variant_is_built_profiled_and_shown_like_any_other(empty: Homes) -> None:
    mipgate(empty, "build", "tests.variants.tiny_specs:PACKED")
    plain, small = said(empty, "show", "tiny")["variants"]
    assert [Path(each["artifact"]["path"]).name for each in (plain, small)] == ["model.onnx", "model.mpk"]
    for each in (plain, small):
        path = Path(each["artifact"]["path"])
        assert path.stat().st_size == each["artifact"]["bytes"]
        assert each["profiles"]
    assert small["artifact"]["bytes"] < plain["artifact"]["bytes"] / 5
    assert "size" in small["gain"]
