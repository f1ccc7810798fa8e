"""One request from decoded to answered: route, schedule, count. Shared by every API of the gateway."""

from __future__ import annotations

import asyncio
import secrets
from dataclasses import dataclass
from time import perf_counter
from typing import Any, Protocol

import numpy as np

from compression.signature import Array
from service.errors import DeadlineError, ServiceError
from service.fleet import Fleet, LoadedModel, LoadedVariant
from service.metrics import NO_ARM, NO_VARIANT, Metrics
from service.protocol import InferRequest
from service.routing import Slo, admit, choose
from service.scheduler import Completed, Scheduler
from service.transforming import Transforming


@dataclass(frozen=True, slots=True)
class Answer:
    """What came of a request.

    Attributes:
        variant: Which variant answered.
        tier: Name of the tier that was asked for.
        degraded: Whether the quality is below what was asked for.
        outputs: Arrays `(rows, ...)` by output name; with those of a transform where they are asked for.
        transform_s: Time that a text or picture took to become inputs.
        queue_s: Time it waited.
        infer_s: Time that its batch ran.
    """

    variant: LoadedVariant
    tier: str
    degraded: bool
    outputs: dict[str, Array]
    transform_s: float
    queue_s: float
    infer_s: float


@dataclass(frozen=True, slots=True)
class Outcome:
    """How a request that was routed ended.

    Attributes:
        model: Which model it was for.
        variant: Which variant was to answer.
        tier: Name of the tier that was asked for.
        arm: Name of its arm in a rollout, or `NO_ARM`.
        request: Its inputs, decoded; its `id` is what the answer says.
        outputs: Arrays `(rows, ...)` by output name, or None when it failed.
        error: Why it failed, or None.
        arrived: When it arrived, on `time.perf_counter`.
        queue_s: Time it waited; 0 when it failed.
        infer_s: Time that its batch ran; 0 when it failed.
        total_s: Time from arrival to the end.
        degraded_from: As `routing.Decision` has it.
    """

    model: LoadedModel
    variant: LoadedVariant
    tier: str
    arm: str
    request: InferRequest
    outputs: dict[str, Array] | None
    error: ServiceError | None
    arrived: float
    queue_s: float
    infer_s: float
    total_s: float
    degraded_from: str | None


class Listener(Protocol):
    """Is told of every routed request."""

    def served(self, outcome: Outcome) -> None:
        """Called on the event loop: cheap, and raises nothing."""


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
    ) -> Answer:
        """Answers one request.

        Args:
            model: Which model it is for.
            pinned: The variant that it names, or None to route.
            request: Its inputs, decoded.
            parameters: What it asks for, from body and headers.
            arrived: When it arrived, on `time.perf_counter`.

        Raises:
            ServiceError: It cannot be answered as asked; it was counted.
        """
        slo = model.slo.default
        variant = pinned
        try:
            slo = model.slo.read(parameters)
            deadline = arrived + slo.deadline_ms / 1e3
            request, transform_s = await self.transforming.before(model, request, deadline)
            variant, degraded_from = self._route(model, pinned, slo, request.rows)
            done = await self._run(variant, request, deadline)
        except ServiceError as error:
            self.count_error(model, variant, slo.tier.name, error)
            if variant is not None:
                total_s = perf_counter() - arrived
                variant.statistics.failed(total_s)
                for listener in self.listeners:
                    listener.served(
                        Outcome(
                            model,
                            variant,
                            slo.tier.name,
                            NO_ARM,
                            request,
                            None,
                            error,
                            arrived,
                            0.0,
                            0.0,
                            total_s,
                            None,
                        )
                    )
            raise
        except Exception:
            self._count(model.name, NO_VARIANT, slo.tier.name, "failed")
            raise
        self._count_answer(model, variant, slo, arrived, request.rows, done.queue_s)
        if degraded_from is not None:
            self.metrics.degraded.labels(model.name, degraded_from, variant.name).inc()
        names = (spec.name for spec in model.card.spec.signature.outputs)
        outputs = self.transforming.after(model, request, dict(zip(names, done.outputs, strict=True)))
        for listener in self.listeners:
            listener.served(
                Outcome(
                    model,
                    variant,
                    slo.tier.name,
                    NO_ARM,
                    request,
                    outputs,
                    None,
                    arrived,
                    done.queue_s,
                    done.infer_s,
                    perf_counter() - arrived,
                    degraded_from,
                )
            )
        degraded = degraded_from is not None
        return Answer(variant, slo.tier.name, degraded, outputs, transform_s, done.queue_s, done.infer_s)

    async def _run(self, variant: LoadedVariant, request: InferRequest, deadline: float) -> Completed:
        """Runs a request; a long one in parts, so that it bounds neither memory nor the others' waiting."""
        most = variant.max_batch_rows
        if request.rows <= most:
            return await self.scheduler.submit(variant, request.inputs, request.rows, deadline)
        parts: list[asyncio.Future[Completed]] = []
        try:
            for start in range(0, request.rows, most):
                rows = slice(start, start + most)
                inputs = {name: array[rows] for name, array in request.inputs.items()}
                count = min(most, request.rows - start)
                parts.append(self.scheduler.submit(variant, inputs, count, deadline))
            return _joined(await asyncio.gather(*parts))
        except BaseException:
            for part in parts:
                part.cancel()
            raise

    def _route(
        self, model: LoadedModel, pinned: LoadedVariant | None, slo: Slo, rows: int
    ) -> tuple[LoadedVariant, str | None]:
        if pinned is not None:
            admit(slo, rows, pinned.candidate, self.scheduler.wait_ms())
            return pinned, None
        decision = choose(slo, rows, model.candidates, self.scheduler.wait_ms())
        return model.variants[decision.version], decision.degraded_from

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

    def _count_answer(
        self,
        model: LoadedModel,
        variant: LoadedVariant,
        slo: Slo,
        arrived: float,
        rows: int,
        queue_s: float,
    ) -> None:
        tier = slo.tier.name
        total_s = perf_counter() - arrived
        self._count(model.name, variant.name, tier, "ok")
        duration = self.metrics.request_duration
        self.metrics.tallies.histogram(duration, model.name, variant.name, tier, NO_ARM).observe(total_s)
        variant.queue_duration.observe(queue_s)
        variant.statistics.answered(rows, queue_s, total_s)

    def _count(self, model: str, variant: str, tier: str, outcome: str) -> None:
        self.metrics.tallies.counter(self.metrics.requests, model, variant, tier, NO_ARM, outcome).inc()


def _joined(parts: list[Completed]) -> Completed:
    """The answer to a request that ran in parts."""
    columns = zip(*(part.outputs for part in parts), strict=True)
    return Completed(
        outputs=[np.concatenate(column) for column in columns],
        queue_s=max(part.queue_s for part in parts),
        infer_s=sum(part.infer_s for part in parts),
        batch_rows=max(part.batch_rows for part in parts),
    )
