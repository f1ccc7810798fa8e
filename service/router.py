"""Which variant answers a request now: the pure choice of `service.routing`, fed with what this worker sees.

What it sees is the queue, the host's pace, the circuits of its variants, and what all requests ask for.
"""

from __future__ import annotations

import logging
from collections.abc import Callable
from dataclasses import dataclass
from time import perf_counter

from service.breaker import Circuit
from service.demand import Demand
from service.errors import InferenceError, ServiceError, UnavailableError
from service.loaded import LoadedModel, LoadedVariant
from service.protocol import InferRequest
from service.routing import Candidate, Load, Slo, admit, choose, ladder, work_ms
from service.scheduler import Scheduler

log = logging.getLogger("mipgate.router")

# How often the level of degrading is looked at.
_LOOK_S = 0.05

# A queue shorter than this share of the time that is left changes no decision.
_UNHURRIED = 0.1

# Who answers, or may, and what a request asks of it. Objects, not names: what was loaded anew is another.
_Terms = tuple[LoadedModel | LoadedVariant, float, float | None, float]


@dataclass(frozen=True, slots=True)
class Route:
    """Where a request goes.

    Attributes:
        variant: What answers it.
        degraded_from: As `routing.Decision` has it.
    """

    variant: LoadedVariant
    degraded_from: str | None = None


@dataclass(frozen=True, slots=True)
class _Plan:
    """What requests of the same terms cost on each step down, and the ratios there; a pinned one has none."""

    costs_ms: tuple[float, ...]
    ratios: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Usual:
    """What was chosen a moment ago, for as many rows and the same terms, while little waited.

    Attributes:
        route: Where the request went.
        needs_ms: What it takes there.
        plan: What it costs.
    """

    route: Route
    needs_ms: float
    plan: _Plan


class Router:
    """Routes the requests of one device."""

    def __init__(self, scheduler: Scheduler, clock: Callable[[], float] = perf_counter) -> None:
        self._scheduler = scheduler
        self._clock = clock
        self._demand = Demand(clock())
        self._plans: dict[_Terms, _Plan] = {}
        self._usual: dict[tuple[_Terms, int], _Usual] = {}
        self._looked = 0.0

    def route(
        self,
        model: LoadedModel,
        pinned: LoadedVariant | None,
        slo: Slo,
        request: InferRequest,
        deadline: float,
    ) -> Route:
        """Where a request goes.

        Args:
            model: Which model it is for.
            pinned: The variant that it names, or None.
            slo: What it asks for.
            request: Its inputs, decoded and transformed.
            deadline: On `time.perf_counter`.

        Raises:
            UnmeetableSloError: Nothing could ever meet what it asks for.
            UnavailableError: Nothing can now.
        """
        now, rows = self._clock(), request.rows
        time_left_ms = (deadline - now) * 1e3
        terms = (model if pinned is None else pinned, slo.floor, slo.degraded_floor, slo.deadline_ms)
        usual = self._usual.get((terms, rows))
        if (
            usual is not None
            and now - self._looked <= _LOOK_S
            and self._is_unhurried(usual.route.variant, usual.needs_ms, time_left_ms)
        ):
            self._demand.offer(usual.plan.costs_ms, rows)
            return usual.route
        if now - self._looked > _LOOK_S:
            self._look(now)
        plan = self._plan(model, pinned, slo, terms)
        lowered = self._offered(plan, rows)
        load = self._load(model, slo, request, deadline, now, lowered)
        if pinned is None:
            route = self._choose(model, model.allowed(now), slo, request, load, now)
            is_usual = lowered is None and not load.is_scarce and route.degraded_from is None
        else:
            route, is_usual = self._admit(pinned, slo, rows, load, now), True
        needs_ms = route.variant.predict_ms(rows)
        if is_usual and self._is_unhurried(route.variant, needs_ms, time_left_ms):
            self._usual[terms, rows] = _Usual(route, needs_ms, plan)
        return route

    def elsewhere(
        self,
        model: LoadedModel,
        failed: LoadedVariant,
        slo: Slo,
        request: InferRequest,
        deadline: float,
        error: InferenceError,
    ) -> Route:
        """Where a request goes whose variant failed: to the next that meets its objectives.

        Raises:
            InferenceError: None does; the variant's own error.
        """
        now = self._clock()
        others = [each for each in model.allowed(now) if each.version != failed.version]
        try:
            load = self._load(model, slo, request, deadline, now, None)
            return self._choose(model, others, slo, request, load, now)
        except ServiceError:
            raise error from None

    def is_in_time(
        self, variant: LoadedVariant, slo: Slo, request: InferRequest, deadline: float, now: float
    ) -> bool:
        """Whether a variant's answer would be there by a deadline."""
        time_left_ms = (deadline - now) * 1e3
        return (
            self._is_unhurried(variant, variant.predict_ms(request.rows), time_left_ms)
            or self._completion_ms(variant, slo, request, deadline) <= time_left_ms
        )

    def _completion_ms(
        self, variant: LoadedVariant, slo: Slo, request: InferRequest, deadline: float
    ) -> float:
        """Time, on the safe side, until a variant's answer would be there."""
        done_ms = self._scheduler.completion_ms(variant, request.inputs, request.rows, deadline, slo.priority)
        return done_ms if variant.is_open else done_ms + variant.profile.load_s * 1e3

    def _is_unhurried(self, variant: LoadedVariant, needs_ms: float, time_left_ms: float) -> bool:
        """Whether so little waits that what was chosen a moment ago for the same terms is right again."""
        return (
            variant.breaker.circuit is Circuit.CLOSED
            and variant.is_open
            and self._scheduler.wait_ms() + needs_ms <= _UNHURRIED * time_left_ms
        )

    def _admit(self, pinned: LoadedVariant, slo: Slo, rows: int, load: Load, now: float) -> Route:
        if not pinned.breaker.allows(now):
            raise _open_circuit(pinned.key, pinned.breaker.until - now)
        admit(slo, rows, pinned.candidate, load)
        pinned.breaker.asked(now)
        return Route(pinned)

    def _choose(
        self,
        model: LoadedModel,
        candidates: list[Candidate],
        slo: Slo,
        request: InferRequest,
        load: Load,
        now: float,
    ) -> Route:
        if not candidates and model.candidates:
            raise _open_circuit(model.name, 1.0)
        decision = choose(slo, request.rows, candidates, load)
        chosen = model.variants[decision.version]
        chosen.breaker.asked(now)
        return Route(chosen, decision.degraded_from)

    def _load(
        self,
        model: LoadedModel,
        slo: Slo,
        request: InferRequest,
        deadline: float,
        now: float,
        lowered: float | None,
    ) -> Load:
        variants = model.variants

        def completion_ms(candidate: Candidate) -> float:
            return self._completion_ms(variants[candidate.version], slo, request, deadline)

        time_left_ms, wait_ms = (deadline - now) * 1e3, self._scheduler.wait_ms()
        is_scarce = self._demand.is_scarce or wait_ms > _UNHURRIED * time_left_ms
        return Load(
            time_left_ms, completion_ms, wait_ms, lowered, is_scarce,
            lambda c: variants[c.version].is_open, self._demand.share,
        )  # fmt: skip

    def _plan(self, model: LoadedModel, pinned: LoadedVariant | None, slo: Slo, terms: _Terms) -> _Plan:
        """What requests of these terms cost, worked out once between two looks."""
        plan = self._plans.get(terms)
        if plan is None:
            if pinned is not None:
                plan = _Plan((work_ms(pinned.candidate, slo.deadline_ms),))
            else:
                steps = ladder(slo, model.candidates)
                costs_ms = tuple(work_ms(each, slo.deadline_ms) for each in steps)
                plan = _Plan(costs_ms, tuple(each.ratio for each in steps))
            self._plans[terms] = plan
        return plan

    def _offered(self, plan: _Plan, rows: int) -> float | None:
        """Counts what a request costs; returns the floor that degrading requests have now, if any."""
        if plan.costs_ms:  # else nothing can answer it
            self._demand.offer(plan.costs_ms, rows)
        step = self._demand.level.step
        return plan.ratios[min(step, len(plan.ratios) - 1)] if step and plan.ratios else None

    def _look(self, now: float) -> None:
        self._looked = now
        before, after = self._demand.level.step, self._demand.look(now).step
        self._plans.clear()
        self._usual.clear()
        if before != after:
            log.warning("requests that allow degrading go %d steps down now, not %d", after, before)


def _open_circuit(name: str, seconds: float) -> UnavailableError:
    return UnavailableError(
        f"{name} failed several times in a row and is left alone for a moment. Try again after Retry-After.",
        "breaker",
        max(seconds, 1.0),
    )
