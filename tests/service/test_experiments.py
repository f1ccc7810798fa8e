"""What is credited to an arm, without a model: only what its own variant answered."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from compression.signature import Signature, TensorSpec
from service.errors import InferenceError
from service.experiments import Experiments, Part
from service.metrics import Metrics
from service.rollout.evidence import ArmTally
from service.rollout.rollout import CANDIDATE, PRIMARY, Arm, Kind, Outcome, Phase, Rollout
from service.scheduler import Completed
from tests.service.observing.courses import course
from variants.serving_spec import ServingSpec

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch", 3)),)
)
SPEC = ServingSpec("m", SIGNATURE, "accuracy", "fp32", ())
ROWS = np.eye(3, dtype=np.float32)[:1]


class Variant:
    """Stands for a loaded variant."""

    max_batch_rows = 8

    def __init__(self, name: str, *, opens: bool = True) -> None:
        self.name = self.key = name
        self.version = f"{name}@1"
        self.candidate = SimpleNamespace(ratio=1.0)
        self.breaker = SimpleNamespace(allows=lambda now: True, asked=lambda now: None)
        self.opened = 0
        self._opens = opens

    def profiled_ms(self, rows: int) -> float:
        return 1.0 * rows

    predict_ms = profiled_ms

    async def ensure_open(self) -> None:
        self.opened += 1
        if not self._opens:
            raise InferenceError("it cannot be opened.")


class Model:
    """Stands for a loaded model."""

    name = "m"
    card = SimpleNamespace(spec=SPEC)

    def __init__(self, variants: dict[str, Variant]) -> None:
        self.variants = variants


class Conductor:
    """Stands for the conductor: one rollout, its tallies, and what is kept for labels."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.seal = None
        self.tallies = {arm.name: ArmTally() for arm in rollout.arms}
        self.kept: list[tuple[str, str]] = []

    def active(self, model: str, tier: str) -> Rollout:
        return self.rollout

    def tally(self, rollout: str, arm: str) -> ArmTally:
        return self.tallies[arm]

    def remember(self, answer: Any) -> None:
        self.kept.append((answer.variant, answer.arm))


class Scheduler:
    """Answers copies at once, with the row that was sent."""

    def __init__(self) -> None:
        self.copied: list[str] = []

    async def submit(self, variant: Variant, *_: Any) -> Completed:
        assert variant.opened
        self.copied.append(variant.name)
        return Completed([ROWS], 0.0, 0.001, 1, 0.0)


class Played:
    """Experiments of one rollout between `usual` and `int8`, and what they led to."""

    def __init__(self, *, keeps: str = "rollouts", opens: bool = True, **changes: Any) -> None:
        self.usual, self.int8 = Variant("fp32"), Variant("int8", opens=opens)
        arms = Arm(PRIMARY, "fp32@1", 0.0), Arm(CANDIDATE, "int8@1", 100.0)
        settings: dict[str, Any] = {"kind": Kind.AB, "phase": Phase.PROGRESSING, "arms": arms} | changes
        rollout = Rollout(
            id="r", model="m", tier=None, created=0, entered=0, deadline=1e12, fraction=1.0, **settings
        )
        variants = {each.version: each for each in (self.usual, self.int8)}
        self.model = Model(variants)
        self.conductor, self.scheduler = Conductor(rollout), Scheduler()
        self.experiments = Experiments(
            self.conductor,  # type: ignore[arg-type]
            self.scheduler,  # type: ignore[arg-type]
            Metrics(CollectorRegistry()),
            keeps,
            1e9,
            lambda: 0.0,
        )

    def part(self) -> Part | None:
        slo: Any = SimpleNamespace(tier=SimpleNamespace(name="fast"), floor=0.5)
        model: Any = self.model
        return self.experiments.part(model, slo, {}, self.usual)  # type: ignore[arg-type]

    def answered(self, by: Callable[[Played], Variant]) -> ArmTally:
        """The candidate's tally after a request of it that this variant answered."""

        async def scenario() -> None:
            request = SimpleNamespace(id=None, rows=1, inputs={})
            facts: dict[str, Any] = {"model": self.model, "variant": by(self), "request": request}
            self.experiments.answered(course(**facts, outputs={"y": ROWS}, part=self.part()))
            await asyncio.sleep(0.01)

        asyncio.run(scenario())
        return self.conductor.tallies[CANDIDATE]


def test_what_a_candidate_answered_is_compared_and_kept_as_its_own() -> None:
    played = Played()
    tally = played.answered(lambda played: played.int8)
    assert (tally.requests, tally.comparisons.n) == (1, 1)
    assert played.scheduler.copied == ["fp32"]
    assert played.conductor.kept == [("int8@1", CANDIDATE)]


@pytest.mark.parametrize(("keeps", "kept"), [("rollouts", []), ("all", [("fp32@1", "")])])
def test_what_another_answered_in_its_place_is_not_credited_to_the_candidate(
    keeps: str, kept: list[tuple[str, str]]
) -> None:
    played = Played(keeps=keeps)
    tally = played.answered(lambda played: played.usual)
    assert (tally.requests, tally.comparisons.n) == (1, 0)
    assert played.scheduler.copied == []
    assert played.conductor.kept == kept


def test_a_copy_for_a_variant_that_cannot_be_opened_is_a_failure_of_its_own() -> None:
    arms = Arm(PRIMARY, "fp32@1", 100.0), Arm(CANDIDATE, "int8@1", 0.0)
    tally = Played(kind=Kind.SHADOW, arms=arms, opens=False).answered(lambda played: played.usual)
    assert (tally.requests, tally.errors, tally.comparisons.n) == (1, 1, 0)


@pytest.mark.parametrize(("result", "takes_part"), [(None, False), (Outcome.FAILED, True)])
def test_a_candidate_that_is_gone_matters_until_it_has_failed(
    result: Outcome | None, takes_part: bool
) -> None:
    arms = (
        Arm(PRIMARY, "fp32@1", 50.0), Arm(CANDIDATE, "int8@1", 50.0),
        Arm("candidate-2", "gone@1", 0.0, 0.0, result),
    )  # fmt: skip
    part = Played(arms=arms).part()
    assert (part is not None) is takes_part
