"""Which variant answers a request: pure functions of what it asks for and how busy the gateway is."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from service.errors import BadRequestError, UnavailableError, UnmeetableSloError
from variants.frontier import fastest
from variants.serving_spec import ServingSpec, TierSpec

# Header by parameter; parameters win over headers.
SLO_HEADERS: dict[bytes, str] = {
    b"x-mipgate-tier": "tier",
    b"x-mipgate-min-accuracy": "min_accuracy",
    b"x-mipgate-max-latency-ms": "max_latency_ms",
    b"x-mipgate-allow-degrade": "allow_degrade",
    b"x-mipgate-sticky-key": "sticky_key",
}
_BOOLEANS = {"true": True, "1": True, "false": False, "0": False}
_LONGEST_DEADLINE_MS = 3_600_000.0


@dataclass(frozen=True, slots=True)
class Slo:
    """What a request asks for.

    Attributes:
        tier: The tier that it named, or the default.
        floor: Lowest quality ratio that may answer.
        deadline_ms: Time it gives, from its arrival.
        degraded_floor: How low the floor may sink under load, or None when it may not.
    """

    tier: TierSpec
    floor: float
    deadline_ms: float
    degraded_floor: float | None = None


@dataclass(frozen=True, slots=True)
class Candidate:
    """A variant as the router sees it.

    Attributes:
        version: `recipe@build`.
        name: The recipe.
        ratio: Validation quality over the reference's, on the runtime that serves.
        predict_ms: Time of a call with so many rows.
    """

    version: str
    name: str
    ratio: float
    predict_ms: Callable[[int], float]


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
        if not parameters.keys() & {"min_accuracy", "max_latency_ms", "allow_degrade"}:
            return plain
        return self._with_own_terms(plain, parameters)

    def _with_own_terms(self, plain: Slo, parameters: Mapping[str, Any]) -> Slo:
        minimum = _number(parameters, "min_accuracy", 0.0, 1.0)
        deadline = _number(parameters, "max_latency_ms", 0.0, _LONGEST_DEADLINE_MS)
        if deadline == 0.0:
            raise BadRequestError("parameter max_latency_ms is 0; expected more. Send the time you have.")
        floor = plain.floor if minimum is None else max(plain.floor, minimum)
        degraded_floor = None
        if _boolean(parameters, "allow_degrade"):
            degraded_floor = min(floor, self._spec.degrade_floor if minimum is None else minimum)
        return Slo(plain.tier, floor, plain.deadline_ms if deadline is None else deadline, degraded_floor)


def choose(slo: Slo, rows: int, candidates: Sequence[Candidate], wait_ms: float) -> Decision:
    """The variant that answers: at or above the floor, the lowest predicted completion.

    Args:
        slo: What the request asks for.
        rows: Rows in the request.
        candidates: Released variants that serve.
        wait_ms: Predicted time until the device is free.

    Raises:
        UnmeetableSloError: No variant could meet the floor, or the deadline even on an idle gateway.
        UnavailableError: The queue is too long for the deadline.
    """
    # Lateness before ties: a better variant that would be late is no answer.
    in_time = [c for c in candidates if wait_ms + c.predict_ms(rows) <= slo.deadline_ms]
    if best := _fastest_above(slo.floor, in_time, rows):
        return Decision(best.version, "meets the floor")
    if slo.degraded_floor is None:
        raise _refusal(slo.floor, slo.deadline_ms, rows, candidates, wait_ms)
    if lower := _fastest_above(slo.degraded_floor, in_time, rows):
        wanted = _fastest_above(slo.floor, candidates, rows)
        return Decision(lower.version, "degraded to be in time", wanted.name if wanted else "")
    raise _refusal(slo.degraded_floor, slo.deadline_ms, rows, candidates, wait_ms)


def admit(slo: Slo, rows: int, pinned: Candidate, wait_ms: float) -> None:
    """Checks that a pinned variant can be in time.

    Raises:
        UnmeetableSloError: Not even on an idle gateway.
        UnavailableError: The queue is too long for the deadline.
    """
    if wait_ms + pinned.predict_ms(rows) > slo.deadline_ms:
        raise _refusal(pinned.ratio, slo.deadline_ms, rows, [pinned], wait_ms)


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
    nearest = min(eligible, key=lambda c: c.predict_ms(rows))
    alone_ms = nearest.predict_ms(rows)
    if alone_ms > deadline_ms:
        return UnmeetableSloError(
            f"no variant at a quality ratio of {floor:g} answers {rows} row(s) within "
            f"{deadline_ms:g} ms; the nearest is {nearest.name} with {alone_ms:.3f} ms. "
            "Send fewer rows, or give more time."
        )
    return UnavailableError(
        f"the queue is {wait_ms:.0f} ms long, more than the deadline of {deadline_ms:g} ms leaves. "
        "Try again after Retry-After.",
        "capacity",
        wait_ms / 1e3,
    )


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


def _check_sticky_key(value: Any) -> None:
    if value is not None and not (isinstance(value, str) and 0 < len(value) <= 256):
        raise BadRequestError(
            "parameter sticky_key should be a string of 1 to 256 characters. Send such a string."
        )
