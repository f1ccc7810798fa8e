"""How an artifact executes: engine, arithmetic precision, threads. One literal table of engines.

A variant is not fast by itself; variant x runtime is. Opening a session never falls back silently to
another engine: what was asked for runs, or `RuntimeUnavailableError` says why not.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import onnxruntime as ort

from compression.container import PACKED_SUFFIX, expand
from compression.sessions import open_exactly
from compression.signature import Array
from variants.host import Host

ort.set_default_logger_severity(3)

_OPENVINO_LIBRARY = "mipgate_openvino"
_OPENVINO_EP = "OpenVINOExecutionProvider"
# Prepared kernels that a session keeps; by default it keeps those of every shape that it ever saw.
_OPENVINO_KERNELS = 1000


class RuntimeUnavailableError(Exception):
    """This host cannot run what was asked for; the message says why and what would help."""


@dataclass(frozen=True, order=True)
class Runtime:
    """Engine, precision and threads.

    Attributes:
        engine: Key in `ENGINES`.
        precision: Arithmetic of floating operations: `f32`, or `bf16` where the CPU has it.
        threads: Threads that one call may use.
    """

    engine: str
    precision: str
    threads: int

    def __str__(self) -> str:
        return f"{self.engine} {self.precision} x{self.threads}"


class Session:
    """An artifact opened on a runtime. `run` may be called from any thread, one call at a time."""

    def __init__(self, session: ort.InferenceSession, runtime: Runtime) -> None:
        self.runtime = runtime
        self.output_names = [output.name for output in session.get_outputs()]
        self._options = ort.RunOptions()
        self._run: Callable[[None, Mapping[str, Array], Any], list[Array]] = session.run

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch.

        Args:
            inputs: Arrays of shape `(batch, ...)` by input name.

        Returns:
            Arrays of shape `(batch, ...)`, in the order of `output_names`.
        """
        self._options.terminate = False
        return self._run(None, inputs, self._options)

    def cancel(self) -> None:
        """Ends the call that runs, if any, with an error; from another thread."""
        self._options.terminate = True

    def run_named(self, inputs: Mapping[str, Array]) -> dict[str, Array]:
        """Runs one batch and names the outputs."""
        return dict(zip(self.output_names, self.run(inputs), strict=True))


@dataclass(frozen=True)
class Engine:
    """One way to execute an ONNX file.

    Attributes:
        precisions: The arithmetics that it offers on a host.
        why_missing: Why it cannot run here, or None when it can.
        configure: Adds it to session options.
        prepares_shapes: Whether the first call with new shapes takes far longer than those that follow.
    """

    precisions: Callable[[Host], tuple[str, ...]]
    why_missing: Callable[[], str | None]
    configure: Callable[[ort.SessionOptions, Runtime], None]
    prepares_shapes: bool = False


def _cpu_precisions(_: Host) -> tuple[str, ...]:
    return ("f32",)  # MLAS has no x86 kernels for half precision products


def _cpu_never_missing() -> None:
    return None


def _configure_cpu(options: ort.SessionOptions, runtime: Runtime) -> None:
    options.intra_op_num_threads = runtime.threads


def _openvino_precisions(host: Host) -> tuple[str, ...]:
    has_bf16 = {"avx512_bf16", "amx_bf16"} & set(host.features)
    return ("f32", "bf16") if has_bf16 else ("f32",)


@cache
def _register_openvino() -> str | None:
    """Registers the plugin once per process; returns why that is impossible, or None."""
    try:
        import onnxruntime_ep_openvino as plugin
    except ImportError:
        return "the package onnxruntime-ep-openvino is not installed. Install it with pip (x86-64 only)."
    try:
        ort.register_execution_provider_library(_OPENVINO_LIBRARY, plugin.get_library_path())
    except Exception as error:
        return f"the OpenVINO plugin does not load: {error}. Reinstall onnxruntime-ep-openvino."
    return None


def _openvino_devices() -> list[Any]:
    return [
        device
        for device in ort.get_ep_devices()
        if device.ep_name == _OPENVINO_EP and device.ep_metadata.get("ov_device") == "CPU"
    ]


def _openvino_why_missing() -> str | None:
    if reason := _register_openvino():
        return reason
    if not _openvino_devices():
        vendors = ", ".join(sorted({device.device.vendor for device in ort.get_ep_devices()}))
        return (
            f"the OpenVINO plugin offers no CPU device here ({vendors}); it serves Intel CPUs. Nothing to do."
        )
    return None


def _configure_openvino(options: ort.SessionOptions, runtime: Runtime) -> None:
    properties = {
        "CPU": {
            # Without the hint OpenVINO computes in bf16 wherever the CPU can, even for an FP32 file.
            "INFERENCE_PRECISION_HINT": runtime.precision,
            "INFERENCE_NUM_THREADS": runtime.threads,
            # Pinned, the calling threads of all workers would share the first core.
            "ENABLE_CPU_PINNING": "NO",
            "CPU_RUNTIME_CACHE_CAPACITY": _OPENVINO_KERNELS,
        }
    }
    options.intra_op_num_threads = 1  # OpenVINO has threads of its own
    options.add_provider_for_devices(_openvino_devices()[:1], {"load_config": json.dumps(properties)})
    # `get_providers()` lists the CPU provider in any case and proves nothing; this makes a fallback an error.
    options.add_session_config_entry("session.disable_cpu_ep_fallback", "1")


ENGINES: dict[str, Engine] = {
    "onnxruntime-cpu": Engine(_cpu_precisions, _cpu_never_missing, _configure_cpu),
    "onnxruntime-openvino": Engine(
        _openvino_precisions, _openvino_why_missing, _configure_openvino, prepares_shapes=True
    ),
}

REFERENCE_ENGINE = "onnxruntime-cpu"


def available_runtimes(host: Host) -> list[Runtime]:
    """Every runtime that this host offers, the reference engine first.

    Each with one thread and with all of a worker's: threads that wait for each other slow a small model down.
    """
    return [
        Runtime(name, precision, threads)
        for name, engine in ENGINES.items()
        if engine.why_missing() is None
        for precision in engine.precisions(host)
        for threads in sorted({1, host.threads})
    ]


def reference_runtime(host: Host) -> Runtime:
    """The runtime that the reference's outputs are defined by: true f32 on the CPU."""
    return Runtime(REFERENCE_ENGINE, "f32", host.threads)


def open_session(path: Path, runtime: Runtime) -> Session:
    """Opens a model file: plain ONNX, or a packed one (`.mpk`), which is expanded in memory first.

    Raises:
        RuntimeUnavailableError: The engine is unknown or missing here, or refuses the file; or a packed file
            is damaged or would expand to more than it may.
    """
    engine = ENGINES.get(runtime.engine)
    if engine is None:
        raise RuntimeUnavailableError(f'unknown runtime "{runtime.engine}". There are {", ".join(ENGINES)}.')
    if reason := engine.why_missing():
        raise RuntimeUnavailableError(f"{runtime.engine} is missing: {reason}")

    def configure(options: ort.SessionOptions) -> None:
        options.inter_op_num_threads = 1
        # Idle threads that spin would take the cores that requests are decoded on.
        options.add_session_config_entry("session.force_spinning_stop", "1")
        engine.configure(options, runtime)

    try:
        model = expand(path.read_bytes()) if path.suffix == PACKED_SUFFIX else path
        return Session(open_exactly(model, configure), runtime)
    except Exception as error:
        raise RuntimeUnavailableError(f"{runtime} refuses {path.name}: {error}") from error
