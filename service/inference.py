"""One request from decoded to answered: route, schedule, count. Shared by every API of the gateway."""

from __future__ import annotations

import asyncio
import secrets
from collections.abc import Awaitable, Callable
from time import perf_counter
from typing import Any

import numpy as np

from service.course import Course, Listener, Part, Watch
from service.errors import (
    DeadlineError,
    InferenceError,
    NonFiniteError,
    OverrunError,
    ServiceError,
    UnavailableError,
)
from service.experiments import Experiments, is_finite
from service.fleet import Fleet
from service.lag import LoopLag
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import NO_ARM, NO_VARIANT, Metrics
from service.protocol import InferRequest
from service.router import Route, Router
from service.scheduler import Completed, Scheduler
from service.transforming import Transforming


class Inference:
    """Answers requests with the fleet's variants on one device.

    Attributes:
        listeners: Told of every request that was routed.
        refusals: Told of every other: why, of which model and tier, and its id.
        experiments: The rollouts that requests take part in.
        lag: How much earlier requests came than the loop says.
    """

    def __init__(
        self, fleet: Fleet, scheduler: Scheduler, transforming: Transforming, metrics: Metrics
    ) -> None:
        self.fleet = fleet
        self.scheduler = scheduler
        self.transforming = transforming
        self.metrics = metrics
        self.listeners: list[Listener] = []
        self.refusals: list[Callable[[ServiceError, str, str, str], None]] = []
        self.experiments: Experiments | None = None
        self.lag = LoopLag()
        self._router = Router(scheduler)
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
        watch: Watch | None = None,
        request_id: str | None = None,
    ) -> Course:
        """Answers one request.

        Args:
            model: Which model it is for.
            pinned: The variant that it names, or None to route.
            request: Its inputs, decoded.
            parameters: What it asks for, from body and headers.
            arrived: When it arrived, on `time.perf_counter`.
            watch: Called before it waits for the device: whoever can tell that the client left cancels this
                task then, and the request never runs.
            request_id: What it is called; None for the client's own id, or a new one.

        Raises:
            ServiceError: It cannot be answered as asked; it was counted.
        """
        request_id = request_id or request.id or self.new_id()
        arrived -= self.lag.seconds
        course = Course(model, pinned, model.slo.default, request, request_id, arrived, watch)
        try:
            course.slo = model.slo.read(parameters)
            course.deadline = arrived + course.slo.deadline_ms / 1e3
            if model.has_transforms:
                course.request, course.transform_s = await self.transforming.before(
                    model, request, course.deadline
                )
            done = await self._answer(course, parameters)
        except asyncio.CancelledError:
            self._count(course, "client_error")
            if self.experiments is not None and course.part is not None:
                self.experiments.abandoned(course, course.part)
            raise
        except ServiceError as error:
            self._failed(course, error)
            raise
        except Exception:
            self._count(course, "failed")
            raise
        return self._answered(course, done)

    def count_error(
        self,
        model: LoadedModel,
        variant: LoadedVariant | None,
        tier: str,
        error: ServiceError,
        arm: str = NO_ARM,
    ) -> None:
        """Counts a request that ended in an error."""
        name = variant.name if variant else NO_VARIANT
        metrics = self.metrics
        metrics.tallies.counter(metrics.requests, model.name, name, tier, arm, error.outcome).inc()
        if error.reason is not None:
            metrics.tallies.counter(metrics.rejected, model.name, error.reason).inc()
        if isinstance(error, DeadlineError):
            metrics.tallies.counter(metrics.deadline_missed, model.name, tier).inc()

    async def _answer(self, course: Course, parameters: dict[str, Any]) -> Completed:
        """What the chosen variant says; when it fails, what the next says that meets the objectives."""
        model, pinned, slo, request = course.model, course.pinned, course.slo, course.request
        course.route = route = self._router.route(model, pinned, slo, request, course.deadline)
        if pinned is not None:
            return await self._run(course, route.variant)
        if self.experiments is not None and route.degraded_from is None:
            course.part = self.experiments.part(model, slo, parameters, route.variant)
        try:
            if course.part is not None and course.part.behind is not None:
                done = await self._ask_arm(course, course.part, course.part.behind)
                if done is not None:
                    return done
            return await self._run(course, course.route.variant)
        except InferenceError as error:
            asked = course.route.variant
            course.suspects(asked, error)
            if course.part is not None and course.part.route.variant is asked:
                course.fell = error
            course.route = self._router.elsewhere(model, asked, slo, request, course.deadline, error)
            return await self._run(course, course.route.variant)

    async def _ask_arm(self, course: Course, part: Part, behind: Route) -> Completed | None:
        """What an arm's variant says in the time that all arms have.

        Returns:
            None when another has to: what is routed to now, which has the rest of the caller's time. Where it
            only waited too long, that is the router's own choice, if the arm's is that.
        """
        assert course.route is not None  # the router chose before
        slo, request, variant = course.slo, course.request, part.route.variant
        is_usual = variant is course.route.variant  # the router asked for its circuit and its time
        now, until = perf_counter(), course.arm_deadline
        try:
            if not is_usual:
                if not variant.breaker.allows(now):
                    raise InferenceError(f"the circuit of {variant.key} is open.")
                fits = now + variant.predict_ms(request.rows) / 1e3 <= until
                # Else as the router admits its own choice: whether its turn comes in time shows then.
                if not (fits and self._router.is_in_time(variant, slo, request, course.deadline, now)):
                    raise UnavailableError(f"{variant.key} would be late.")
                variant.breaker.asked(now)
            done = await self._run(course, variant, until)
            if not is_finite(done):
                raise NonFiniteError(f"{variant.key} answers values that are not finite.")
        except ServiceError as error:
            course.fell = error
            course.suspects(variant, error)
            if is_usual and isinstance(error, InferenceError | OverrunError):
                course.route = behind
            return None
        course.route = part.route
        return done

    def _run(
        self, course: Course, variant: LoadedVariant, until: float | None = None
    ) -> Awaitable[Completed]:
        """Runs a request, which is given up at `until`, by default its deadline."""
        request, rows = course.request, course.request.rows
        if course.watch is not None and not self.scheduler.is_inline(variant, rows):
            course.watch()
        if variant.is_open and rows <= variant.max_batch_rows:
            return self.scheduler.submit(
                variant, request.inputs, rows, course.deadline, course.slo.priority, 1, until
            )
        return self._run_apart(course, variant, until)

    async def _run_apart(self, course: Course, variant: LoadedVariant, until: float | None) -> Completed:
        """Opens the variant for a request, and runs a long one in parts.

        So it bounds neither memory nor the others' waiting.
        """
        if not variant.is_open:
            await variant.ensure_open()
        request, priority, submit = course.request, course.slo.priority, self.scheduler.submit
        rows, most, deadline = request.rows, variant.max_batch_rows, course.deadline
        if rows <= most:
            return await submit(variant, request.inputs, rows, deadline, priority, 1, until)
        parts: list[asyncio.Future[Completed]] = []
        try:
            for start in range(0, rows, most):
                part = slice(start, start + most)
                inputs = {name: array[part] for name, array in request.inputs.items()}
                taken = min(most, rows - start)
                parts.append(submit(variant, inputs, taken, deadline, priority, int(start == 0), until))
            return _joined(await asyncio.gather(*parts))
        except BaseException:
            for future in parts:
                future.cancel()
            raise

    def _answered(self, course: Course, done: Completed) -> Course:
        """Counts an answer and tells of it."""
        model, request, route = course.model, course.request, course.route
        assert route is not None  # it was answered
        variant = route.variant
        if course.suspect is not None and course.suspect is not variant:
            course.suspect.blame()
        outputs = dict(zip(model.own_outputs, done.outputs, strict=True))
        if model.has_transforms:
            outputs = self.transforming.after(model, request, outputs)
        course.done, course.outputs = done, outputs
        course.total_s = total_s = perf_counter() - course.arrived
        variant.answered(course.slo.tier.name, course.arm, request.rows, done.queue_s, total_s)
        if route.degraded_from is not None:
            metrics = self.metrics
            metrics.tallies.counter(metrics.degraded, model.name, route.degraded_from, variant.name).inc()
        if self.experiments is not None:
            self.experiments.answered(course)
        for listener in self.listeners:
            listener.served(course)
        return course

    def _failed(self, course: Course, error: ServiceError) -> None:
        """Counts an error and tells of it."""
        model, variant, tier = course.model, course.chosen, course.tier
        course.error, course.total_s = error, perf_counter() - course.arrived
        self.count_error(model, variant, tier, error, course.arm)
        if self.experiments is not None and course.part is not None:
            self.experiments.failed(course, course.part, error)
        if variant is None:
            for refused in self.refusals:
                refused(error, model.name, tier, course.request_id)
            return
        variant.statistics.failed(course.total_s)
        for listener in self.listeners:
            listener.served(course)

    def _count(self, course: Course, outcome: str) -> None:
        variant = course.chosen
        self.metrics.tallies.counter(
            self.metrics.requests,
            course.model.name,
            variant.name if variant else NO_VARIANT,
            course.tier,
            course.arm,
            outcome,
        ).inc()


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
