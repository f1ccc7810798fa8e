"""The session of the bench's peers, which run without this project's packages."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import onnx
import pytest
from onnx import TensorProto, helper

from variants.runtime import ENGINES

WHY_NO_OPENVINO = ENGINES["onnxruntime-openvino"].why_missing()
SESSIONS = """
import sys
import numpy as np
from loadtests.bench.peers.session import OnnxModel
for precision in ("f32", "f32"):
    model = OnnxModel(sys.argv[1], "onnxruntime-openvino", precision, 1)
    assert (model.run(np.ones((2, 3), np.float32)) == 1).all()
"""


@pytest.mark.skipif(WHY_NO_OPENVINO is not None, reason=WHY_NO_OPENVINO or "")
def test_a_process_may_open_several_models_on_openvino(tmp_path: Path) -> None:
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", 3]) for name in ("x", "y")]
    graph = helper.make_graph([helper.make_node("Relu", ["x"], ["y"])], "tried", ends[:1], ends[1:])
    path = tmp_path / "model.onnx"
    onnx.save_model(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)]), path)
    ended = subprocess.run([sys.executable, "-c", SESSIONS, path], capture_output=True, text=True)
    assert ended.returncode == 0, ended.stderr
