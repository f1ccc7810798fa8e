"""Triton, Python backend: copied as `model.py` into a model repository.

`BENCH_ROOT` is where `loadtests` lies.
"""

from __future__ import annotations

import os
import sys
from typing import Any

import numpy as np
import triton_python_backend_utils as triton

# This backend ignores PYTHONPATH.
sys.path.insert(0, os.environ["BENCH_ROOT"])

from loadtests.bench.peers.session import served


class TritonPythonModel:
    """One ONNX file; requests that come together run as one batch."""

    def initialize(self, args: dict[str, str]) -> None:
        """Opens the model."""
        self.model = served()

    def execute(self, requests: list[Any]) -> list[Any]:
        """One batch of what Triton's dynamic batcher has put together."""
        parts = [triton.get_input_tensor_by_name(each, self.model.input).as_numpy() for each in requests]
        outputs = self.model.run(parts[0] if len(parts) == 1 else np.concatenate(parts))
        cuts = np.cumsum([len(part) for part in parts])[:-1]
        return [triton.InferenceResponse([triton.Tensor("output", part)]) for part in np.split(outputs, cuts)]
