"""Courses of requests, for tests that need no model."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from service.course import Course, Part
from service.router import Route
from service.scheduler import Completed


def course(**changed: Any) -> Course:
    """An answered request of 10 ms: 2 of routing, 3 of waiting, 4 of computing, 1 more.

    Its route, tier, arm and what the device did go by the names of what they hold; with an error the device
    did nothing.
    """
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
    facts |= changed
    take: Any = facts.pop
    route = Route(take("variant"), take("degraded_from"))
    arm: Any = SimpleNamespace(name=take("arm"))
    nothing: Any = None
    part = take("part", None) or (Part(nothing, arm, route, nothing, None, nothing) if arm.name else None)
    slo = SimpleNamespace(tier=SimpleNamespace(name=take("tier")))
    did = {name: take(name) for name in ("queue_s", "infer_s", "batch_rows", "started")}
    done = None if facts["error"] else Completed([], **did)
    return Course(pinned=None, slo=slo, watch=None, route=route, part=part, done=done, **facts)
