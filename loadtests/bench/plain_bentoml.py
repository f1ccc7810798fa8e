"""The same ONNX file served as BentoML's documentation shows it: an API of arrays around a session.

`BENCH_ONNX` names the file, `BENCH_THREADS` the threads of one call.
"""

from __future__ import annotations

import os
from typing import Any

import bentoml
import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray


@bentoml.service(name="plain", workers=1)
class Plain:
    """One model behind BentoML's own request path."""

    def __init__(self) -> None:
        options = ort.SessionOptions()
        options.intra_op_num_threads = int(os.environ["BENCH_THREADS"])
        self.session = ort.InferenceSession(
            os.environ["BENCH_ONNX"], options, providers=["CPUExecutionProvider"]
        )
        self.input = self.session.get_inputs()[0].name

    @bentoml.api
    def predict(self, rows: np.ndarray) -> np.ndarray:
        """The first output of a batch of rows."""
        outputs: list[NDArray[Any]] = self.session.run(None, {self.input: rows.astype(np.float32)})
        return outputs[0]
