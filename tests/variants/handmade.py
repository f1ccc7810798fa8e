"""Cards, profiles and artifacts made by hand, for what is pure."""

from __future__ import annotations

from pathlib import Path

from compression.signature import Signature, TensorSpec
from variants.card import Card, Entry, Failure
from variants.catalog import StoredVariant
from variants.host import Host
from variants.profile import BATCH_SIZES, Latency, Profile, Quality
from variants.quality import Estimate
from variants.scorecard import Scorecard
from variants.serving_spec import ServingSpec, TierSpec
from variants.variant import Life, Lineage, Status, Variant, VariantId

HOST = Host("0123456789ab", "some cpu", ("avx2",), 2, 2, {"onnxruntime": "1"})
OTHER_HOST = Host("ba9876543210", "another cpu", (), 8, 8, {"onnxruntime": "1"})
SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch",)),))
TIERS = (TierSpec("accurate", 0.999, 200), TierSpec("balanced", 0.99, 100), TierSpec("fast", 0.97, 50))
SPEC = ServingSpec("m", SIGNATURE, "accuracy", "fp32", TIERS)


def variant_id(recipe: str, build: str = "a" * 12) -> VariantId:
    return VariantId("m", recipe, build)


def entry(
    recipe: str, build: str = "a" * 12, life: Life = Life.RELEASED, failure: Failure | None = None
) -> Entry:
    return Entry(variant_id(recipe, build), life, [{"pass": recipe, "settings": {}}], failure)


def failed(recipe: str, status: Status = Status.FAILED, reason: str = "it broke") -> Entry:
    return entry(recipe, life=Life.CANDIDATE, failure=Failure(status, reason))


def estimate(ratio: float) -> Estimate:
    return Estimate(0.9 * ratio, 0.8 * ratio, 0.95 * ratio, ratio, 0.98 * ratio, 360)


def profile(
    ratio: float = 1.0,
    ms: float = 1.0,
    *,
    runtime: str = "onnxruntime-cpu",
    test_ratio: float | None = None,
    latency_ms: dict[int, float] | None = None,
) -> Profile:
    """A profile whose time grows with the batch."""
    times = latency_ms or {size: ms * (1 + size / 10) for size in BATCH_SIZES}
    quality = Quality(estimate(ratio), estimate(ratio if test_ratio is None else test_ratio), 0.99, 0.1)
    latency = {size: Latency(time, 1.5 * time, 2 * time) for size, time in times.items()}
    return Profile(runtime, "f32", 2, 0.1, 1000, latency, quality, "2026-01-01T00:00:00+00:00")


def stored(of: Entry, bytes: int = 1000) -> StoredVariant:
    lineage = Lineage("source", "data", "recipe", {of.id.recipe: 1}, {"torch": "2"}, 0)
    variant = Variant(of.id, of.steps, lineage, "2026-01-01T00:00:00+00:00")
    scorecard = Scorecard(bytes, "f" * 64, 10, 9, 20, 1.5, 2000, [{"pass": of.id.recipe, "facts": {}}])
    return StoredVariant(variant, scorecard, Path("/store") / of.id.tag)


def card(*entries: Entry, profiles: dict[str, list[Profile]] | None = None, host: Host = HOST) -> Card:
    return Card(SPEC, entries).with_profiles(host, profiles or {}, {})
