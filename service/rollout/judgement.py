"""What the evidence says of a guard, at any moment and as often as one looks."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from enum import StrEnum
from math import isfinite
from typing import Any

from service.rollout.evidence import ArmEvidence, Evidence
from service.rollout.guard import STATISTICS, Guard, Relation, Scale, Source
from service.rollout.rollout import Arm, Rollout
from service.rollout.sequences import (
    Interval,
    Moments,
    difference_interval,
    mean_interval,
    mean_ratio_interval,
    quantile_interval,
    quantile_ratio_interval,
    ratio_interval,
    share_interval,
)


class State(StrEnum):
    """What is known of a guard."""

    PASSES = "passes"
    FAILS = "fails"
    UNDECIDED = "undecided"


@dataclass(frozen=True, slots=True)
class Verdict:
    """What the evidence says of a guard for one candidate.

    Attributes:
        guard: The guard.
        arm: The candidate's name.
        state: Whether it is known to pass or to fail.
        samples: How many there are; of two arms, of the one with fewer.
        interval: The figure with its interval, or None while there are too few samples.
        sentence: All of it for people.
    """

    guard: Guard
    arm: str
    state: State
    samples: int
    interval: Interval | None
    sentence: str

    @property
    def is_favourable(self) -> bool:
        """Whether there are enough samples and the estimate keeps the threshold, surely or not."""
        return self.interval is not None and self.guard.holds(self.interval.estimate)

    def to_json(self) -> dict[str, Any]:
        """For the API and the history; ends that nothing bounds are null."""
        ends = (self.interval.estimate, self.interval.low, self.interval.high) if self.interval else ()
        estimate, low, high = [end if isfinite(end) else None for end in ends] or (None, None, None)
        return {
            "text": self.guard.text,
            "arm": self.arm,
            "statistic": self.guard.name,
            "relation": self.guard.relation.value,
            "threshold": self.guard.threshold,
            "verdict": self.state.value,
            "estimate": estimate,
            "low": low,
            "high": high,
            "samples": self.samples,
            "sentence": self.sentence,
        }


def judge(
    guard: Guard, primary: ArmEvidence, candidate: ArmEvidence, arm: str = "candidate", claims: int = 1
) -> Verdict:
    """Judges a candidate by one guard.

    Args:
        guard: The guard.
        primary: All that was seen of the primary.
        candidate: All that was seen of the candidate.
        arm: The candidate's name.
        claims: How many verdicts share the guard's chance of being wrong: guards times candidates.
    """
    samples = _samples(guard, candidate)
    if guard.relation is not Relation.VALUE:
        samples = min(samples, _samples(guard, primary))
    if samples < max(1, guard.samples):
        sentence = f"{guard.name} has {samples} of {guard.samples} samples"
        return Verdict(guard, arm, State.UNDECIDED, samples, None, sentence)
    interval = _interval(guard, primary, candidate, (1 - guard.confidence) / claims)
    holds_low, holds_high = guard.holds(interval.low), guard.holds(interval.high)
    state = State.UNDECIDED
    if holds_low == holds_high:
        state = State.PASSES if holds_low else State.FAILS
    return Verdict(guard, arm, state, samples, interval, _sentence(guard, state, interval, samples))


def judge_candidates(
    rollout: Rollout, evidence: Evidence, arms: Iterable[Arm] | None = None
) -> tuple[Verdict, ...]:
    """Judges candidates by every guard, their chances of error shared out.

    Args:
        rollout: The rollout.
        evidence: All that was seen of it.
        arms: Which; by default those that have not failed.
    """
    claims = len(rollout.guards) * len(rollout.candidates)
    primary = evidence.get(rollout.primary.name, _NOTHING)
    return tuple(
        judge(guard, primary, evidence.get(arm.name, _NOTHING), arm.name, claims)
        for arm in (rollout.contenders if arms is None else arms)
        for guard in rollout.guards
    )


def exceeds_budget(rollout: Rollout, evidence: Evidence, arm: str = "candidate") -> Verdict | None:
    """The verdict that a candidate surely fails more requests than the rollout allows, or None.

    It needs no minimum of samples: a candidate that fails every request is found out after six. Where the
    primary fails too, one that does not surely fail more often is not to blame.
    """
    budget = rollout.failure_budget
    primary, candidate = (evidence.get(name, _NOTHING) for name in (rollout.primary.name, arm))
    if candidate.failures <= budget * candidate.asked:
        return None
    text = f"errors<={budget * 100:g}%"
    guard = Guard(text, STATISTICS["errors"], 0.0, Relation.VALUE, budget, _BUDGET_CONFIDENCE, 1)
    verdict = judge(guard, _NOTHING, candidate, arm, len(rollout.candidates))
    if verdict.state is not State.FAILS:
        return None
    if primary.failures:
        ours, theirs = (candidate.failures, candidate.asked), (primary.failures, primary.asked)
        alpha = (1 - _BUDGET_CONFIDENCE) / len(rollout.candidates)
        if difference_interval(ours, theirs, alpha, _ANYWHERE).low <= 0:
            return None
    return verdict


def describe(rollout: Rollout, evidence: Evidence) -> dict[str, Any]:
    """The document of a rollout: where it stands, the evidence and what it says."""
    verdicts = judge_candidates(rollout, evidence, rollout.candidates)
    return {
        "id": rollout.id,
        "model": rollout.model,
        "tier": rollout.tier,
        "kind": rollout.kind.value,
        "phase": rollout.phase.value,
        "paused": rollout.paused is not None,
        "reason": rollout.reason,
        "primary": rollout.primary.variant,
        "arms": [
            {
                "name": arm.name,
                "variant": arm.variant,
                "weight": arm.weight,
                "outcome": arm.outcome and arm.outcome.value,
                "evidence": summary(evidence.get(arm.name, _NOTHING)),
            }
            for arm in rollout.arms
        ],
        "guards": [verdict.to_json() for verdict in verdicts],
        "steps": list(rollout.steps),
        "step": rollout.step,
        "step_duration_s": rollout.step_duration_s,
        "fraction": rollout.fraction,
        "reward": rollout.reward,
        "failure_budget": rollout.failure_budget,
        "failure": "retire" if rollout.retire_failed else "keep",
        "version": rollout.version,
        "created": rollout.created,
        "updated": rollout.updated,
        "entered": rollout.entered,
        "deadline": rollout.deadline,
    }


def summary(evidence: ArmEvidence) -> dict[str, Any]:
    """The evidence of an arm in figures for people; null where nothing was seen."""
    copies, labels = evidence.comparisons, evidence.feedback
    p50, p99 = evidence.latency.quantile_s(0.5), evidence.latency.quantile_s(0.99)
    return {
        "requests": evidence.requests,
        "errors": evidence.errors,
        "timeouts": evidence.timeouts,
        "non_finite": evidence.non_finite,
        "retries": evidence.retries,
        "misses": evidence.misses,
        "p50_ms": p50 and p50 * 1e3,
        "p99_ms": p99 and p99 * 1e3,
        "compared": copies.n,
        "agreement": copies.agreement / copies.n if copies.n else None,
        "cosine": copies.cosine / copies.n if copies.n else None,
        "max_abs": copies.max_abs if copies.n else None,
        "labelled": labels.n,
        "accuracy": labels.correct / labels.n if labels.n else None,
        "loss": labels.loss / labels.n if labels.n else None,
    }


_NOTHING = ArmEvidence()
_BUDGET_CONFIDENCE = 0.999
_ANYWHERE = 0.5  # where shares may lie that nobody expects

# Sum of the values 0..1 whose mean a share is.
_SUMS: dict[str, Callable[[ArmEvidence], float]] = {
    "errors": lambda evidence: evidence.failures,
    "misses": lambda evidence: evidence.misses,
    "agreement": lambda evidence: evidence.comparisons.agreement,
    "cosine": lambda evidence: evidence.comparisons.cosine,
    "accuracy": lambda evidence: evidence.feedback.correct,
}


def _samples(guard: Guard, evidence: ArmEvidence) -> int:
    if guard.statistic.scale is Scale.TIME:
        return evidence.latency.total
    counts = {
        Source.REQUESTS: evidence.asked if guard.name == "errors" else evidence.requests,
        Source.COMPARISONS: evidence.comparisons.n,
        Source.FEEDBACK: evidence.feedback.n,
    }
    return counts[guard.statistic.source]


def _interval(guard: Guard, primary: ArmEvidence, candidate: ArmEvidence, alpha: float) -> Interval:
    if guard.statistic.scale is Scale.SHARE:
        return _share(guard, primary, candidate, alpha)
    if guard.statistic.scale is Scale.TIME:
        if guard.relation is Relation.VALUE:
            return quantile_interval(candidate.latency, guard.quantile, alpha)
        return quantile_ratio_interval(candidate.latency, primary.latency, guard.quantile, alpha)
    if guard.name == "max_abs":  # a limit, not an estimate: what was seen is certain
        largest = candidate.comparisons.max_abs
        return Interval(largest, largest, largest)
    if guard.relation is Relation.VALUE:
        return mean_interval(_losses(candidate), alpha)
    return mean_ratio_interval(_losses(candidate), _losses(primary), alpha)


def _share(guard: Guard, primary: ArmEvidence, candidate: ArmEvidence, alpha: float) -> Interval:
    total, usual = _SUMS[guard.name], guard.statistic.usual
    ours = total(candidate), _samples(guard, candidate)
    if guard.relation is Relation.VALUE:
        return share_interval(*ours, alpha, guard.threshold)
    theirs = total(primary), _samples(guard, primary)
    if guard.relation is Relation.RATIO:
        return ratio_interval(ours, theirs, alpha, usual)
    return difference_interval(ours, theirs, alpha, usual)


def _losses(evidence: ArmEvidence) -> Moments:
    feedback = evidence.feedback
    return Moments(feedback.n, feedback.loss, feedback.loss_squares)


def _sentence(guard: Guard, state: State, interval: Interval, samples: int) -> str:
    within, beyond = ("at least", "below") if guard.statistic.higher_is_better else ("at most", "above")
    verdict = {
        State.PASSES: f"is surely {within}",
        State.FAILS: f"is surely {beyond}",
        State.UNDECIDED: "may lie on either side of",
    }[state]
    estimate, low, high, threshold = (
        _figure(guard, value) for value in (interval.estimate, interval.low, interval.high, guard.threshold)
    )
    return f"{guard.name} {estimate} ({low} to {high}, {samples} samples) {verdict} {threshold}"


def _figure(guard: Guard, value: float) -> str:
    if not isfinite(value):
        return "unbounded"
    if guard.relation is Relation.RATIO:
        return f"{value:.3g}x"
    if guard.relation is Relation.DIFFERENCE:
        return f"{value * 100:+.3g}pt"
    if guard.statistic.scale is Scale.TIME:
        return f"{value * 1e3:.4g} ms"
    if guard.statistic.scale is Scale.SHARE and not guard.statistic.higher_is_better:
        return f"{value * 100:.3g}%"
    return f"{value:.4g}"
