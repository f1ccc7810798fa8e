"""Runtimes: what was asked for runs, or an error says why not."""

from __future__ import annotations

import os
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from tests.variants.handmade import HOST
from variants.host import this_host
from variants.runtime import (
    ENGINES,
    REFERENCE_ENGINE,
    Runtime,
    RuntimeUnavailableError,
    available_runtimes,
    open_session,
    reference_runtime,
)

CPU = Runtime("onnxruntime-cpu", "f32", 1)
OPENVINO = Runtime("onnxruntime-openvino", "f32", 1)
WHY_NO_OPENVINO = ENGINES["onnxruntime-openvino"].why_missing()
needs_openvino = pytest.mark.skipif(WHY_NO_OPENVINO is not None, reason=WHY_NO_OPENVINO or "")
X = np.array([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]], np.float32)


@pytest.fixture(scope="module")
def double(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`doubled = x + x`, `product = x @ weight`."""
    weight = np.arange(6, dtype=np.float32).reshape(3, 2) / 3
    return _write(
        tmp_path_factory.mktemp("graphs") / "double.onnx",
        [("Add", ["x", "x"], ["doubled"]), ("MatMul", ["x", "weight"], ["product"])],
        {"doubled": 3, "product": 2},
        {"weight": weight},
    )


def _write(
    path: Path,
    nodes: list[tuple[str, list[str], list[str]]],
    outputs: dict[str, int],
    weights: dict[str, Any],
    domain: str = "",
) -> Path:
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    def value(name: str, width: int) -> onnx.ValueInfoProto:
        return helper.make_tensor_value_info(name, TensorProto.FLOAT, ["batch", width])

    graph = helper.make_graph(
        [helper.make_node(kind, takes, gives, domain=domain) for kind, takes, gives in nodes],
        "graph",
        [value("x", 3)],
        [value(name, width) for name, width in outputs.items()],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    opsets = [helper.make_opsetid("", 17)] + ([helper.make_opsetid(domain, 1)] if domain else [])
    onnx.save_model(helper.make_model(graph, opset_imports=opsets, ir_version=9), path)
    return path


def test_a_session_answers_by_position_and_by_name(double: Path) -> None:
    session = open_session(double, CPU)
    assert session.output_names == ["doubled", "product"]
    assert session.runtime == CPU
    doubled, product = session.run({"x": X})
    assert np.array_equal(doubled, 2 * X)
    assert product.shape == (2, 2)
    named = session.run_named({"x": X})
    assert list(named) == session.output_names
    assert np.array_equal(named["product"], product)


@pytest.mark.parametrize("rows", [1, 2, 33])
def test_a_batch_may_have_any_length(double: Path, rows: int) -> None:
    batch = np.ones((rows, 3), np.float32)
    assert [len(output) for output in open_session(double, CPU).run({"x": batch})] == [rows, rows]


@needs_openvino
def test_openvino_leaves_the_calling_thread_where_it_may_run(double: Path) -> None:
    """Pinned, the threads of all workers would share the first core."""
    session = open_session(double, OPENVINO)
    batch = {"x": np.ones((50_000, 3), np.float32)}

    def call() -> None:
        for _ in range(200):
            session.run(batch)

    caller = threading.Thread(target=call)
    caller.start()
    seen = set()
    while caller.is_alive():
        with suppress(ProcessLookupError):
            seen.add(frozenset(os.sched_getaffinity(caller.native_id or 0)))
    assert seen == {frozenset(os.sched_getaffinity(0))}


def test_an_unknown_engine_is_refused_with_those_that_exist(double: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r'unknown runtime "abacus".*onnxruntime-cpu'):
        open_session(double, Runtime("abacus", "f32", 1))


@pytest.mark.parametrize("engine", ENGINES)
def test_an_engine_runs_here_or_says_why_not(double: Path, engine: str) -> None:
    reason = ENGINES[engine].why_missing()
    runtime = Runtime(engine, "f32", 1)
    if reason is None:
        assert np.array_equal(open_session(double, runtime).run({"x": X})[0], 2 * X)
        return
    assert len(reason.split(". ")) >= 1
    assert reason.endswith(".")
    with pytest.raises(RuntimeUnavailableError, match=f"{engine} is missing") as caught:
        open_session(double, runtime)
    assert reason in str(caught.value)


@pytest.mark.parametrize(
    "content", [b"", b"not a graph", b"\x08\x09\x12\x00"], ids=["empty", "text", "no graph"]
)
def test_a_file_that_is_no_graph_is_refused_by_name(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "wrong.onnx").write_bytes(content)
    with pytest.raises(RuntimeUnavailableError, match=r"onnxruntime-cpu.* refuses wrong\.onnx"):
        open_session(tmp_path / "wrong.onnx", CPU)


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path: Path) -> None:
    with pytest.raises(RuntimeUnavailableError, match=r"refuses gone\.onnx"):
        open_session(tmp_path / "gone.onnx", CPU)


def test_an_operator_that_no_engine_has_is_refused_when_it_is_opened(tmp_path: Path) -> None:
    path = _write(tmp_path / "odd.onnx", [("Transmogrify", ["x"], ["y"])], {"y": 3}, {}, domain="nowhere")
    with pytest.raises(RuntimeUnavailableError, match="Transmogrify"):
        open_session(path, CPU)


def test_the_reference_runs_in_true_f32_on_the_cpu() -> None:
    host = this_host()
    assert reference_runtime(host) == Runtime(REFERENCE_ENGINE, "f32", host.threads)
    offered = available_runtimes(host)
    assert reference_runtime(host) in offered
    assert (offered[0].engine, offered[0].precision) == (REFERENCE_ENGINE, "f32")
    assert max(runtime.threads for runtime in offered) == host.threads


def test_runtimes_that_are_offered_open(double: Path) -> None:
    for runtime in available_runtimes(this_host()):
        assert len(open_session(double, runtime).run({"x": X})[0]) == 2


def test_a_precision_is_only_offered_where_the_cpu_has_it() -> None:
    assert ENGINES["onnxruntime-cpu"].precisions(HOST) == ("f32",)
    assert ENGINES["onnxruntime-openvino"].precisions(HOST) == ("f32",)  # avx2 only
    assert str(Runtime("some", "f32", 2)) != str(Runtime("some", "bf16", 2))


@needs_openvino
def test_openvino_computes_in_f32_when_asked_to(tmp_path: Path) -> None:
    """Sums that bf16's 8 bits cannot hold; without the hint OpenVINO uses bf16 where the CPU has it."""
    weight = np.array([[1.0], [1 / 1024], [1 / 4096]], np.float32)
    path = _write(tmp_path / "sum.onnx", [("MatMul", ["x", "weight"], ["y"])], {"y": 1}, {"weight": weight})
    x = np.array([[1.0, 1.0, 1.0]], np.float32)
    assert open_session(path, OPENVINO).run({"x": x})[0] == pytest.approx(x @ weight, abs=1e-6)


@needs_openvino
def test_openvino_does_not_hand_a_graph_to_the_cpu_unnoticed(tmp_path: Path) -> None:
    path = _write(
        tmp_path / "ours.onnx",
        [("Gelu", ["x"], ["y"])],  # an operator of onnxruntime's own domain
        {"y": 3},
        {},
        domain="com.microsoft",
    )
    assert open_session(path, CPU).run({"x": X})[0].shape == X.shape
    try:
        outputs = open_session(path, OPENVINO).run({"x": X})  # it has the operator itself
    except RuntimeUnavailableError:
        return  # it says that it has not
    assert outputs[0] == pytest.approx(open_session(path, CPU).run({"x": X})[0], abs=1e-3)
