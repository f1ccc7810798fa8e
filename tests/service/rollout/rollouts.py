"""Rollouts and evidence for the tests beside this file."""

from __future__ import annotations

from typing import Any

from service.rollout.evidence import ArmEvidence, Comparisons, Feedback, Histogram, bucket
from service.rollout.guard import parse_guard
from service.rollout.rollout import Arm, Kind, Phase, Rollout

FP32, INT8, PRUNED = "fp32@0123456789ab", "int8-static@ba9876543210", "pruned@00ff00ff00ff"


def rollout(kind: Kind = Kind.CANARY, *guards: str, candidates: int = 1, **changes: Any) -> Rollout:
    """A rollout that runs, of a step of 10 seconds and an hour at most."""
    weight = {Kind.CANARY: 5.0, Kind.SHADOW: 0.0}.get(kind, 100.0 / (candidates + 1))
    names = ["candidate", *(f"candidate-{number}" for number in range(2, candidates + 1))]
    settings: dict[str, Any] = {
        "id": "r1",
        "model": "digits",
        "tier": None,
        "kind": kind,
        "arms": (
            Arm("primary", FP32, 100.0 - weight * candidates, 100.0 - weight * candidates),
            *(Arm(name, f"{name}@0123456789ab", weight, weight) for name in names),
        ),
        "created": 1000.0,
        "entered": 1000.0,
        "deadline": 4600.0,
        "guards": tuple(parse_guard(text) for text in guards),
        "steps": (5.0, 25.0, 50.0, 100.0) if kind is Kind.CANARY else (),
        "step_duration_s": 10.0,
        "fraction": 0.1,
        "reward": "accuracy" if kind is Kind.BANDIT else "",
        "phase": Phase.PROGRESSING,
    }
    return Rollout(**settings | changes)


def seen(
    requests: int = 0,
    errors: int = 0,
    ms: float = 5.0,
    compared: tuple[int, float] = (0, 0.0),
    labelled: tuple[int, float] = (0, 0.0),
    **counts: Any,
) -> ArmEvidence:
    """Evidence whose answers all took as long; copies and labels as number and sum."""
    latency = Histogram({bucket(ms / 1e3): requests - errors} if requests > errors else {})
    return ArmEvidence(
        requests,
        errors,
        latency=latency,
        comparisons=Comparisons(compared[0], compared[1], compared[1]),
        feedback=Feedback(labelled[0], labelled[1]),
        **counts,
    )
