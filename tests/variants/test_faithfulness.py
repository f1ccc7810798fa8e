"""A runtime whose answers are not those of the artifact is found out, whatever the metric reads."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from compression.signature import Array
from tests.variants.test_runtime import CPU, OPENVINO, needs_openvino
from variants.faithfulness import UnfaithfulRuntimeError, check_beside
from variants.runtime import open_session

ROWS = np.random.default_rng(0).normal(size=(32, 3)).astype(np.float32)
BATCHES = {size: {"x": ROWS[:size]} for size in (1, 2, 8, 32)}


def answering(**outputs: Any) -> Any:
    """A session whose outputs are functions of its input."""
    return SimpleNamespace(
        runtime=CPU,
        output_names=list(outputs),
        run_named=lambda inputs: {name: make(inputs["x"]) for name, make in outputs.items()},
    )


def only_the_first(x: Array) -> Array:
    return np.concatenate([x[:1], np.zeros_like(x[1:])])


def labels(x: Array) -> Array:
    return x.argmax(axis=1)


def with_a_hole(x: Array) -> Array:
    return np.where(x == x.max(), np.float32(np.nan), x)


RIGHT = answering(y=lambda x: 100 + x, label=labels)


@pytest.mark.parametrize(
    "given",
    [
        answering(y=lambda x: 100 + x + np.float32(0.2), label=labels),  # coarse, and no fault
        answering(y=lambda x: 100 + x, label=lambda x: np.where(x[:, 0] > 1, 2, labels(x))),
    ],
    ids=["rounded", "some other labels"],
)
def test_rounding_is_no_fault(given: Any) -> None:
    check_beside(given, RIGHT, BATCHES)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (only_the_first, lambda x: x),
        (lambda x: x[::-1], lambda x: x),
        (lambda x: x[:, :2], lambda x: x),
        (with_a_hole, lambda x: x),
        (lambda x: 0 * x, lambda x: 100 + x),
        (lambda x: 3 - labels(x), labels),
    ],
    ids=["rows of zeros", "rows of others", "another shape", "not finite", "zeros", "other labels"],
)
def test_what_is_computed_otherwise_is_a_fault_of_the_output_that_shows_it(wrong: Any, right: Any) -> None:
    with pytest.raises(UnfaithfulRuntimeError, match='output "second" is not what onnxruntime-cpu f32 x1'):
        check_beside(answering(first=labels, second=wrong), answering(first=labels, second=right), BATCHES)


def test_answers_that_are_not_finite_either_way_are_alike() -> None:
    holes = answering(y=with_a_hole, z=lambda x: np.full_like(x, np.inf))
    check_beside(holes, holes, BATCHES)


@needs_openvino
def test_a_fault_of_openvino_is_found_out(tmp_path: Path) -> None:
    """OpenVINO 2026.4 computes the mean of quantized tokens for the first row of a batch alone."""
    stored = {"scale": np.float32(1 / 255), "zero": np.uint8(0), "axes": np.array([1], np.int64)}
    graph = helper.make_graph(
        [
            helper.make_node("QuantizeLinear", ["x", "scale", "zero"], ["q"]),
            helper.make_node("DequantizeLinear", ["q", "scale", "zero"], ["d"]),
            helper.make_node("ReduceSum", ["d", "axes"], ["y"], keepdims=0),
        ],
        "mean",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", 16, 32])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", 32])],
        [numpy_helper.from_array(np.asarray(array), name) for name, array in stored.items()],
    )
    path = tmp_path / "mean.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8), path)
    tokens = np.random.default_rng(0).random((8, 16, 32)).astype(np.float32)
    reference, session = open_session(path, CPU), open_session(path, OPENVINO)
    check_beside(session, reference, {1: {"x": tokens[:1]}})
    with pytest.raises(UnfaithfulRuntimeError, match='output "y"'):
        check_beside(session, reference, {1: {"x": tokens[:1]}, 8: {"x": tokens}})
