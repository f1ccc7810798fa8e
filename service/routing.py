"""Which variant answers a request: pure functions of what it asks for and how busy the gateway is."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import BadRequestError, UnavailableError, UnmeetableSloError
from service.queues import Priority
from variants.frontier import TIE, fastest
from variants.serving_spec import ServingSpec, TierSpec

# Header by parameter; parameters win over headers.
SLO_HEADERS: dict[bytes, str] = {
    b"x-mipgate-tier": "tier",
    b"x-mipgate-min-accuracy": "min_accuracy",
    b"x-mipgate-max-latency-ms": "max_latency_ms",
    b"x-mipgate-allow-degrade": "allow_degrade",
    b"x-mipgate-sticky-key": "sticky_key",
    b"x-mipgate-priority": "priority",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LONGEST_DEADLINE_MS = 3_600_000.0
_OWN_TERMS = {"min_accuracy", "max_latency_ms", "timeout", "allow_degrade", "priority"}
PRIORITIES = {"interactive": Priority.INTERACTIVE, "batch": Priority.BATCH}
_TRITONS_HIGHEST = 1  # its clients send whole numbers: 0 for the usual one, and larger ones for who may wait
# Of requests of priority `batch` that state none: nobody waits at a screen for them.
BATCH_DEADLINE_MS = 60_000.0
_BATCHES = (1, 2, 4, 8, 16, 32)
_SCARCE_ROWS = 16  # batches are large where time is scarce
# Of the device's time: with more, what is soonest for one row has to be cheap for many, too. The loop that
# reads and writes needs the same cores.
_LEISURE = 1 / 3


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request asks for.

    Attributes:
        tier: The tier that it named, or the default.
        floor: Lowest quality ratio that may answer.
        deadline_ms: Time it gives, from its arrival.
        degraded_floor: How low the floor may sink under load, or None when it may not.
        priority: Who goes before it.
    """

    tier: TierSpec
    floor: float
    deadline_ms: float
    degraded_floor: float | None = None
    priority: Priority = Priority.INTERACTIVE


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant as the router sees it.

    Attributes:
        version: `recipe@build`.
        name: The recipe.
        ratio: Validation quality over the reference's, on the runtime that serves.
        predict_ms: Time of a call with so many rows, as this host runs now.
        profiled_ms: The same by the profile alone.
    """

    version: str
    name: str
    ratio: float
    predict_ms: Callable[[int], float]
    profiled_ms: Callable[[int], float]


@dataclass(frozen=True, slots=True)
class Load:
    """How busy the gateway is, as one request meets it.

    Attributes:
        time_left_ms: Until its deadline.
        completion_ms: Predicted time until a variant's answer would be there; infinite when it would make
            others late.
        wait_ms: Predicted time until all that waits is done.
        lowered: The floor, for the time being, of requests that allow degrading, or None.
        is_scarce: Whether more is asked for than the device can do at full quality, or others wait already:
            what would be there soonest, alone beside their batch, would take most of the device's time.
        is_open: Whether a variant can run without being opened first.
        share: Share of the device's time that what is asked for takes, by the cheapest of full quality.
    """

    time_left_ms: float
    completion_ms: Callable[[Candidate], float]
    wait_ms: float
    lowered: float | None = None
    is_scarce: bool = False
    is_open: Callable[[Candidate], bool] = lambda candidate: True
    share: float = 0.0


@dataclass(frozen=True, slots=True)
class Decision:
    """Which variant answers, and why.

    Attributes:
        version: `recipe@build` of the variant.
        reason: One phrase for logs.
        degraded_from: When its quality is below what was asked for, the recipe that an idle gateway would
            have chosen (empty when none reaches the floor), else None.
    """

    version: str
    reason: str
    degraded_from: str | None = None

    @property
    def degraded(self) -> bool:
        """Whether its quality is below what was asked for."""
        return self.degraded_from is not None


class SloReader:
    """Reads the objectives of requests for one model."""

    def __init__(self, spec: ServingSpec) -> None:
        self._spec = spec
        self._tiers = {tier.name: tier for tier in spec.tiers}
        # Most requests give a tier or nothing: their objectives are made once.
        self._plain = {tier.name: Slo(tier, tier.min_quality_ratio, tier.deadline_ms) for tier in spec.tiers}
        self._default = self._plain[spec.default_tier]

    @property
    def default(self) -> Slo:
        """The objectives of a request that states none."""
        return self._default

    def read(self, parameters: Mapping[str, Any]) -> Slo:
        """The objectives that a request's parameters state.

        Args:
            parameters: From the body, or strings from headers.

        Raises:
            BadRequestError: A parameter has a value that it cannot have.
        """
        if not parameters:
            return self._default
        tier = parameters.get("tier", self._spec.default_tier)
        plain = self._plain.get(tier) if isinstance(tier, str) else None
        if plain is None:
            raise BadRequestError(
                f'{self._spec.model} has no tier "{str(tier)[:80]}". It has {", ".join(self._tiers)}.'
            )
        _check_sticky_key(parameters.get("sticky_key"))
        if not parameters.keys() & _OWN_TERMS:
            return plain
        return self._with_own_terms(plain, parameters)

    def _with_own_terms(self, plain: Slo, parameters: Mapping[str, Any]) -> Slo:
        minimum = _number(parameters, "min_accuracy", 0.0, 1.0)
        deadline = _stated_ms(parameters)
        floor = plain.floor if minimum is None else max(plain.floor, minimum)
        degraded_floor = None
        if _boolean(parameters, "allow_degrade"):
            degraded_floor = min(floor, self._spec.degrade_floor if minimum is None else minimum)
        priority = _priority(parameters)
        if deadline is None:
            deadline = plain.deadline_ms
            if priority is Priority.BATCH:
                deadline = max(deadline, BATCH_DEADLINE_MS)
        return Slo(plain.tier, floor, deadline, degraded_floor, priority)


def choose(slo: Slo, rows: int, candidates: Sequence[Candidate], load: Load) -> Decision:
    """The variant that answers: at or above the floor, the lowest predicted completion.

    Where the device's time is scarce, it is the one among those in time that takes least of it: what it
    leaves is somebody else's answer.

    Args:
        slo: What the request asks for.
        rows: Rows in the request.
        candidates: Released variants that serve.
        load: How busy the gateway is.

    Raises:
        UnmeetableSloError: No variant could meet the floor, or the deadline even on an idle gateway.
        UnavailableError: Too much waits for the deadline.
    """
    floor, degraded_floor = slo.floor, slo.degraded_floor
    if load.lowered is not None and degraded_floor is not None:
        floor = min(floor, max(degraded_floor, load.lowered))
    best = _soonest(floor, candidates, rows, load)
    if best is None and degraded_floor is not None:
        best = _soonest(degraded_floor, candidates, rows, load)
    if best is None:
        lowest = slo.floor if degraded_floor is None else degraded_floor
        raise _refusal(lowest, slo.deadline_ms, rows, candidates, load.wait_ms)
    if best.ratio >= slo.floor:
        return Decision(best.version, "meets the floor")
    usual = _fastest_above(slo.floor, candidates, rows)
    return Decision(best.version, "degraded to be in time", usual.name if usual else "")


def ladder(slo: Slo, candidates: Sequence[Candidate]) -> tuple[Candidate, ...]:
    """What a request may be answered by on each step down: each cheaper than the one before, and worse.

    The first is what meets the floor at the least device time, or the best there is.
    """
    deadline_ms = slo.deadline_ms
    ranked = sorted(candidates, key=lambda c: c.ratio, reverse=True)
    eligible = [c for c in ranked if c.ratio >= slo.floor] or ranked[:1]
    steps = [min(eligible, key=lambda c: work_ms(c, deadline_ms))] if eligible else []
    if slo.degraded_floor is not None:
        for lower in ranked:
            if slo.degraded_floor <= lower.ratio < slo.floor and (
                work_ms(lower, deadline_ms) * TIE < work_ms(steps[-1], deadline_ms)
            ):
                steps.append(lower)
    return tuple(steps)


def work_ms(candidate: Candidate, deadline_ms: float) -> float:
    """Device time per row in the best batch that leaves half of the deadline for waiting."""
    times = [candidate.predict_ms(rows) for rows in _BATCHES]
    return min(
        [time / rows for rows, time in zip(_BATCHES, times, strict=True) if time <= deadline_ms / 2],
        default=times[0],
    )


def admit(slo: Slo, rows: int, pinned: Candidate, load: Load) -> None:
    """Checks that a pinned variant can be in time.

    Raises:
        UnmeetableSloError: Not even on an idle gateway.
        UnavailableError: Too much waits for the deadline.
    """
    if load.completion_ms(pinned) > load.time_left_ms:
        raise _refusal(pinned.ratio, slo.deadline_ms, rows, [pinned], load.wait_ms)


def _soonest(floor: float, candidates: Iterable[Candidate], rows: int, load: Load) -> Candidate | None:
    """The one of lowest completion that is in time; of those that take as long, the best.

    What is soonest for one row may be dear in a batch: where that would take much of the device's time, it is
    the cheapest that is in time. Where time is scarce, the cheapest or none; one whose session is closed
    leaves its place to the next.
    """
    eligible = [c for c in candidates if c.ratio >= floor]
    if load.is_scarce:  # the loop's time is scarce too: no completion is worked out that decides nothing
        for candidate in sorted(eligible, key=_in_batches_ms):
            if load.completion_ms(candidate) <= load.time_left_ms:
                return candidate
            if load.is_open(candidate):
                return None  # the device is full: a costlier one would take the time of several others
        return None
    # Lateness before ties: a better variant that would be late is no answer.
    in_time = [(at, c) for c in eligible if (at := load.completion_ms(c)) <= load.time_left_ms]
    if len(in_time) < 2:
        return in_time[0][1] if in_time else None
    first = min(in_time, key=lambda pair: pair[0])[1]
    limit = first.predict_ms(rows) * TIE
    near = [c for _, c in in_time if c.predict_ms(rows) <= limit]
    soonest = max(near, key=lambda c: (c.ratio, -c.predict_ms(rows)))  # as `frontier.fastest` does
    cheapest = min([c for _, c in in_time], key=_in_batches_ms)
    times_dearer = _in_batches_ms(soonest) / _in_batches_ms(cheapest)
    return cheapest if times_dearer > TIE and times_dearer * load.share > _LEISURE else soonest


def _in_batches_ms(candidate: Candidate) -> float:
    """What a variant takes of the device where many ask."""
    return candidate.predict_ms(_SCARCE_ROWS)


def _fastest_above(floor: float, candidates: Iterable[Candidate], rows: int) -> Candidate | None:
    eligible = [c for c in candidates if c.ratio >= floor]
    return fastest(eligible, lambda c: c.predict_ms(rows), lambda c: c.ratio)


def _refusal(
    floor: float, deadline_ms: float, rows: int, candidates: Sequence[Candidate], wait_ms: float
) -> UnmeetableSloError | UnavailableError:
    """Why no variant at or above the lowest floor that was allowed is in time."""
    if not candidates:
        return UnavailableError("no variant of this model serves now. Try again later.", "refused", 5.0)
    eligible = [c for c in candidates if c.ratio >= floor]
    if not eligible:
        nearest = max(candidates, key=lambda c: c.ratio)
        reached = math.floor(nearest.ratio * 1e4) / 1e4  # rounded up it would not be reached
        return UnmeetableSloError(
            f"no variant reaches a quality ratio of {floor:g}; the nearest is {nearest.name} with "
            f"{reached:.4f}. Ask for min_accuracy {reached:.4f} or less, or a lower tier."
        )
    nearest = min(eligible, key=lambda c: c.profiled_ms(rows))
    alone_ms = nearest.profiled_ms(rows)
    if alone_ms > deadline_ms:
        return UnmeetableSloError(
            f"no variant at a quality ratio of {floor:g} answers {rows} row(s) within "
            f"{deadline_ms:g} ms; the nearest is {nearest.name} with {alone_ms:.3f} ms. "
            "Send fewer rows, or give more time."
        )
    predicted_ms = min(c.predict_ms(rows) for c in eligible)
    return UnavailableError(
        f"what waits already takes {wait_ms:.0f} ms and this request {predicted_ms:.1f} ms as the host runs "
        f"now, more than the deadline of {deadline_ms:g} ms leaves. Try again after Retry-After.",
        "capacity" if predicted_ms <= deadline_ms else "deadline",  # too slow now even where nothing waits
        wait_ms / 1e3,
    )


def _stated_ms(parameters: Mapping[str, Any]) -> float | None:
    """The stated deadline: `max_latency_ms`, or the `timeout` of Triton's clients, in microseconds."""
    stated = _number(parameters, "max_latency_ms", 0.0, _LONGEST_DEADLINE_MS)
    if stated == 0.0:
        raise BadRequestError("parameter max_latency_ms is 0; expected more. Send the time you have.")
    if stated is None and (timeout_us := _number(parameters, "timeout", 0.0, math.inf)):
        return min(timeout_us / 1e3, _LONGEST_DEADLINE_MS)
    return stated


def _number(parameters: Mapping[str, Any], name: str, low: float, high: float) -> float | None:
    value = parameters.get(name)
    if value is None:
        return None
    try:
        number = float(value) if not isinstance(value, bool) else float("nan")
    except (TypeError, ValueError, OverflowError):
        number = float("nan")
    if not low <= number <= high:
        raise BadRequestError(
            f"parameter {name} is {value!r:.80}; expected a number from {low:g} to {high:g}."
        )
    return number


def _boolean(parameters: Mapping[str, Any], name: str) -> bool:
    value = parameters.get(name, False)
    if isinstance(value, bool):
        return value
    known = _BOOLEANS.get(value.lower()) if isinstance(value, str) else None
    if known is None:
        raise BadRequestError(f"parameter {name} is {str(value)[:80]!r}. Send true or false.")
    return known


def _priority(parameters: Mapping[str, Any]) -> Priority:
    value = parameters.get("priority", "interactive")
    known = PRIORITIES.get(value) if isinstance(value, str) else None
    if known is None and isinstance(value, str) and re.fullmatch("[0-9]{1,9}", value):  # of a header
        value = int(value)
    if known is None and isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return Priority.INTERACTIVE if value <= _TRITONS_HIGHEST else Priority.BATCH
    if known is None:
        raise BadRequestError(f"parameter priority is {str(value)[:80]!r}. Send interactive or batch.")
    return known


def _check_sticky_key(value: Any) -> None:
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256):
        raise BadRequestError(
            "parameter sticky_key should be a string of 1 to 256 characters. Send such a string."
        )
