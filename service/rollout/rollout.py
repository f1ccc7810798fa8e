"""The nouns of a rollout: its arms, its phase, what is observed and what follows."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from enum import StrEnum
from functools import cached_property
from hashlib import sha256
from typing import Any

from service.rollout.evidence import Evidence
from service.rollout.guard import Guard, parse_guard

PRIMARY = "primary"
CANDIDATE = "candidate"
GATEWAY = "gateway"  # who a change came from when it was no operator


class Kind(StrEnum):
    """How traffic is shared while the evidence comes in."""

    AB = "ab"
    CANARY = "canary"
    SHADOW = "shadow"
    BANDIT = "bandit"


class Phase(StrEnum):
    """Where a rollout stands.

    Each waits for something: initializing for the arms to be loaded, progressing for its time, waiting for
    evidence or an operator, promoting for the winners' release, finalising for the losers to be dealt with.
    """

    INITIALIZING = "initializing"
    PROGRESSING = "progressing"
    WAITING = "waiting"
    PROMOTING = "promoting"
    FINALISING = "finalising"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    INCONCLUSIVE = "inconclusive"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self in (Phase.SUCCEEDED, Phase.FAILED, Phase.INCONCLUSIVE)


class Outcome(StrEnum):
    """What was decided about a candidate."""

    PASSED = "passed"
    FAILED = "failed"


@dataclass(frozen=True, slots=True)
class Arm:
    """A side of the experiment.

    Attributes:
        name: `primary`, `candidate`, `candidate-2`, ...
        variant: `recipe@build` that answers.
        weight: Its share of the requests now, in percent.
        planned: Its share once all arms are loaded, in percent.
        outcome: What was decided about it, or None.
    """

    name: str
    variant: str
    weight: float
    planned: float = 0.0
    outcome: Outcome | None = None


@dataclass(frozen=True)
class Rollout:
    """A traffic experiment between a primary and candidates.

    Attributes:
        id: Its name; also seeds who gets which arm.
        model: The model.
        tier: The only tier that takes part, or None for all.
        kind: How traffic is shared.
        arms: The primary first, then the candidates; their weights sum to 100.
        created: When it was asked for, in seconds since the epoch.
        entered: When the current step began.
        deadline: When it ends undecided.
        guards: What must hold of every candidate.
        steps: Weights of a canary's candidate, in percent, growing.
        step_duration_s: Shortest time of a step; how often a bandit shares anew.
        fraction: Share of the requests that are copied, 0..1.
        reward: What a bandit maximises, or an empty string.
        failure_budget: Share of requests that a candidate may fail; more sends all back at once.
        retire_failed: Whether a failed candidate is retired, or stays a candidate.
        keeps_primary: Whether the primary's variant answers for its arm, because it was asked for; else
            whatever the router chooses does.
        phase: Where it stands.
        ending: The final phase that finalising leads to, or None.
        step: Which of the steps runs, from 0.
        paused: When an operator paused it, or None.
        reason: Why it stands there.
        updated: When it last changed.
        version: Grows by one with each change.
    """

    id: str
    model: str
    tier: str | None
    kind: Kind
    arms: tuple[Arm, ...]
    created: float
    entered: float
    deadline: float
    guards: tuple[Guard, ...] = ()
    steps: tuple[float, ...] = ()
    step_duration_s: float = 60.0
    fraction: float = 0.0
    reward: str = ""
    failure_budget: float = 0.01
    retire_failed: bool = False
    keeps_primary: bool = False
    phase: Phase = Phase.INITIALIZING
    ending: Phase | None = None
    step: int = 0
    paused: float | None = None
    reason: str = ""
    updated: float = 0.0
    version: int = 1

    @property
    def primary(self) -> Arm:
        """The arm that all are measured against."""
        return self.arms[0]

    @property
    def candidates(self) -> tuple[Arm, ...]:
        """All arms but the primary."""
        return self.arms[1:]

    @cached_property
    def contenders(self) -> tuple[Arm, ...]:
        """Candidates that did not fail."""
        return tuple(arm for arm in self.candidates if arm.outcome is not Outcome.FAILED)

    @property
    def weights(self) -> dict[str, float]:
        """Percent by the arm's name."""
        return {arm.name: arm.weight for arm in self.arms}

    @cached_property
    def is_serving(self) -> bool:
        """Whether requests are given to arms and copied now."""
        return self.phase in (Phase.PROGRESSING, Phase.WAITING, Phase.PROMOTING)

    @cached_property
    def salt(self) -> bytes:
        """Salts the hash that assigns arms (16 bytes)."""
        return sha256(self.id.encode()).digest()[:16]

    @cached_property
    def thresholds(self) -> tuple[tuple[float, Arm], ...]:
        """Where each candidate's interval of 0..1 ends; beyond the last is the primary's."""
        end, ends = 0.0, []
        for arm in self.candidates:
            if arm.weight > 0:
                end += arm.weight / 100
                ends.append((end, arm))
        return tuple(ends)

    def arm(self, name: str) -> Arm:
        """The arm of this name."""
        return next(arm for arm in self.arms if arm.name == name)

    def with_weights(self, weights: Mapping[str, float]) -> Rollout:
        """The same with other weights of candidates, in percent; the primary gets the rest."""
        candidates = [replace(arm, weight=weights.get(arm.name, 0.0)) for arm in self.candidates]
        rest = max(0.0, 100.0 - sum(arm.weight for arm in candidates))
        return replace(self, arms=(replace(self.primary, weight=rest), *candidates))

    def to_json(self) -> dict[str, Any]:
        """All fields, by name."""
        return {
            **{name: getattr(self, name) for name in _PLAIN},
            "kind": self.kind.value,
            "arms": [
                {
                    "name": arm.name,
                    "variant": arm.variant,
                    "weight": arm.weight,
                    "planned": arm.planned,
                    "outcome": arm.outcome and arm.outcome.value,
                }
                for arm in self.arms
            ],
            "guards": [guard.text for guard in self.guards],
            "steps": list(self.steps),
            "phase": self.phase.value,
            "ending": self.ending and self.ending.value,
        }

    @classmethod
    def from_json(cls, document: Mapping[str, Any]) -> Rollout:
        """Reads what `to_json` wrote, of this version or an older one."""
        return cls(
            **{name: document[name] for name in _PLAIN if name in document},
            kind=Kind(document["kind"]),
            arms=tuple(
                Arm(**arm | {"outcome": arm["outcome"] and Outcome(arm["outcome"])})
                for arm in document["arms"]
            ),
            guards=tuple(parse_guard(text) for text in document["guards"]),
            steps=tuple(document["steps"]),
            phase=Phase(document["phase"]),
            ending=document["ending"] and Phase(document["ending"]),
        )


_PLAIN = (
    "id", "model", "tier", "created", "entered", "deadline", "step_duration_s", "fraction", "reward",
    "failure_budget", "retire_failed", "keeps_primary", "step", "paused", "reason", "updated", "version",
)  # fmt: skip


@dataclass(frozen=True, slots=True)
class Observation:
    """What `advance` decides by.

    Attributes:
        evidence: All that was seen since the rollout began, by the arm's name.
        done: Whether what the phase waits for has been carried out: when initializing, every arm is loaded;
            when promoting, the candidates that passed are released; when finalising, those that failed are
            retired where `retire_failed` says so.
        seed: Seeds a bandit's draws.
    """

    evidence: Evidence
    done: bool = False
    seed: int = 0


@dataclass(frozen=True, slots=True)
class Transition:
    """A change, as the history keeps it.

    Attributes:
        rollout: The rollout after it; its version is one more than before.
        reason: Why, with the figures at that moment.
        at: When, in seconds since the epoch.
        who: Whose decision it was.
        figures: The guards' verdicts, as JSON.
    """

    rollout: Rollout
    reason: str
    at: float
    who: str = GATEWAY
    figures: tuple[Mapping[str, Any], ...] = ()

    def to_json(self) -> dict[str, Any]:
        """An entry of the history."""
        return {
            "at": self.at,
            "version": self.rollout.version,
            "phase": self.rollout.phase.value,
            "who": self.who,
            "reason": self.reason,
            "weights": self.rollout.weights,
            "figures": [dict(figure) for figure in self.figures],
        }
