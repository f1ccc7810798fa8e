"""Outcomes for tests that need no model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from service.outcome import Outcome


def outcome(**changed: Any) -> Outcome:
    """An answered request of 10 ms: 2 of routing, 3 of waiting, 4 of computing, 1 more."""
    facts: dict[str, Any] = {
        "request_id": "abc-1",
        "model": SimpleNamespace(name="digits"),
        "variant": SimpleNamespace(name="fp16", key="digits/fp16@0"),
        "tier": "balanced",
        "arm": "",
        "request": SimpleNamespace(rows=1, inputs={}),
        "outputs": {},
        "error": None,
        "arrived": 100.0,
        "transform_s": 0.0,
        "started": 100.005,
        "batch_rows": 3,
        "queue_s": 0.003,
        "infer_s": 0.004,
        "total_s": 0.010,
        "degraded_from": None,
    }
    return Outcome(**(facts | changed))
