"""Rollouts as requests meet them: who takes part, in which arm, and what is seen of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np

from service.conductor import Conductor
from service.errors import DeadlineError, ServiceError, UnavailableError
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import NO_ARM, Metrics
from service.outcome import Outcome
from service.queues import Priority
from service.rollout.assignment import assign, counts_copies, shadow_draw
from service.rollout.comparison import compare, judges_classes
from service.rollout.evidence import ArmTally, Feedback
from service.rollout.labels import judged, names_of, prediction
from service.rollout.rollout import PRIMARY, Arm, Rollout
from service.routing import Slo
from service.scheduler import Completed, Scheduler
from service.state.sealed import Served
from variants.serving_spec import ServingSpec

log = logging.getLogger("mipgate.experiments")

# A copy may wait long for an idle moment; then it is given up.
_COPY_PATIENCE_S = 5.0
_MOST_COPIES = 32  # that wait at the same time


@dataclass(slots=True)  # frozen, it would take three times as long to make
class Part:
    """A request's part in a rollout. Nobody changes it.

    Attributes:
        rollout: Which one.
        arm: Its arm.
        variant: What answers for that arm.
        tally: Where the arm's evidence is counted.
    """

    rollout: Rollout
    arm: Arm
    variant: LoadedVariant
    tally: ArmTally

    @property
    def is_assigned(self) -> bool:
        """Whether the rollout says what answers, and not the router."""
        return self.arm.name != PRIMARY or self.rollout.keeps_primary


class Experiments:
    """Gives requests their arms, and counts what came of them.

    Args:
        conductor: Knows which rollouts run, and takes the evidence.
        scheduler: Runs the copies, when nothing else waits.
        metrics: Counts comparisons and labels.
        keeps: Whose answers wait for labels: `rollouts`, `all` or `none`.
        copies_per_s: Most copies per second.
        draw: From 0..1.
    """

    def __init__(
        self,
        conductor: Conductor,
        scheduler: Scheduler,
        metrics: Metrics,
        keeps: str,
        copies_per_s: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._conductor = conductor
        self._scheduler = scheduler
        self._metrics = metrics
        self._keeps = keeps
        self._copy_every_s = 1 / copies_per_s if copies_per_s else float("inf")
        self._next_copy = 0.0
        self._draw = draw
        self._copies: set[asyncio.Task[None]] = set()

    def part(
        self, model: LoadedModel, slo: Slo, parameters: Mapping[str, Any], usual: LoadedVariant
    ) -> Part | None:
        """A request's part in the rollout of its model and tier, if there is one and its floor allows it.

        Args:
            model: Which model it is for.
            slo: What it asks for.
            parameters: Where its sticky key is.
            usual: What the router chose for it.
        """
        rollout = self._conductor.active(model.name, slo.tier.name)
        if rollout is None:
            return None
        key = parameters.get("sticky_key")
        arm = assign(rollout, self._draw() if key is None else key, slo.tier.name)
        if arm is None or not _are_told_apart(rollout, model, slo.floor, usual):
            return None
        is_usual = arm.name == PRIMARY and not rollout.keeps_primary
        variant = usual if is_usual else model.variants[arm.variant]
        return Part(rollout, arm, variant, self._conductor.tally(rollout.id, arm.name))

    def answered(self, part: Part | None, outcome: Outcome) -> None:
        """Counts an answer, keeps it for its label, and copies the request where the rollout wants it."""
        if part is not None:
            part.tally.answered(outcome.total_s)
            if outcome.variant is part.variant:
                self._copy(part, outcome)
            else:  # another answered in its place: what it said says nothing of the arm
                part = None
        if self._keeps == "all" or (part is not None and self._keeps == "rollouts"):
            self._keep(part, outcome)

    def failed(self, part: Part, error: ServiceError) -> None:
        """Counts a request that got no answer; that of an assigned variant was counted as it fell through."""
        part.tally.requests += 1
        if part.is_assigned:
            return
        if isinstance(error, DeadlineError | UnavailableError):
            part.tally.misses += 1
        else:
            part.tally.errors += 1

    def fell_through(self, part: Part, error: ServiceError | None) -> None:
        """Counts a request that the assigned variant did not answer and the router's choice did, or will.

        Args:
            part: Its part.
            error: What the variant ended in, or None when its answer held values that are not finite.
        """
        tally = part.tally
        tally.retries += 1
        if error is None:
            tally.non_finite += 1
        elif isinstance(error, DeadlineError):
            tally.timeouts += 1
        elif isinstance(error, UnavailableError):
            tally.misses += 1
        else:
            tally.errors += 1

    async def judge(
        self, labels: Mapping[str, Any], spec_of: Callable[[str], ServingSpec], age_s: float
    ) -> None:
        """Joins labels with the answers that they belong to.

        Args:
            labels: By the request's id.
            spec_of: A model's spec, by its name.
            age_s: How old the answers may be.

        Raises:
            ServiceError: An answer is not known or was judged, or a label is none.
        """
        scores: dict[str, Feedback] = {}

        def score(answer: Served, label: Any) -> Feedback:
            spec = spec_of(answer.model)
            scores[answer.request] = judged(spec.metric, answer.prediction, label, names_of(spec))
            return scores[answer.request]

        for answer in await self._conductor.judge(labels, score, age_s):
            if judges_classes(spec_of(answer.model).metric):
                correct = "true" if scores[answer.request].correct == 1 else "false"
                recipe = answer.variant.partition("@")[0]
                self._metrics.feedback.labels(answer.model, recipe, answer.arm, correct).inc()

    def _keep(self, part: Part | None, outcome: Outcome) -> None:
        assert outcome.outputs is not None  # it was answered; the model's own outputs come first
        kept = prediction(outcome.model.card.spec.metric, outcome.outputs)
        if kept is not None:
            rollout, arm = (part.rollout.id, part.arm.name) if part else ("", NO_ARM)
            answer = Served(
                outcome.request_id, outcome.model.name, outcome.variant.version, outcome.tier,
                rollout, arm, kept, time.time(),
            )  # fmt: skip
            sealed = None if outcome.request.id else self._conductor.sealed(answer)
            if sealed is None:
                self._conductor.remember(answer)
            else:
                outcome.request_id = sealed

    def _copy(self, part: Part, outcome: Outcome) -> None:
        """Has other arms answer the same request when nothing else waits."""
        now = perf_counter()
        if not part.rollout.fraction or now < self._next_copy or len(self._copies) >= _MOST_COPIES:
            return
        for arm in shadow_draw(part.rollout, part.arm, self._draw()):
            other = outcome.model.variants.get(arm.variant)
            candidate = arm if part.arm.name == PRIMARY else part.arm
            fits = other is not None and outcome.request.rows <= other.max_batch_rows
            if other is None or not fits or other is outcome.variant or not other.breaker.allows(now):
                continue
            self._next_copy = now + self._copy_every_s
            task = asyncio.create_task(self._compare(part.rollout, candidate, other, outcome))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    async def _compare(
        self, rollout: Rollout, candidate: Arm, other: LoadedVariant, outcome: Outcome
    ) -> None:
        tally = self._conductor.tally(rollout.id, candidate.name)
        counts = counts_copies(rollout)
        request, deadline = outcome.request, perf_counter() + _COPY_PATIENCE_S
        other.breaker.asked(perf_counter())
        try:
            await other.ensure_open()
            done = await self._scheduler.submit(
                other, request.inputs, request.rows, deadline, Priority.SHADOW
            )
        except (DeadlineError, UnavailableError):
            return  # nothing was idle long enough: no evidence, and no failure
        except ServiceError:
            if counts:
                tally.requests += 1
                tally.errors += 1
            return
        if counts:
            tally.answered(done.infer_s)
            tally.non_finite += not is_finite(done)
        theirs = _own_outputs(outcome)
        ours = dict(zip(theirs, done.outputs, strict=True))
        answers = (theirs, ours) if outcome.variant.version != candidate.variant else (ours, theirs)
        comparison = compare(outcome.model.card.spec.metric, *answers)
        tally.compared(comparison)
        agree = "true" if comparison.agreement == comparison.n else "false"
        recipe = candidate.variant.partition("@")[0]
        self._metrics.shadow_comparisons.labels(outcome.model.name, recipe, agree).inc()


def is_finite(done: Completed) -> bool:
    """Whether all numbers of an answer are."""
    # Squares add up to a finite number only where all are; where they overflow, each is looked at.
    return all(
        [
            output.dtype.kind != "f" or isfinite(np.vdot(output, output)) or bool(np.isfinite(output).all())
            for output in done.outputs
        ]
    )


def _are_told_apart(rollout: Rollout, model: LoadedModel, floor: float, usual: LoadedVariant) -> bool:
    """Whether every arm is loaded and good enough, and none answers for another: else they say nothing.

    Candidates that failed get no requests, and need not be there any more.
    """
    for arm in (rollout.primary, *rollout.contenders) if rollout.keeps_primary else rollout.contenders:
        variant = model.variants.get(arm.variant)
        if variant is None or variant.candidate.ratio < floor:
            return False
        if variant is usual and not rollout.keeps_primary:
            return False
    return True


def _own_outputs(outcome: Outcome) -> dict[str, Any]:
    """The model's own outputs, without those of transforms."""
    assert outcome.outputs is not None  # it was answered
    return {spec.name: outcome.outputs[spec.name] for spec in outcome.model.card.spec.signature.outputs}
