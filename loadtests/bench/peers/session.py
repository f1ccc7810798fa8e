"""The model, opened the same way in every peer: engine, precision and threads of Mipgate's own profile."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray

MAX_BATCH = 32
_OPENVINO_LIBRARY, _OPENVINO_EP = "bench_openvino", "OpenVINOExecutionProvider"
_DTYPES = {"tensor(float)": np.float32, "tensor(uint8)": np.uint8}


class OnnxModel:
    """One ONNX file of one input.

    Args:
        path: The file.
        engine: `onnxruntime-cpu` or `onnxruntime-openvino`.
        precision: Of floating operations: `f32` or `bf16`.
        threads: Of one call.
    """

    def __init__(self, path: str, engine: str, precision: str, threads: int) -> None:
        options = ort.SessionOptions()
        options.inter_op_num_threads = 1
        # As in Mipgate: idle threads that spin would take the cores that requests are decoded on.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        if engine == "onnxruntime-openvino":
            _add_openvino(options, precision, threads)
        else:
            options.intra_op_num_threads = threads
        self._session = ort.InferenceSession(path, options)
        given = self._session.get_inputs()[0]
        self.input: str = given.name
        self.row_shape: tuple[int, ...] = tuple(given.shape[1:])
        self.dtype = np.dtype(_DTYPES[given.type])

    def rows(self, values: Sequence[Any] | NDArray[Any]) -> NDArray[Any]:
        """Rows `(batch, ...)` of nested or flat numbers."""
        return np.asarray(values, self.dtype).reshape(-1, *self.row_shape)

    def rows_of(self, raw: bytes) -> NDArray[Any]:
        """Rows `(batch, ...)` of row-major bytes."""
        return np.frombuffer(raw, self.dtype).reshape(-1, *self.row_shape)

    def run(self, rows: NDArray[Any]) -> NDArray[Any]:
        """The first output `(batch, ...)`."""
        outputs: list[NDArray[Any]] = self._session.run(None, {self.input: rows})
        return outputs[0]


def served() -> OnnxModel:
    """What this peer serves: `BENCH_ONNX`, `BENCH_ENGINE`, `BENCH_PRECISION`, `BENCH_THREADS`."""
    told = os.environ
    return OnnxModel(
        told["BENCH_ONNX"], told["BENCH_ENGINE"], told["BENCH_PRECISION"], int(told["BENCH_THREADS"])
    )


@cache
def _openvino_devices() -> list[Any]:
    """OpenVINO's processor; a process registers the library once, whatever sessions follow."""
    import onnxruntime_ep_openvino as plugin

    ort.register_execution_provider_library(_OPENVINO_LIBRARY, plugin.get_library_path())
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == _OPENVINO_EP and device.ep_metadata.get("ov_device") == "CPU"
    ][:1]


def _add_openvino(options: ort.SessionOptions, precision: str, threads: int) -> None:
    properties = {"CPU": {"INFERENCE_PRECISION_HINT": precision, "INFERENCE_NUM_THREADS": threads}}
    options.add_provider_for_devices(_openvino_devices(), {"load_config": json.dumps(properties)})
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")
