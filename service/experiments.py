"""Rollouts as requests meet them: who takes part, in which arm, and what is seen of it."""

from __future__ import annotations

import asyncio
import logging
import random
import time
from collections.abc import Callable, Mapping
from math import isfinite
from time import perf_counter
from typing import Any

import numpy as np

from service.conductor import Conductor
from service.course import Course, Part
from service.errors import (
    DeadlineError,
    NonFiniteError,
    OverrunError,
    ServiceError,
    UnavailableError,
    UncomputableError,
)
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import NO_ARM, Metrics
from service.queues import Priority
from service.rollout.assignment import assign, counts_copies, shadow_draw
from service.rollout.comparison import compare, judges_classes
from service.rollout.evidence import Feedback
from service.rollout.labels import judged, names_of, prediction
from service.rollout.rollout import PRIMARY, Arm, Rollout
from service.router import Route
from service.routing import Slo
from service.scheduler import Completed, Scheduler
from service.state.sealed import Served, who_answered
from variants.serving_spec import ServingSpec

log = logging.getLogger("mipgate.experiments")

# A copy may wait long for an idle moment; then it is given up.
_COPY_PATIENCE_S = 5.0
_MOST_COPIES = 32  # that wait at the same time
_HANGS = 4.0  # of its times, and the runtime will not answer
_MOST_PARTS = 1024  # remembered: floors are the callers'
_LATE = (DeadlineError, UnavailableError)


_Terms = tuple[str, int, str, LoadedModel, LoadedVariant, float]


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
        self._next_copy = 0.0 if copies_per_s else float("inf")
        self._draw = draw
        self._copies: set[asyncio.Task[None]] = set()
        # By rollout and its version, arm, model, the router's choice and floor. Objects: another is another.
        self._parts: dict[_Terms, Part | None] = {}

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
        if arm is None:
            return None
        terms = rollout.id, rollout.version, arm.name, model, usual, slo.floor
        try:
            return self._parts[terms]
        except KeyError:
            self._forget(rollout, model)
            part = self._parts[terms] = self._part(rollout, arm, model, slo.floor, usual)
            return part

    def _forget(self, rollout: Rollout, model: LoadedModel) -> None:
        """Leaves out what was before a change of a rollout or of its model: nobody asks for it any more."""
        if len(self._parts) >= _MOST_PARTS:
            self._parts.clear()
        now = rollout.version, model
        self._parts = {
            terms: part
            for terms, part in self._parts.items()
            if terms[0] != rollout.id or (terms[1], terms[3]) == now
        }

    def _part(
        self, rollout: Rollout, arm: Arm, model: LoadedModel, floor: float, usual: LoadedVariant
    ) -> Part | None:
        """The part of all requests with these terms."""
        if not _are_told_apart(rollout, model, floor, usual):
            return None
        is_primary = arm.name == PRIMARY
        variant = usual if is_primary and not rollout.keeps_primary else model.variants[arm.variant]
        behind: Route | None = Route(usual)
        if variant is usual:
            behind = None if is_primary else Route(model.variants[rollout.primary.variant])
        primary = model.variants[rollout.primary.variant] if rollout.keeps_primary else usual
        slower = max(usual, primary, key=lambda each: each.profiled_ms(1))
        tally = self._conductor.tally(rollout.id, arm.name)
        return Part(rollout, arm, Route(variant), tally, behind, slower)

    def answered(self, course: Course) -> None:
        """Counts an answer, keeps it for its label, and copies the request where the rollout wants it."""
        part = course.part
        if part is not None:
            _count_answer(part, course)
            if course.variant is not part.route.variant:
                part = None  # another answered in its place: what it said says nothing of the arm
            elif part.rollout.fraction:
                self._copy(part, course)
        if self._keeps == "all" or (part is not None and self._keeps == "rollouts"):
            self._keep(part, course)

    def failed(self, course: Course, part: Part, error: ServiceError) -> None:
        """Counts a request that got no answer, unless it is one that nobody could compute."""
        if not isinstance(error, UncomputableError):
            _count_failure(part, course, error if course.fell is None else course.fell)

    def abandoned(self, course: Course, part: Part) -> None:
        """Counts a request whose client did not wait: late, for it, unless its variant had failed before."""
        if course.fell is not None:
            _count_failure(part, course, course.fell)
        else:
            part.tally.requests += 1
            part.tally.misses += 1

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

    def _keep(self, part: Part | None, course: Course) -> None:
        model, outputs, seal, now = course.model, course.outputs, self._conductor.seal, time.time()
        assert outputs is not None  # it was answered; the model's own outputs come first
        kept = prediction(model.card.spec.metric, outputs)
        if kept is None:
            return
        rollout, arm = (part.rollout.id, part.arm.name) if part else ("", NO_ARM)
        who = model.name, course.variant.version, course.tier, rollout, arm
        sealed = None
        if seal is not None and not course.request.id:
            sealed = seal.close(course.request_id, who_answered(*who), kept, now)
        if sealed is None:
            self._conductor.remember(Served(course.request_id, *who, kept, now))
        else:
            course.request_id = sealed

    def _copy(self, part: Part, course: Course) -> None:
        """Has other arms answer the same request when nothing else waits."""
        now = perf_counter()
        if now < self._next_copy or len(self._copies) >= _MOST_COPIES:
            return
        for arm in shadow_draw(part.rollout, part.arm, self._draw()):
            other = course.model.variants.get(arm.variant)
            candidate = arm if part.arm.name == PRIMARY else part.arm
            fits = other is not None and course.request.rows <= other.max_batch_rows
            if other is None or not fits or other is course.variant or not other.breaker.allows(now):
                continue
            self._next_copy = max(self._next_copy, now) + self._copy_every_s
            task = asyncio.create_task(self._compare(part.rollout, candidate, other, course))
            self._copies.add(task)
            task.add_done_callback(self._copies.discard)

    async def _compare(self, rollout: Rollout, candidate: Arm, other: LoadedVariant, course: Course) -> None:
        tally = self._conductor.tally(rollout.id, candidate.name)
        counts = counts_copies(rollout)
        request, deadline = course.request, perf_counter() + _COPY_PATIENCE_S
        other.breaker.asked(perf_counter())
        try:
            await other.ensure_open()
            done = await self._scheduler.submit(
                other, request.inputs, request.rows, deadline, Priority.SHADOW
            )
        except OverrunError as error:
            # Else it began late: no evidence, and no failure.
            if counts and error.ran_s * 1e3 > _HANGS * other.predict_ms(request.rows):
                tally.requests += 1
                tally.timeouts += 1
            return
        except _LATE:
            return  # nothing was idle long enough: no evidence, and no failure
        except ServiceError:
            if counts:
                tally.requests += 1
                tally.errors += 1
            return
        if counts:
            tally.answered(done.infer_s)
            tally.non_finite += not is_finite(done)
        theirs = _own_outputs(course)
        ours = dict(zip(theirs, done.outputs, strict=True))
        answers = (theirs, ours) if course.variant.version != candidate.variant else (ours, theirs)
        comparison = compare(course.model.card.spec.metric, *answers)
        tally.compared(comparison)
        agree = "true" if comparison.agreement == comparison.n else "false"
        recipe = candidate.variant.partition("@")[0]
        self._metrics.shadow_comparisons.labels(course.model.name, recipe, agree).inc()


def _count_answer(part: Part, course: Course) -> None:
    """Counts an answer to an arm's request, whoever gave it."""
    tally, done = part.tally, course.done
    assert done is not None  # it was answered
    if course.fell is not None:
        _count_failure(part, course, course.fell)
        tally.retries += course.variant is not part.route.variant
        return
    if part.behind is None and not is_finite(done):  # else it was looked at
        tally.requests += 1
        tally.non_finite += 1
    elif not counts_copies(part.rollout):
        tally.answered(course.total_s)
        if course.is_late_for_its_arm:
            if done.started < course.arm_deadline < done.started + done.infer_s:
                tally.timeouts += 1
            else:
                tally.misses += 1
    elif done.batch_rows == course.request.rows:
        tally.answered(done.infer_s)
    else:  # copies run alone, and know the runtime's time alone
        tally.requests += 1


def _count_failure(part: Part, course: Course, error: ServiceError) -> None:
    """Counts a request that an arm's variant did not answer in its time, whoever did then, for one reason."""
    tally, is_late = part.tally, isinstance(error, _LATE)
    if isinstance(error, NonFiniteError):
        tally.non_finite += 1
    elif isinstance(error, OverrunError) and error.begun < course.arm_deadline:
        tally.timeouts += 1
    elif is_late:
        tally.misses += 1
    else:
        tally.errors += 1
    if is_late and not counts_copies(part.rollout):
        tally.answered(max(course.total_s, course.arm_deadline - course.arrived))
    else:
        tally.requests += 1


def is_finite(done: Completed) -> bool:
    """Whether all numbers of an answer are."""
    # Squares add up to a finite number only where all are; where they overflow, each is looked at.
    for output in done.outputs:
        if output.dtype.kind == "f" and not (isfinite(np.vdot(output, output)) or np.isfinite(output).all()):
            return False
    return True


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


def _own_outputs(course: Course) -> dict[str, Any]:
    """The model's own outputs, without those of transforms."""
    assert course.outputs is not None  # it was answered
    return {spec.name: course.outputs[spec.name] for spec in course.model.card.spec.signature.outputs}
