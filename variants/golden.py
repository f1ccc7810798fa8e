"""Golden rows: whether an artifact answers here as it did where it was built, or where it was measured.

The same INT8 graph gives other results on another CPU's kernels or another onnxruntime. What lies outside the
tolerance is not wrong by itself, but its quality must be measured where it serves.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from compression.signature import Array

# Largest deviation that rounding explains, as a share of the outputs' spread.
_F32_TOLERANCE = 1e-3
_LOW_PRECISION_TOLERANCE = 0.05
_FULL_PRECISION = {"float32", "float64"}
# Threads add in another order each time: what was measured may be exceeded by so much.
_REPEATED = 1.25
_LARGEST = 1e6


def deviation(outputs: Mapping[str, Array], golden: Mapping[str, Array]) -> float:
    """Largest difference from the golden outputs, as a share of the standard deviation of each.

    Of outputs that are no floats, the share of values that differ. JSON has no infinity: what is not finite
    on one side only counts as `_LARGEST`.
    """
    return min(_LARGEST, max(_deviation(outputs[name], expected) for name, expected in golden.items()))


def tolerance(precision: str, weights: Mapping[str, int]) -> float:
    """The deviation that is rounding: tight at full precision, looser with INT8, FP16 or BF16.

    Args:
        precision: Arithmetic of the runtime, `f32` or `bf16`.
        weights: How many weights the artifact stores in each number format; empty when unknown.
    """
    is_full = precision == "f32" and bool(weights) and weights.keys() <= _FULL_PRECISION
    return _F32_TOLERANCE if is_full else _LOW_PRECISION_TOLERANCE


def is_trusted(found: float, measured: float | None, allowed: float) -> bool:
    """Whether quality as it was measured still holds.

    Args:
        found: The deviation now.
        measured: The deviation when quality was measured on this host; None when it was not recorded.
        allowed: What rounding explains.
    """
    return found <= max(allowed, (measured or 0.0) * _REPEATED)


def _deviation(given: Array, expected: Array) -> float:
    if given.shape != expected.shape:
        return _LARGEST
    if expected.dtype.kind != "f":
        return float((given != expected).mean())
    ours, theirs = given.astype(np.float64), expected.astype(np.float64)
    same = (ours == theirs) | (np.isnan(ours) & np.isnan(theirs))
    if same.all():
        return 0.0
    spread = float(np.std(theirs)) or 1.0
    largest = float(np.abs(ours[~same] - theirs[~same]).max()) / spread
    return largest if np.isfinite(largest) else _LARGEST
