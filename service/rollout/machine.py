"""What happens next to a rollout: a pure function of its state, of the evidence, and of the time."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.rollout.bandit import Earned, lead, parse_reward, shares
from service.rollout.evidence import ArmEvidence
from service.rollout.judgement import State, Verdict, exceeds_budget, judge_candidates
from service.rollout.rollout import (
    GATEWAY,
    Arm,
    Kind,
    Observation,
    Outcome,
    Phase,
    Rollout,
    Transition,
)

_NOTHING = ArmEvidence()


def advance(rollout: Rollout, observation: Observation, now: float) -> Transition | None:
    """The next change of a rollout, or None when it stays as it is.

    It changes nothing itself and may be asked as often as one likes: its statistics are valid at all times.

    Args:
        rollout: Where it stands.
        observation: What was seen and done.
        now: Seconds since the epoch.
    """
    ask = _PHASES.get(rollout.phase)
    return ask(rollout, observation, now) if ask else None


def change(
    rollout: Rollout,
    now: float,
    reason: str,
    who: str = GATEWAY,
    figures: Sequence[Verdict] = (),
    **fields: Any,
) -> Transition:
    """The transition to the same rollout with other fields."""
    changed = replace(rollout, **fields, reason=reason, updated=now, version=rollout.version + 1)
    return Transition(changed, reason, now, who, tuple(verdict.to_json() for verdict in figures))


def send_back(
    rollout: Rollout,
    ending: Phase,
    now: float,
    reason: str,
    who: str = GATEWAY,
    figures: Sequence[Verdict] = (),
) -> Transition:
    """All traffic to the primary at once; the phase ends when what is left to do is done."""
    arms = tuple(
        replace(arm, outcome=None) if arm.outcome is Outcome.PASSED else arm
        for arm in rollout.with_weights({}).arms
    )
    return change(
        rollout, now, reason, who, figures, arms=arms, phase=Phase.FINALISING, ending=ending, paused=None
    )


def promote(
    rollout: Rollout,
    winners: Sequence[Arm],
    now: float,
    reason: str,
    who: str = GATEWAY,
    figures: Sequence[Verdict] = (),
) -> Transition:
    """Lets candidates win; a single winner takes all traffic, except that of a shadow."""
    names = [arm.name for arm in winners]
    changed = rollout
    if len(names) == 1 and rollout.kind is not Kind.SHADOW:
        changed = rollout.with_weights({names[0]: 100.0})
    arms = tuple(replace(arm, outcome=Outcome.PASSED) if arm.name in names else arm for arm in changed.arms)
    return change(changed, now, reason, who, figures, arms=arms, phase=Phase.PROMOTING, paused=None)


def _initializing(rollout: Rollout, observation: Observation, now: float) -> Transition | None:
    if observation.done:
        begun = rollout.with_weights({arm.name: arm.planned for arm in rollout.candidates})
        left_s = rollout.deadline - rollout.created
        reason = f"all arms are loaded; {_shared(begun)}"
        return change(begun, now, reason, phase=Phase.PROGRESSING, entered=now, deadline=now + left_s)
    if now >= rollout.deadline:
        return send_back(rollout, Phase.INCONCLUSIVE, now, "not all arms were loaded in time")
    return None


def _running(rollout: Rollout, observation: Observation, now: float) -> Transition | None:
    if over := _over_budget(rollout, observation):
        return _drop(rollout, [verdict.arm for verdict in over], now, _sentences(over), over)
    verdicts = judge_candidates(rollout, observation.evidence)
    if failing := [verdict for verdict in verdicts if verdict.state is State.FAILS]:
        return _drop(rollout, [verdict.arm for verdict in failing], now, _sentences(failing), verdicts)
    if rollout.paused is not None:
        return None
    run = _Run(rollout, observation, now, verdicts)
    if rollout.kind is Kind.BANDIT:
        return run.compete()
    return run.step()


def _promoting(rollout: Rollout, observation: Observation, now: float) -> Transition | None:
    if observation.done:
        winners = _named([arm for arm in rollout.candidates if arm.outcome is Outcome.PASSED])
        reason = f"released {winners}; the router is free to choose"
        return change(rollout, now, reason, phase=Phase.FINALISING, ending=Phase.SUCCEEDED)
    if over := _over_budget(rollout, observation):
        return _drop(rollout, [verdict.arm for verdict in over], now, _sentences(over), over)
    return None


def _finalising(rollout: Rollout, observation: Observation, now: float) -> Transition | None:
    if not observation.done or rollout.ending is None:
        return None
    return change(rollout, now, rollout.reason, phase=rollout.ending)


@dataclass(frozen=True, slots=True)
class _Run:
    """One look at a rollout whose candidates are all within their guards, or not known to be beyond."""

    rollout: Rollout
    observation: Observation
    now: float
    verdicts: tuple[Verdict, ...]

    def step(self) -> Transition | None:
        """Promotes, ends, takes the next step or waits."""
        rollout, is_last = self.rollout, self.rollout.step >= len(self.rollout.steps) - 1
        elapsed = self.now - rollout.entered >= rollout.step_duration_s
        proven = bool(self.verdicts) and all(verdict.state is State.PASSES for verdict in self.verdicts)
        if elapsed and is_last and proven:
            reason = f"{_named(rollout.contenders)} passed: {_sentences(self.verdicts)}"
            return promote(rollout, rollout.contenders, self.now, reason, figures=self.verdicts)
        if self.now >= rollout.deadline:
            return self.give_up()
        if not elapsed:
            return None
        if not is_last and all(verdict.is_favourable for verdict in self.verdicts):
            return self.take_next_step()
        return self.wait(is_last)

    def take_next_step(self) -> Transition:
        """More of the traffic, as nothing speaks against it."""
        number = self.rollout.step + 1
        stepped = self.rollout.with_weights({arm.name: self.rollout.steps[number] for arm in self._arms})
        reason = f"step {number + 1} of {len(self.rollout.steps)}; {_shared(stepped)}: {self._said}"
        return self._change(stepped, reason, phase=Phase.PROGRESSING, step=number, entered=self.now)

    def wait(self, is_last: bool) -> Transition | None:
        """Says once what is missing."""
        if self.rollout.phase is Phase.WAITING:
            return None
        missing = [
            verdict
            for verdict in self.verdicts
            if (verdict.state is not State.PASSES if is_last else not verdict.is_favourable)
        ]
        wanted = _sentences(missing) or "an operator's decision, as no guard was given"
        return self._change(self.rollout, f"waits for evidence: {wanted}", phase=Phase.WAITING)

    def give_up(self) -> Transition:
        """Ends without a decision."""
        reason = f"the time is over and the evidence decides nothing: {self._said}"
        return send_back(self.rollout, Phase.INCONCLUSIVE, self.now, reason, figures=self.verdicts)

    def compete(self) -> Transition | None:
        """Promotes the best, drops those that are surely worse, ends, or shares anew."""
        rollout, of = self.rollout, parse_reward(self.rollout.reward).of
        earned = {
            arm.name: of(self.observation.evidence.get(arm.name, _NOTHING))
            for arm in (rollout.primary, *rollout.contenders)
        }
        leads = {
            arm: lead(earned[arm.name], earned[rollout.primary.name], len(rollout.candidates))
            for arm in rollout.contenders
        }
        passing = {arm.name for arm in rollout.contenders} - {
            verdict.arm for verdict in self.verdicts if verdict.state is not State.PASSES
        }
        ahead = [arm for arm, by in leads.items() if by and by.low > 0 and arm.name in passing]
        if ahead:
            best = max(ahead, key=lambda arm: earned[arm.name][0] / earned[arm.name][1])
            reason = f"{best.name} is surely best by {rollout.reward}: {_earnings(earned)}"
            return promote(rollout, [best], self.now, reason, figures=self.verdicts)
        if behind := [arm.name for arm, by in leads.items() if by and by.high < 0]:
            reason = f"surely below the primary by {rollout.reward}: {_earnings(earned)}"
            return _drop(rollout, behind, self.now, reason, self.verdicts)
        if self.now >= rollout.deadline:
            return self.give_up()
        if self.now - rollout.entered < rollout.step_duration_s:
            return None
        shared = rollout.with_weights(shares(earned, self.observation.seed))
        reason = f"{_shared(shared)}: {_earnings(earned)}"
        return self._change(shared, reason, phase=Phase.PROGRESSING, entered=self.now)

    @property
    def _arms(self) -> tuple[Arm, ...]:
        return self.rollout.contenders

    @property
    def _said(self) -> str:
        return _sentences(self.verdicts) or "no guard was given"

    def _change(self, rollout: Rollout, reason: str, **fields: Any) -> Transition:
        return change(rollout, self.now, reason, figures=self.verdicts, **fields)


def _drop(
    rollout: Rollout, names: Sequence[str], now: float, reason: str, figures: Sequence[Verdict]
) -> Transition:
    """Ends the part of candidates; when none is left, the rollout has failed."""
    arms = tuple(
        replace(arm, outcome=Outcome.FAILED, weight=0.0) if arm.name in names else arm for arm in rollout.arms
    )
    dropped = replace(rollout, arms=arms)
    reason = f"{' and '.join(dict.fromkeys(names))} rolled back: {reason}"
    is_won = any(arm.outcome is Outcome.PASSED for arm in arms)
    if not dropped.contenders or (rollout.phase is Phase.PROMOTING and not is_won):
        return send_back(dropped, Phase.FAILED, now, reason, figures=figures)
    kept = dropped.with_weights({arm.name: arm.weight for arm in dropped.candidates})
    return change(kept, now, reason, figures=figures)


def withdraw(rollout: Rollout, arms: Iterable[Arm], now: float) -> Transition:
    """Without candidates that an operator retired or removed: a rollout does not bring them back."""
    return _drop(rollout, [arm.name for arm in arms], now, "retired or removed while the rollout ran", ())


def _over_budget(rollout: Rollout, observation: Observation) -> list[Verdict]:
    found = (exceeds_budget(rollout, observation.evidence, arm.name) for arm in rollout.contenders)
    return [verdict for verdict in found if verdict]


def _sentences(verdicts: Sequence[Verdict]) -> str:
    several = len({verdict.arm for verdict in verdicts}) > 1
    return "; ".join(
        f"{verdict.arm}: {verdict.sentence}" if several else verdict.sentence for verdict in verdicts
    )


def _shared(rollout: Rollout) -> str:
    if rollout.kind is Kind.SHADOW:
        return f"{rollout.fraction * 100:g}% of the requests are copied"
    return ", ".join(f"{arm.name} {arm.weight:.3g}%" for arm in rollout.arms)


def _earnings(earned: dict[str, Earned]) -> str:
    return ", ".join(
        f"{name} {total / count:.4g} of {count}" if count else f"{name} unknown"
        for name, (total, count) in earned.items()
    )


def _named(arms: Sequence[Arm]) -> str:
    return " and ".join(f"{arm.name} {arm.variant}" for arm in arms)


_PHASES: dict[Phase, Callable[[Rollout, Observation, float], Transition | None]] = {
    Phase.INITIALIZING: _initializing,
    Phase.PROGRESSING: _running,
    Phase.WAITING: _running,
    Phase.PROMOTING: _promoting,
    Phase.FINALISING: _finalising,
}
