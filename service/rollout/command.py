"""What an operator may do to a rollout: promote, pause, resume, abort."""

from __future__ import annotations

from enum import StrEnum

from service.errors import ConflictError
from service.rollout.machine import change, promote, send_back
from service.rollout.rollout import Kind, Phase, Rollout, Transition


class Verb(StrEnum):
    """A change that an operator asks for."""

    PROMOTE = "promote"
    PAUSE = "pause"
    RESUME = "resume"
    ABORT = "abort"


_RUNNING = (Phase.PROGRESSING, Phase.WAITING)
_ALLOWED: dict[Verb, tuple[Phase, ...]] = {
    Verb.PROMOTE: _RUNNING,
    Verb.PAUSE: _RUNNING,
    Verb.RESUME: _RUNNING,
    Verb.ABORT: (Phase.INITIALIZING, *_RUNNING, Phase.PROMOTING),
}


def command(rollout: Rollout, verb: Verb, who: str, now: float) -> Transition:
    """Carries out what an operator asks for.

    Args:
        rollout: Where it stands.
        verb: What is asked for.
        who: Who asks.
        now: Seconds since the epoch.

    Raises:
        ConflictError: The rollout's state does not allow it.
    """
    _check(rollout, verb)
    if verb is Verb.PROMOTE:
        winners = rollout.contenders
        if rollout.kind is Kind.BANDIT:
            winners = (max(winners, key=lambda arm: arm.weight),)
        return promote(rollout, winners, now, f"promoted by {who}", who)
    if verb is Verb.ABORT:
        return send_back(rollout, Phase.FAILED, now, f"aborted by {who}", who)
    if verb is Verb.PAUSE:
        return change(rollout, now, f"paused by {who}", who, phase=Phase.WAITING, paused=now)
    lost_s = now - (rollout.paused or now)  # time that does not count
    return change(
        rollout,
        now,
        f"resumed by {who}",
        who,
        phase=Phase.PROGRESSING,
        paused=None,
        entered=rollout.entered + lost_s,
        deadline=rollout.deadline + lost_s,
    )


def _check(rollout: Rollout, verb: Verb) -> None:
    paused = rollout.paused is not None
    state = f"{rollout.phase.value}, paused" if paused else rollout.phase.value
    if rollout.phase not in _ALLOWED[verb]:
        allowed = ", ".join(phase.value for phase in _ALLOWED[verb])
        raise ConflictError(
            f"rollout {rollout.id} is {state}; {verb.value} needs one that is {allowed}. "
            f"See `mipgate rollout status {rollout.model}`."
        )
    if verb is Verb.PAUSE and paused:
        raise ConflictError(f"rollout {rollout.id} is {state} already. Resume or abort it.")
    if verb is Verb.RESUME and not paused:
        raise ConflictError(f"rollout {rollout.id} is {state}, not paused. Pause it first.")
