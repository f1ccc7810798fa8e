"""Small rollouts and evidence, as operators and traffic make them."""

from dataclasses import replace

from service.rollout.evidence import ArmEvidence, ArmTally, Comparisons
from service.rollout.guard import parse_guard
from service.rollout.rollout import Arm, Kind, Rollout, Transition


def canary(
    name: str = "r1",
    *,
    model: str = "digits",
    tier: str | None = None,
    build: str = "000000000001",
    now: float,
    **fields: object,
) -> Rollout:
    """A canary of two steps whose answers must agree."""
    arms = Arm("primary", f"fp32@{build}", 100.0, 95.0), Arm("candidate", f"int8@{build}", 0.0, 5.0)
    rollout = Rollout(
        id=name, model=model, tier=tier, kind=Kind.CANARY, arms=arms, created=now, entered=now, updated=now,
        deadline=now + 600, guards=(parse_guard("agreement>=0.9@95%,n=50"),), steps=(5.0, 100.0),
        step_duration_s=0.0, fraction=1.0, reason="begins",
    )  # fmt: skip
    return replace(rollout, **fields)  # type: ignore[arg-type]


def begun(rollout: Rollout) -> Transition:
    return Transition(rollout, rollout.reason, rollout.created, "alice")


def answers(count: int, *, errors: int = 0, agreeing: float = 1.0) -> ArmEvidence:
    tally = ArmTally()
    for _ in range(count):
        tally.answered(0.002)
    tally.errors = errors
    tally.compared(Comparisons(count, count * agreeing, count * agreeing, 0.0))
    return tally.take()
