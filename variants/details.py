"""What follows from stored figures and is not stored: ratios, changes per class, portability."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict
from typing import Any

from variants import document
from variants.confusion import ClassChange, class_changes
from variants.profile import Profile, Quality
from variants.quality import Estimate
from variants.scorecard import Scorecard
from variants.serving_spec import ServingSpec


def describe_profile(profile: Profile) -> dict[str, Any]:
    """A profile with its jitter and throughput, and what is worked out of its quality."""
    described: dict[str, Any] = document.to_json(profile)
    described["quality"] = describe_quality(profile.quality)
    for batch, latency in profile.latency_ms.items():
        described["latency_ms"][str(batch)]["jitter"] = round(latency.jitter, 4)
    described["throughput_rows_s"] = {
        str(batch): round(1e3 * batch / latency.p50, 1) for batch, latency in profile.latency_ms.items()
    }
    return described


def describe_quality(quality: Quality) -> dict[str, Any]:
    """A quality, and whether it differs from the reference's by more than chance."""
    described: dict[str, Any] = document.to_json(quality)
    for split in ("validation", "test"):
        measured: Estimate = getattr(quality, split)
        described[split]["significant"] = measured.significant
    described["robustness"] = [asdict(each) | {"drop_ratio": each.drop_ratio} for each in quality.robustness]
    return described


def changed_classes(quality: Quality, reference: Quality) -> dict[str, list[ClassChange]]:
    """By split, what became of each class against the reference, the greatest losses first."""
    return {
        split: class_changes(cells, reference.confusion[split])
        for split, cells in quality.confusion.items()
        if split in reference.confusion
    }


def describe_size(card: Scorecard) -> dict[str, Any]:
    """Weights and work of an artifact."""
    return {
        "parameters": card.parameters,
        "nonzero_parameters": card.nonzero_parameters,
        "flops": card.flops,
        "macs": card.macs,
        "weights": card.weights,
        "moved_bytes": asdict(card.traffic) | {"total": card.traffic.bytes} if card.traffic else None,
        "intensity": card.intensity,
    }


def describe_cost(card: Scorecard) -> dict[str, Any]:
    """What the build took."""
    return {
        "build_seconds": card.build_seconds,
        "peak_memory_bytes": card.peak_memory_bytes,
        "seconds": asdict(card.seconds) if card.seconds else None,
    }


def against_baseline(spec: ServingSpec, reference: Profile | None) -> str | None:
    """Whether the reference is worth its cost beside the spec's baseline, in words; None without either."""
    if spec.comparison is None or reference is None:
        return None
    return spec.comparison.sentence(f"{spec.model}'s {spec.reference}", reference.predict_ms(1))


def compression_ratios(card: Scorecard, reference: Scorecard) -> dict[str, float]:
    """How many times smaller than the reference an artifact is, by each measure; more is smaller."""
    pairs = {
        "bytes": (reference.bytes, card.bytes),
        "parameters": (reference.parameters, card.parameters),
        "nonzero_parameters": (reference.nonzero_parameters, card.nonzero_parameters),
        "flops": (reference.flops, card.flops),
    }
    if reference.traffic and card.traffic:
        pairs["moved_bytes"] = (reference.traffic.bytes, card.traffic.bytes)
    return {name: round(before / after, 4) for name, (before, after) in pairs.items() if after}


def portability(profiles: tuple[Profile, ...], refusals: Mapping[str, str]) -> list[dict[str, Any]]:
    """Every runtime of this host: whether it ran the artifact, and how far its answers were from the others'.

    `golden_deviation` compares with the same artifact on the reference runtime, the rest with the reference.
    """
    ran = [
        {
            "runtime": profile.runtime,
            "precision": profile.precision,
            "threads": profile.threads,
            "runs": True,
            "agreement": profile.quality.agreement,
            "max_abs_error": profile.quality.max_abs_error,
            "golden_deviation": profile.golden_deviation,
        }
        for profile in profiles
    ]
    refused = []
    for name, reason in refusals.items():
        engine, precision, threads = name.rsplit(" ", 2)
        named = {"runtime": engine, "precision": precision, "threads": int(threads.removeprefix("x"))}
        refused.append(named | {"runs": False, "reason": reason})
    return [*ran, *refused]


def facts_of(established: Mapping[str, Any]) -> str:
    """What one step or check of a build established, in a line."""
    named = {key: value for key, value in established.items() if key not in ("pass", "check")}
    facts = established.get("facts", named)
    return ", ".join(f"{key} {value}" for key, value in facts.items()) if isinstance(facts, dict) else ""
