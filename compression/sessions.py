"""How onnxruntime opens a graph, in builds and where it serves. Torch-free."""

from __future__ import annotations

import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

import onnxruntime as ort
from onnxruntime.capi.onnxruntime_pybind11_state import Fail

ERRORS_ONLY, NOTHING = 3, 4
_EXACT = "session.x64quantprecision"
# What onnxruntime says of a stored weight, or zero point, that several operators read.
_SHARED = "Attempt to replace the existing tensor"

log = logging.getLogger(__name__)


def open_exactly(
    model: bytes | Path,
    configure: Callable[[ort.SessionOptions], None],
    *,
    severity: int = ERRORS_ONLY,
    **settings: Any,
) -> ort.InferenceSession:
    """Opens a graph so that it gives the same answers on each processor.

    On x86 without VNNI onnxruntime would add two products of eight bits in sixteen, which overflow. It is
    told to compute those exactly, in a slower way; weights of seven bits (`reduce_range`) do not need it and
    lose no time, nor do processors with VNNI. Where onnxruntime cannot, as operators share a weight, it
    overflows and the log says so: what that costs, the quality that is measured on the host shows.

    Args:
        model: A graph, or the file of one.
        configure: Sets all other options.
        severity: The least that onnxruntime logs.
        settings: Further arguments of the session.
    """
    for exact in (True, False):
        options = ort.SessionOptions()
        options.log_severity_level = severity
        configure(options)
        if exact:
            options.add_session_config_entry(_EXACT, "1")
        try:
            return ort.InferenceSession(model, options, **settings)
        except Fail as error:
            if not exact or _SHARED not in str(error):
                raise
            log.warning("sums of products may overflow in a graph whose operators share a quantized weight")
    raise AssertionError("the second try returns or raises")
