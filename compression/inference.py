"""Runs an artifact once, to see that it runs. Serving has its own runtimes."""

from __future__ import annotations

import onnx
import onnxruntime as ort

from compression.data import Split
from compression.model import OnnxModel
from compression.sessions import ERRORS_ONLY, NOTHING, open_exactly
from compression.signature import Array


def open_session(
    proto: onnx.ModelProto, *, threads: int = 1, fused: bool = True, silent: bool = False
) -> ort.InferenceSession:
    """Opens a graph on the processor.

    Args:
        proto: The graph.
        threads: Threads of one call; 0 for one on each core.
        fused: Whether onnxruntime may rewrite the graph to be faster.
        silent: Logs not even errors, which are raised anyway.
    """

    def configure(options: ort.SessionOptions) -> None:
        options.intra_op_num_threads = threads
        if not fused:
            options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL

    severity = NOTHING if silent else ERRORS_ONLY
    return open_exactly(
        proto.SerializeToString(), configure, severity=severity, providers=["CPUExecutionProvider"]
    )


def infer(model: OnnxModel, split: Split, rows: int) -> list[Array]:
    """The outputs of onnxruntime on the processor for the first rows: one array `(rows, ...)` each."""
    session = open_session(model.proto)
    few = split.take(slice(0, rows))
    arrays = {spec.name: few.inputs[spec.name] for spec in model.signature.inputs}
    return list(session.run([spec.name for spec in model.signature.outputs], arrays))
