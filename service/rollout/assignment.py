"""Which arm a request gets, and which arms get a copy of it."""

from __future__ import annotations

from hashlib import blake2b

from service.rollout.rollout import PRIMARY, Arm, Kind, Rollout

_RANGE = 2.0**-64


def position(rollout: Rollout, key: str) -> float:
    """Where in 0..1 a caller lies: the same at all times, and unrelated from one rollout to the next."""
    digest = blake2b(key.encode(), digest_size=8, salt=rollout.salt).digest()
    return int.from_bytes(digest, "little") * _RANGE


def assign(rollout: Rollout, key: str | float, tier: str) -> Arm | None:
    """The arm of a request.

    An arm is an interval that begins at 0: while a single candidate's weight grows, a caller moves to it at
    most once, and to nowhere else.

    Args:
        rollout: The rollout of the model.
        key: The caller's sticky key, or a draw from 0..1 for a request without one.
        tier: The request's tier.

    Returns:
        None where the rollout does not apply.
    """
    if not rollout.is_serving or rollout.tier not in (None, tier):
        return None
    place = key if isinstance(key, float) else position(rollout, key)
    for end, arm in rollout.thresholds:
        if place < end:
            return arm
    return rollout.primary


def shadow_draw(rollout: Rollout, arm: Arm, draw: float) -> tuple[Arm, ...]:
    """The arms that get a copy of a request, for comparison with the answer of the arm that has it.

    What the primary answers is copied to the candidates that have not failed; what a candidate answers, to
    the primary. The comparison counts for the candidate either way.

    Args:
        rollout: The rollout that the request takes part in.
        arm: The arm that answers.
        draw: From 0..1.
    """
    if draw >= rollout.fraction or not rollout.is_serving:
        return ()
    return rollout.contenders if arm.name == PRIMARY else (rollout.primary,)


def counts_copies(rollout: Rollout) -> bool:
    """Whether a copy counts as a request of its arm: only where candidates see nothing else.

    Copies wait behind all requests, so that among requests they would spoil the latencies.
    """
    return rollout.kind is Kind.SHADOW
