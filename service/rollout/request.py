"""What starts a rollout: the request for one, and the checks that it could ever be decided."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from service.errors import BadRequestError, ConflictError
from service.rollout.bandit import FLOOR, parse_reward
from service.rollout.comparison import judges_classes
from service.rollout.guard import Guard, Source, parse_guard
from service.rollout.rollout import CANDIDATE, PRIMARY, Arm, Kind, Rollout

DEFAULT_FRACTION = 0.1
DEFAULT_STEPS = (5.0, 25.0, 50.0, 100.0)
_MOST_CANDIDATES = 8

Name = Annotated[str, Field(min_length=1, max_length=200)]
Percent = Annotated[float, Field(gt=0, le=100)]
Seconds = Annotated[float, Field(gt=0, le=30 * 86400)]


class RolloutRequest(BaseModel):
    """The body of `POST /admin/models/{model}/rollouts`."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)

    kind: Kind
    candidate: Name | Annotated[tuple[Name, ...], Field(min_length=1, max_length=_MOST_CANDIDATES)] = Field(
        description="A recipe (its newest candidate build, else the released one) or `recipe@build`."
    )
    primary: Name | None = Field(
        None,
        description="The variant that answers beside it; by default whatever the router chooses, or the "
        "reference where the router chooses the candidate.",
    )
    tier: Name | None = Field(None, description="Only requests of this tier take part.")
    weight: Percent | None = Field(None, description="A/B: percent of each candidate, by default equal.")
    weights: dict[Name, Annotated[float, Field(ge=0, le=100)]] | None = Field(
        None, description="A/B: percent by arm (`primary`, `candidate`, `candidate-2`), 100 in all."
    )
    steps: Annotated[tuple[Percent, ...], Field(min_length=1, max_length=100)] | None = Field(
        None, description="Canary: growing weights of the candidate, 5, 25, 50, 100 by default."
    )
    step_duration_s: Seconds = Field(
        60.0, description="Shortest time of a step; how often a bandit shares anew."
    )
    guards: Annotated[tuple[Name, ...], Field(max_length=16)] = Field((), description="What must hold.")
    fraction: Annotated[float, Field(ge=0, le=1)] | None = Field(
        None, description="Share of requests that are copied; 0.1 where a guard compares answers."
    )
    reward: Name | None = Field(None, description="Bandit: accuracy, in_time or `within 20ms`.")
    failure: Literal["keep", "retire"] = Field("keep", description="What becomes of a candidate that failed.")
    failure_budget: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.01, description="Share of its requests that a candidate may fail; more sends all back at once."
    )
    max_duration_s: Seconds = Field(3600.0, description="After this it is inconclusive.")

    @property
    def candidates(self) -> tuple[str, ...]:
        """The candidates, one or several."""
        return (self.candidate,) if isinstance(self.candidate, str) else self.candidate


@dataclass(frozen=True, slots=True)
class VariantFacts:
    """A variant that could be an arm.

    Attributes:
        version: `recipe@build`.
        life: `candidate`, `released` or `retired`.
        refused: Why it cannot serve, or an empty string.
    """

    version: str
    life: str
    refused: str = ""


@dataclass(frozen=True, slots=True)
class ModelFacts:
    """What must be known of a model before a rollout of it.

    Attributes:
        model: Its name.
        metric: Name of its metric.
        default_tier: The tier of a request that names none.
        primaries: By tier, the version that the router chooses on an idle gateway; None where nothing serves.
        reference: The version that qualities are held against.
        variants: All builds, the newest first.
        rollouts: Those of the model that have not ended.
        feedback: Whether the gateway takes delayed labels.
    """

    model: str
    metric: str
    default_tier: str
    primaries: Mapping[str, str | None]
    reference: str
    variants: tuple[VariantFacts, ...]
    rollouts: tuple[Rollout, ...] = ()
    feedback: bool = True

    def usual(self, tier: str | None) -> str | None:
        """What the router chooses for requests of a tier, or of the default one."""
        return self.primaries[tier or self.default_tier]


def read_request(body: Any) -> RolloutRequest:
    """Reads the request's JSON.

    Raises:
        BadRequestError: A field is missing, unknown or of the wrong kind; the message names it.
    """
    try:
        return RolloutRequest.model_validate(body)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        field = ".".join(str(part) for part in first["loc"][:1]) or "body"
        message = f"{first['msg'][:1].lower()}{first['msg'][1:]}"
        known = ", ".join(RolloutRequest.model_fields)
        raise BadRequestError(f"{field}: {message}. A rollout has {known}.") from error


def begin(request: RolloutRequest, facts: ModelFacts, rollout_id: str, now: float) -> Rollout:
    """A new rollout, if it could be decided.

    Args:
        request: What is asked for.
        facts: What is known of the model.
        rollout_id: Its name, new.
        now: Seconds since the epoch.

    Raises:
        BadRequestError: A field asks for what is not there or can never be decided; the message names it.
        ConflictError: Another rollout has the same requests.
    """
    guards, versions = validate(request, facts)
    planned = _planned(request, len(versions) - 1)
    candidates = [
        Arm(CANDIDATE if number == 1 else f"{CANDIDATE}-{number}", version, 0.0, weight)
        for number, (version, weight) in enumerate(zip(versions[1:], planned, strict=True), 1)
    ]
    return Rollout(
        id=rollout_id,
        model=facts.model,
        tier=request.tier,
        kind=request.kind,
        arms=(Arm(PRIMARY, versions[0], 100.0, 100.0 - sum(planned)), *candidates),
        created=now,
        entered=now,
        deadline=now + request.max_duration_s,
        guards=guards,
        steps=_steps(request),
        step_duration_s=request.step_duration_s,
        fraction=_fraction(request, guards),
        reward=request.reward or "",
        failure_budget=request.failure_budget,
        retire_failed=request.failure == "retire",
        keeps_primary=request.primary is not None or versions[0] != facts.usual(request.tier),
        reason="waits until every worker has loaded all arms",
        updated=now,
    )


def validate(request: RolloutRequest, facts: ModelFacts) -> tuple[tuple[Guard, ...], tuple[str, ...]]:
    """Checks that a rollout is possible and could be decided.

    Returns:
        Its guards, and the versions of its arms, the primary's first.

    Raises:
        BadRequestError: A field asks for what is not there or can never be decided; the message names it.
        ConflictError: Another rollout has the same requests.
    """
    _check_fields_of_kind(request)
    _check_shares(request)
    _check_tier(request, facts)
    versions = _versions(request, facts)
    guards = tuple(parse_guard(text, f"guards.{place}") for place, text in enumerate(request.guards))
    if not guards and request.kind in (Kind.CANARY, Kind.SHADOW):
        raise BadRequestError(
            f"guards: a {request.kind.value} without any is never decided. "
            'Give some, such as "errors<=1%" or "agreement>=0.99".'
        )
    for place, guard in enumerate(guards):
        _check_measured(f"guards.{place}", guard, request, facts)
    if request.reward and parse_reward(request.reward).source is Source.FEEDBACK:
        _check_feedback("reward", request.reward, facts)
        if not judges_classes(facts.metric):
            raise BadRequestError(
                f"reward: {facts.model} is judged by {facts.metric}, which is no share of right answers. "
                "Give in_time or a limit such as within 20ms."
            )
    return guards, versions


_FIELDS_OF_KIND = {
    "weight": Kind.AB,
    "weights": Kind.AB,
    "steps": Kind.CANARY,
    "reward": Kind.BANDIT,
}


def _check_fields_of_kind(request: RolloutRequest) -> None:
    for field, kind in _FIELDS_OF_KIND.items():
        if getattr(request, field) is not None and request.kind is not kind:
            raise BadRequestError(
                f"{field}: belongs to a rollout of kind {kind.value}, not {request.kind.value}. Leave it out."
            )
    if request.kind is Kind.BANDIT and not request.reward:
        raise BadRequestError(
            "reward: a bandit needs one. Give accuracy, in_time or a limit such as within 20ms."
        )
    if request.kind is Kind.CANARY and len(request.candidates) > 1:
        raise BadRequestError("candidate: a canary has one. Use a shadow, a bandit or an A/B for several.")
    if request.kind is Kind.SHADOW and request.fraction == 0:
        raise BadRequestError("fraction: a shadow that copies nothing sees nothing. Give 0.1, for one.")


def _check_shares(request: RolloutRequest) -> None:
    steps = request.steps or ()
    for before, after in pairwise(steps):
        if after <= before:
            raise BadRequestError(f"steps: {after:g} does not lie above {before:g}. Give growing weights.")
    if request.weight is not None and request.weights is not None:
        raise BadRequestError("weights: weight is given too. Give one of them.")
    count = len(request.candidates)
    if request.weights is not None:
        names = {PRIMARY, CANDIDATE, *(f"{CANDIDATE}-{number}" for number in range(2, count + 1))}
        if request.weights.keys() != names:
            raise BadRequestError(f"weights: expected exactly the arms {', '.join(sorted(names))}.")
        total = sum(request.weights.values())
        if abs(total - 100) > 1e-6:
            raise BadRequestError(f"weights: they sum to {total:g}, not to 100. Change one of them.")
    elif request.weight is not None and request.weight * count > 100:
        raise BadRequestError(
            f"weight: {count} candidates of {request.weight:g}% sum to more than 100. Give less, or weights."
        )
    if request.kind is Kind.BANDIT and FLOOR * (count + 1) > 100:
        raise BadRequestError("candidate: too many arms for a bandit. Give fewer.")


def _check_tier(request: RolloutRequest, facts: ModelFacts) -> None:
    if request.tier is not None and request.tier not in facts.primaries:
        raise BadRequestError(
            f'tier: {facts.model} has no tier "{request.tier[:80]}". It has {", ".join(facts.primaries)}.'
        )
    for other in facts.rollouts:
        if other.tier is None or request.tier is None or other.tier == request.tier:
            shared = "all tiers" if other.tier is None else f"tier {other.tier}"
            raise ConflictError(
                f"tier: rollout {other.id} of {facts.model} has {shared} and is {other.phase.value}. "
                f"Promote or abort it first."
            )


def _versions(request: RolloutRequest, facts: ModelFacts) -> tuple[str, ...]:
    candidates = [_resolve("candidate", name, facts, prefers="candidate") for name in request.candidates]
    if request.primary is not None:
        primary: str | None = _resolve("primary", request.primary, facts, prefers="released")
    else:
        primary = facts.usual(request.tier)
        if primary in candidates:
            primary = facts.reference
    if primary is None:
        raise BadRequestError(
            f"primary: no variant of {facts.model} serves this tier. Release one, or name the primary."
        )
    for place, version in enumerate(candidates):
        if version == primary:
            raise BadRequestError(
                f"candidate: {version} is the primary already. Name another candidate, or another primary."
            )
        if version in candidates[:place]:
            raise BadRequestError(f"candidate: {version} is named twice. Name each once.")
    return primary, *candidates


def _resolve(field: str, name: str, facts: ModelFacts, prefers: str) -> str:
    """The version that a recipe or `recipe@build` names."""
    named = [v for v in facts.variants if name in (v.version, v.version.partition("@")[0])]
    if not named:
        known = ", ".join(dict.fromkeys(v.version.partition("@")[0] for v in facts.variants))
        raise BadRequestError(f'{field}: {facts.model} has no variant "{name[:80]}". It has {known}.')
    alive = [v for v in named if v.life != "retired"]
    if not alive:
        raise BadRequestError(f"{field}: {named[0].version} is retired. Name one that is not.")
    chosen = next((v for v in alive if v.life == prefers), alive[0])
    if chosen.refused:
        raise BadRequestError(f"{field}: {chosen.version} cannot serve: {chosen.refused}")
    return chosen.version


def _check_measured(field: str, guard: Guard, request: RolloutRequest, facts: ModelFacts) -> None:
    """Checks that somebody measures what a guard is about."""
    name, source = guard.name, guard.statistic.source
    if name in ("agreement", "accuracy", "loss") and (name == "loss") == judges_classes(facts.metric):
        instead = {"agreement": "cosine or max_abs", "accuracy": "loss", "loss": "accuracy"}[name]
        raise BadRequestError(
            f'{field}: nobody measures {name} of a model judged by {facts.metric} ("{guard.text}"). '
            f"Use {instead}."
        )
    if source is Source.COMPARISONS and request.fraction == 0:
        raise BadRequestError(
            f'{field}: nobody measures {name} without copies ("{guard.text}"), and fraction is 0. '
            "Leave fraction out, or give 0.1."
        )
    if source is Source.FEEDBACK:
        _check_feedback(field, guard.text, facts)
    if request.kind is Kind.SHADOW and (source is Source.FEEDBACK or name == "misses"):
        raise BadRequestError(
            f'{field}: nobody measures {name} of a shadow ("{guard.text}"): callers never see its answers. '
            "Use agreement, cosine, max_abs, errors or a quantile, or start a canary."
        )


def _check_feedback(field: str, text: str, facts: ModelFacts) -> None:
    if not facts.feedback:
        raise BadRequestError(
            f'{field}: nobody measures "{text}": this gateway takes no feedback. Leave it out.'
        )


def _planned(request: RolloutRequest, count: int) -> list[float]:
    """The first weight of each candidate, in percent."""
    if request.kind is Kind.SHADOW:
        return [0.0] * count
    if request.kind is Kind.CANARY:
        return [_steps(request)[0]]
    if request.kind is Kind.AB and request.weights is not None:
        names = [CANDIDATE, *(f"{CANDIDATE}-{number}" for number in range(2, count + 1))]
        return [request.weights[name] for name in names]
    if request.kind is Kind.AB and request.weight is not None:
        return [request.weight] * count
    return [100.0 / (count + 1)] * count


def _steps(request: RolloutRequest) -> tuple[float, ...]:
    if request.kind is not Kind.CANARY:
        return ()
    return request.steps or DEFAULT_STEPS


def _fraction(request: RolloutRequest, guards: tuple[Guard, ...]) -> float:
    """How much is copied: as asked, else some where answers are compared."""
    if request.fraction is not None:
        return request.fraction
    compared = request.kind is Kind.SHADOW or any(g.statistic.source is Source.COMPARISONS for g in guards)
    return DEFAULT_FRACTION if compared else 0.0
