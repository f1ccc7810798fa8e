"""One request from decoded to answered: route, schedule, count. Shared by every API of the gateway."""

from __future__ import annotations

import asyncio
import logging
import secrets
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from compression.signature import Array
from service.demand import Demand
from service.errors import DeadlineError, InferenceError, ServiceError, UnavailableError
from service.fleet import Fleet
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import NO_ARM, NO_VARIANT, Metrics
from service.protocol import InferRequest
from service.routing import Candidate, Load, Slo, admit, choose, ladder, work_ms
from service.scheduler import Completed, Scheduler
from service.transforming import Transforming

log = logging.getLogger("mipgate.inference")

# How often the level of degrading is looked at.
_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request that was routed ended.

    Attributes:
        request_id: The client's id, or one that was made for it.
        model: Which model it was for.
        variant: Which variant was to answer.
        tier: Name of the tier that was asked for.
        arm: Name of its arm in a rollout, or `NO_ARM`.
        request: Its inputs, decoded.
        outputs: Arrays `(rows, ...)` by output name, with those of a transform where they are asked for; None
            when it failed.
        error: Why it failed, or None.
        arrived: When it arrived, on `time.perf_counter`.
        transform_s: Time that a text or picture took to become inputs.
        started: When its batch began, the same for all requests of a batch; 0 when it failed.
        batch_rows: Rows of that batch; 0 when it failed.
        queue_s: Time it waited; 0 when it failed.
        infer_s: Time that its batch ran; 0 when it failed.
        total_s: Time from arrival to the end.
        degraded_from: As `routing.Decision` has it.
    """

    request_id: str
    model: LoadedModel
    variant: LoadedVariant
    tier: str
    arm: str
    request: InferRequest
    outputs: dict[str, Array] | None
    error: ServiceError | None
    arrived: float
    transform_s: float
    started: float
    batch_rows: int
    queue_s: float
    infer_s: float
    total_s: float
    degraded_from: str | None

    @property
    def degraded(self) -> bool:
        """Whether the quality is below what was asked for."""
        return self.degraded_from is not None


class Listener(Protocol):
    """Is told of every routed request."""

    def served(self, outcome: Outcome) -> None:
        """Called on the event loop: cheap, and raises nothing."""


@dataclass(frozen=True, slots=True)
class _Plan:
    """What requests of the same terms cost on each step down, and the ratios there."""

    costs_ms: tuple[float, ...]
    ratios: tuple[float, ...]


_Terms = tuple[float, float | None, float]


class Inference:
    """Answers requests with the fleet's variants on one device."""

    def __init__(
        self, fleet: Fleet, scheduler: Scheduler, transforming: Transforming, metrics: Metrics
    ) -> None:
        self.fleet = fleet
        self.scheduler = scheduler
        self.transforming = transforming
        self.metrics = metrics
        self.listeners: list[Listener] = []
        self.refusals: list[Callable[[ServiceError, str, str], None]] = []
        self._demand = Demand(perf_counter())
        self._plans: dict[tuple[str, _Terms], _Plan] = {}
        self._looked = 0.0
        self._prefix = secrets.token_hex(6)
        self._last_id = 0

    def new_id(self) -> str:
        """An id for a request whose client gave none, unique over workers."""
        self._last_id += 1
        return f"{self._prefix}-{self._last_id:x}"

    async def infer(
        self,
        model: LoadedModel,
        pinned: LoadedVariant | None,
        request: InferRequest,
        parameters: dict[str, Any],
        arrived: float,
        watch: Callable[[], None] | None = None,
    ) -> Outcome:
        """Answers one request.

        Args:
            model: Which model it is for.
            pinned: The variant that it names, or None to route.
            request: Its inputs, decoded.
            parameters: What it asks for, from body and headers.
            arrived: When it arrived, on `time.perf_counter`.
            watch: Called before it waits for the device: whoever can tell that the client left cancels this
                task then, and the request never runs.

        Raises:
            ServiceError: It cannot be answered as asked; it was counted.
        """
        slo = model.slo.default
        variant, degraded_from, transform_s = pinned, None, 0.0
        try:
            slo = model.slo.read(parameters)
            deadline = arrived + slo.deadline_ms / 1e3
            request, transform_s = await self.transforming.before(model, request, deadline)
            variant, degraded_from = self._route(model, pinned, slo, request, deadline, None)
            try:
                done = await self._run(variant, request, slo, deadline, watch)
            except InferenceError as error:
                if pinned is not None:
                    raise
                variant, degraded_from = self._elsewhere(model, slo, request, deadline, variant, error)
                done = await self._run(variant, request, slo, deadline, watch)
        except asyncio.CancelledError:
            self._count(model.name, variant.name if variant else NO_VARIANT, slo.tier.name, "client_error")
            raise
        except ServiceError as error:
            self._failed(model, variant, slo, request, error, arrived, degraded_from)
            raise
        except Exception:
            self._count(model.name, NO_VARIANT, slo.tier.name, "failed")
            raise
        names = (spec.name for spec in model.card.spec.signature.outputs)
        outputs = self.transforming.after(model, request, dict(zip(names, done.outputs, strict=True)))
        outcome = Outcome(
            request.id or self.new_id(),
            model,
            variant,
            slo.tier.name,
            NO_ARM,
            request,
            outputs,
            None,
            arrived,
            transform_s,
            done.started,
            done.batch_rows,
            done.queue_s,
            done.infer_s,
            perf_counter() - arrived,
            degraded_from,
        )
        self._count_answer(outcome)
        for listener in self.listeners:
            listener.served(outcome)
        return outcome

    def count_error(
        self, model: LoadedModel, variant: LoadedVariant | None, tier: str, error: ServiceError
    ) -> None:
        """Counts a request that ended in an error."""
        name = variant.name if variant else NO_VARIANT
        self._count(model.name, name, tier, error.outcome)
        if error.reason is not None:
            self.metrics.rejected.labels(model.name, error.reason).inc()
        if isinstance(error, DeadlineError):
            self.metrics.deadline_missed.labels(model.name, tier).inc()

    def _route(
        self,
        model: LoadedModel,
        pinned: LoadedVariant | None,
        slo: Slo,
        request: InferRequest,
        deadline: float,
        without: LoadedVariant | None,
    ) -> tuple[LoadedVariant, str | None]:
        """The variant that answers, and the recipe that it stands in for when it is below the floor."""
        now = perf_counter()
        scheduler, inputs, rows = self.scheduler, request.inputs, request.rows
        margin, variants = self.fleet.pace.margin, model.variants

        def completion_ms(candidate: Candidate) -> float:
            variant = variants[candidate.version]
            done_ms = scheduler.completion_ms(variant, inputs, rows, deadline, slo.urgent) * margin
            return done_ms if variant.is_open else done_ms + variant.profile.load_s * 1e3

        lowered = self._offered(model, pinned, slo, rows, now)
        load = Load((deadline - now) * 1e3, completion_ms, scheduler.wait_ms(), lowered)
        if pinned is not None:
            if not pinned.breaker.allows(now):
                raise _open_circuit(pinned.key, pinned.breaker.until - now)
            admit(slo, rows, pinned.candidate, load)
            pinned.breaker.asked(now)
            return pinned, None
        candidates = model.allowed(now)
        if without is not None:
            candidates = [each for each in candidates if each.version != without.version]
        if not candidates and model.candidates:
            raise _open_circuit(model.name, 1.0)
        decision = choose(slo, rows, candidates, load)
        chosen = variants[decision.version]
        chosen.breaker.asked(now)
        return chosen, decision.degraded_from

    def _elsewhere(
        self,
        model: LoadedModel,
        slo: Slo,
        request: InferRequest,
        deadline: float,
        failed: LoadedVariant,
        error: InferenceError,
    ) -> tuple[LoadedVariant, str | None]:
        """Where a request goes whose variant failed: to the next that meets its objectives, once.

        Raises:
            InferenceError: None does; the variant's own error.
        """
        try:
            return self._route(model, None, slo, request, deadline, failed)
        except ServiceError:
            raise error from None

    def _offered(
        self, model: LoadedModel, pinned: LoadedVariant | None, slo: Slo, rows: int, now: float
    ) -> float | None:
        """Counts what a request costs; returns the floor that degrading requests have now, if any."""
        if now - self._looked > _LOOK_S:
            self._looked = now
            before, after = self._demand.level.step, self._demand.look(now).step
            self._plans.clear()
            if before != after:
                log.warning("requests that allow degrading go %d steps down, not %d", after, before)
        if pinned is not None:
            self._demand.offer((work_ms(pinned.candidate, slo.deadline_ms),), rows)
            return None
        key = (model.name, (slo.floor, slo.degraded_floor, slo.deadline_ms))
        plan = self._plans.get(key)
        if plan is None:
            steps = ladder(slo, model.candidates)
            plan = self._plans[key] = _Plan(
                tuple(work_ms(each, slo.deadline_ms) for each in steps), tuple(each.ratio for each in steps)
            )
        if not plan.ratios:
            return None
        self._demand.offer(plan.costs_ms, rows)
        step = self._demand.level.step
        return plan.ratios[min(step, len(plan.ratios) - 1)] if step else None

    async def _run(
        self,
        variant: LoadedVariant,
        request: InferRequest,
        slo: Slo,
        deadline: float,
        watch: Callable[[], None] | None,
    ) -> Completed:
        """Runs a request; a long one in parts, so that it bounds neither memory nor the others' waiting."""
        if not variant.is_open:
            await asyncio.to_thread(variant.open)
        rows, most, submit = request.rows, variant.max_batch_rows, self.scheduler.submit
        if watch is not None and not self.scheduler.is_inline(variant, rows):
            watch()
        if rows <= most:
            return await submit(variant, request.inputs, rows, deadline, slo.urgent)
        parts: list[asyncio.Future[Completed]] = []
        try:
            for start in range(0, rows, most):
                part = slice(start, start + most)
                inputs = {name: array[part] for name, array in request.inputs.items()}
                parts.append(submit(variant, inputs, min(most, rows - start), deadline, slo.urgent))
            return _joined(await asyncio.gather(*parts))
        except BaseException:
            for future in parts:
                future.cancel()
            raise

    def _failed(
        self,
        model: LoadedModel,
        variant: LoadedVariant | None,
        slo: Slo,
        request: InferRequest,
        error: ServiceError,
        arrived: float,
        degraded_from: str | None,
    ) -> None:
        self.count_error(model, variant, slo.tier.name, error)
        if variant is None:
            for refused in self.refusals:
                refused(error, model.name, slo.tier.name)
            return
        total_s = perf_counter() - arrived
        variant.statistics.failed(total_s)
        if self.listeners:
            outcome = Outcome(
                request.id or self.new_id(), model, variant, slo.tier.name, NO_ARM, request, None, error,
                arrived, 0.0, 0.0, 0, 0.0, 0.0, total_s, degraded_from,
            )  # fmt: skip
            for listener in self.listeners:
                listener.served(outcome)

    def _count_answer(self, outcome: Outcome) -> None:
        model, variant, tier = outcome.model.name, outcome.variant, outcome.tier
        tallies = self.metrics.tallies
        self._count(model, variant.name, tier, "ok")
        duration = tallies.histogram(self.metrics.request_duration, model, variant.name, tier, outcome.arm)
        duration.observe(outcome.total_s)
        variant.queue_duration.observe(outcome.queue_s)
        variant.statistics.answered(outcome.request.rows, outcome.queue_s, outcome.total_s)
        if outcome.degraded_from is not None:
            self.metrics.degraded.labels(model, outcome.degraded_from, variant.name).inc()

    def _count(self, model: str, variant: str, tier: str, outcome: str) -> None:
        self.metrics.tallies.counter(self.metrics.requests, model, variant, tier, NO_ARM, outcome).inc()


def _open_circuit(name: str, seconds: float) -> UnavailableError:
    return UnavailableError(
        f"{name} failed several times in a row and is left alone for a moment. Try again after Retry-After.",
        "breaker",
        max(seconds, 1.0),
    )


def _joined(parts: list[Completed]) -> Completed:
    """The answer to a request that ran in parts."""
    columns = zip(*(part.outputs for part in parts), strict=True)
    return Completed(
        outputs=[np.concatenate(column) for column in columns],
        queue_s=max(part.queue_s for part in parts),
        infer_s=sum(part.infer_s for part in parts),
        batch_rows=max(part.batch_rows for part in parts),
        started=min(part.started for part in parts),
    )
