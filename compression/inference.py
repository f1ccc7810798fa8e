"""Runs an artifact once, to see that it runs. Serving has its own runtimes."""

from __future__ import annotations

import onnxruntime as ort

from compression.data import Split
from compression.model import OnnxModel
from compression.signature import Array

ERRORS_ONLY = 3


def infer(model: OnnxModel, split: Split, rows: int) -> list[Array]:
    """The outputs of onnxruntime on the processor for the first rows: one array `(rows, ...)` each."""
    options = ort.SessionOptions()
    options.log_severity_level = ERRORS_ONLY
    options.intra_op_num_threads = 1
    session = ort.InferenceSession(
        model.proto.SerializeToString(), options, providers=["CPUExecutionProvider"]
    )
    few = split.take(slice(0, rows))
    arrays = {spec.name: few.inputs[spec.name] for spec in model.signature.inputs}
    return list(session.run([spec.name for spec in model.signature.outputs], arrays))
