"""What serving needs to know of a registered model. Torch-free; published as JSON in the catalog."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from compression.signature import Signature
from variants.comparison import Comparison


class SpecError(ValueError):
    """A spec is missing or contradicts itself; the message says what to change."""


@dataclass(frozen=True)
class TierSpec:
    """A level of service that a request can ask for by name.

    Attributes:
        name: `accurate`, `balanced`, `fast`, or a name of the model's own.
        min_quality_ratio: Floor on a variant's quality over the reference's.
        deadline_ms: Deadline of a request that gives none, in milliseconds from its arrival.
    """

    name: str
    min_quality_ratio: float
    deadline_ms: float


@dataclass(frozen=True)
class Transform:
    """What turns texts or pictures into a model's inputs, or its outputs into labels.

    Attributes:
        name: Name in `variants.transforms.TRANSFORMS`.
        settings: What that transform validates.
    """

    name: str
    settings: Mapping[str, Any] = field(default_factory=dict)


def transform(name: str, **settings: Any) -> Transform:
    """A transform in one line: `transform("labels", names=("ham", "spam"))`."""
    return Transform(name, settings)


# The first two floors are MLPerf's accuracy gates.
DEFAULT_TIERS = (
    TierSpec("accurate", min_quality_ratio=0.999, deadline_ms=500),
    TierSpec("balanced", min_quality_ratio=0.99, deadline_ms=200),
    TierSpec("fast", min_quality_ratio=0.97, deadline_ms=100),
)


@dataclass(frozen=True)
class ServingSpec:
    """What the gateway reads of a model.

    Attributes:
        model: The registered name.
        signature: Inputs and outputs.
        metric: Name of the quality metric, as `variants.metrics.find_metric` takes it.
        reference: The recipe that all others are measured against.
        tiers: Levels of service.
        default_tier: The tier of a request that names none.
        degrade_floor: Lowest quality ratio that a request may sink to when it allows degrading.
        allow_non_finite: Whether inputs may hold NaN and infinities.
        profile_batch: Batch size that decides which runtime serves; None for 1 and 8 together.
        description: One line for people.
        transforms: What the gateway does before and after the model.
        files: Names of the files that the transforms read; they lie beside the model's card.
        comparison: The reference against a simpler model, where the spec has one.
    """

    model: str
    signature: Signature
    metric: str
    reference: str
    tiers: tuple[TierSpec, ...] = DEFAULT_TIERS
    default_tier: str = "balanced"
    degrade_floor: float = 0.95
    allow_non_finite: bool = False
    profile_batch: int | None = None
    description: str = ""
    transforms: tuple[Transform, ...] = ()
    files: tuple[str, ...] = ()
    comparison: Comparison | None = None
