"""Whether an exported file computes what the model did, at any batch size."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from compression.data import Split
from compression.model import TorchModel
from compression.signature import Signature
from compression.training import predict as predict_torch
from variants.profiling import predict
from variants.runtime import Runtime, Session, open_session

# Largest difference that is rounding, as a share of the outputs' largest magnitude.
_TOLERANCE = 1e-3
_SMALLEST = 1e-12


class ParityError(Exception):
    """The artifact does not compute what it should."""


def verify(
    path: Path, runtime: Runtime, signature: Signature, rows: Split, torch_model: TorchModel | None
) -> dict[str, float]:
    """Reloads an artifact and checks its outputs.

    Args:
        path: The ONNX file.
        runtime: Where to run it.
        signature: What it must give.
        rows: Real inputs.
        torch_model: What was exported, when nothing changed the graph since; None otherwise.

    Returns:
        `export_error`: largest difference from `torch_model` (when given), and `batch_dependence`:
        largest difference of a row's output alone and among others. Dynamic quantization takes its ranges
        from the whole batch, so its rows do depend on their company.

    Raises:
        ParityError: Shapes, dtypes or values are wrong.
    """
    session = open_session(path, runtime)
    together = predict(session, rows)
    _check_outputs(signature, together, len(rows))
    figures = {"batch_dependence": _batch_dependence(session, rows, together)}
    if torch_model is not None:
        expected = dict(zip(together, predict_torch(torch_model, rows), strict=True))
        figures["export_error"] = _largest_difference(expected, together)
        for name, array in expected.items():
            scale = float(np.abs(array).max())
            error = _largest_difference({name: array}, together)
            if error > _TOLERANCE * max(scale, _SMALLEST):
                raise ParityError(
                    f"the exported graph's \"{name}\" differs from the module's by {error:.3g} at values up "
                    f"to {scale:.3g}. Look for operations that depend on the batch or on tracing."
                )
    return figures


def _check_outputs(signature: Signature, outputs: dict[str, np.ndarray], rows: int) -> None:
    for spec in signature.outputs:
        array = outputs.get(spec.name)
        if array is None or array.dtype != np.dtype(spec.dtype) or len(array) != rows:
            given = "nothing" if array is None else f"{array.dtype} {list(array.shape)}"
            raise ParityError(
                f'output "{spec.name}" should be {spec.dtype} {spec.wire_shape}; the artifact gives {given}'
            )
        if not spec.accepts_shape(array.shape):
            raise ParityError(
                f'output "{spec.name}" has shape {list(array.shape)}; expected {spec.wire_shape}'
            )
        if not np.isfinite(array).all():
            raise ParityError(f'output "{spec.name}" holds values that are not finite')


def _batch_dependence(session: Session, rows: Split, together: dict[str, np.ndarray]) -> float:
    first = rows.take(slice(0, 8))
    alone = [session.run_named(row) for row in first.batches(1)]
    stacked = {name: np.concatenate([outputs[name] for outputs in alone]) for name in together}
    return _largest_difference({name: array[: len(first)] for name, array in together.items()}, stacked)


def _largest_difference(expected: dict[str, np.ndarray], given: dict[str, np.ndarray]) -> float:
    return max(
        float(np.abs(expected[name].astype(np.float64) - given[name].astype(np.float64)).max())
        for name in expected
    )
