"""The verdict on every variant of a model on one host: runtime, health, gain, and which tier it serves.

Nothing here is stored: it follows from the card, the scorecards and the host's profiles. Only validation
quality decides; test quality is carried along.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from math import sqrt
from typing import Any

from variants import document
from variants.card import Card, Entry, HostProfiles
from variants.catalog import Catalog, StoredVariant
from variants.details import (
    against_baseline,
    changed_classes,
    compression_ratios,
    describe_cost,
    describe_profile,
    describe_quality,
    describe_size,
    portability,
)
from variants.frontier import TIE, dominates, fastest
from variants.host import Host
from variants.profile import Profile
from variants.store import DamagedArtifactError
from variants.variant import Life, Status

# A runtime keeps a variant's quality when its ratio is within this share of the best runtime's.
_QUALITY_KEPT = 0.995


@dataclass(frozen=True)
class Standing:
    """A variant as it stands on a host.

    Attributes:
        entry: Its entry in the card.
        stored: The artifact, or None when there is none to trust.
        status: Its health.
        reason: Why it has this status, empty when it serves.
        profile: The profile of the runtime that serves it, or None when no runtime can.
        profiles: Profiles of all runtimes.
        gain: `latency+size`, `latency`, `size` or `none`, against the reference.
    """

    entry: Entry
    stored: StoredVariant | None
    status: Status
    reason: str
    profile: Profile | None
    profiles: tuple[Profile, ...]
    gain: str = "none"

    @property
    def ratio(self) -> float:
        """Validation quality over the reference's, 0 when unknown."""
        return self.profile.quality.validation.ratio if self.profile else 0.0

    @property
    def routable(self) -> bool:
        """Whether the router may choose it."""
        return self.entry.life is Life.RELEASED and self.status is Status.SERVING


def assess(card: Card, stored: Mapping[str, StoredVariant | str], host: Host) -> list[Standing]:
    """Judges every variant of a card.

    Args:
        card: The model's card.
        stored: By `recipe@build`: the artifact, or why there is none to trust.
        host: Where it would serve.
    """
    standings = [_stand_alone(card, entry, stored.get(entry.id.version), host) for entry in card.entries]
    reference = find_reference(card, standings)
    serving = [s for s in standings if s.status is Status.SERVING and s.entry.life is Life.RELEASED]
    return [_stand_among(standing, serving, reference, card.spec.profile_batch) for standing in standings]


def find_reference(card: Card, standings: Iterable[Standing]) -> Standing | None:
    """What others are held against: of a retrained reference's builds, the released one."""
    references = [s for s in standings if s.entry.id.recipe == card.spec.reference and s.profile]
    return max(references, key=lambda s: s.entry.life is Life.RELEASED, default=None)


def measured_metric(card: Card, standings: Iterable[Standing]) -> str:
    """What quality was measured by here: without labels another metric than the model's own."""
    reference = find_reference(card, standings)
    measured = reference.profile.quality.metric if reference and reference.profile else ""
    return measured or card.spec.metric


def assess_model(catalog: Catalog, model: str, host: Host) -> tuple[Card, list[Standing]]:
    """Reads and verifies a model and judges its variants.

    Raises:
        CatalogError: The model is not registered, or its card is damaged.
    """
    card = catalog.card(model)
    return card, assess(card, verify_artifacts(catalog, card), host)


def verify_artifacts(catalog: Catalog, card: Card) -> dict[str, StoredVariant | str]:
    """Opens every artifact of a card; damaged ones become the reason why they are refused."""
    found: dict[str, StoredVariant | str] = {}
    for entry in card.entries:
        if entry.failure is None:
            try:
                found[entry.id.version] = catalog.open(entry.id)
            except (DamagedArtifactError, document.DocumentError) as error:
                found[entry.id.version] = str(error)
    return found


def choose_profile(profiles: Iterable[Profile], batch: int | None = None) -> Profile | None:
    """The runtime that serves: the fastest that keeps quality.

    A second thread must make it 1.4 times as fast, and so on by the square root: threads are taken from the
    reading and writing of requests, which a profile of an idle machine does not see.
    """
    known = list(profiles)
    best = max((p.quality.validation.ratio for p in known), default=0.0)
    kept = [p for p in known if p.quality.validation.ratio >= best * _QUALITY_KEPT]
    return fastest(kept, lambda p: p.cost_ms(batch) * sqrt(p.threads), lambda p: p.quality.validation.ratio)


def tier_choice(standings: Iterable[Standing], floor: float) -> Standing | None:
    """The variant that answers one row on an idle gateway, for a floor on the quality ratio."""
    eligible = [s for s in standings if s.routable and s.ratio >= floor]
    return fastest(eligible, lambda s: s.profile.predict_ms(1) if s.profile else 0.0, lambda s: s.ratio)


def describe(card: Card, standings: list[Standing], host: Host) -> dict[str, Any]:
    """The document of `mipgate show MODEL --json`."""
    tiers = {}
    reference = find_reference(card, standings)
    for tier in card.spec.tiers:
        choice = tier_choice(standings, tier.min_quality_ratio)
        tiers[tier.name] = {
            "min_quality_ratio": tier.min_quality_ratio,
            "deadline_ms": tier.deadline_ms,
            "serves": choice.entry.id.recipe if choice else None,
        }
    return {
        "model": card.spec.model,
        "metric": measured_metric(card, standings),
        "reference": card.spec.reference,
        "host": document.to_json(host),
        "tiers": tiers,
        "baseline": _describe_baseline(card, reference),
        "variants": [
            _describe_variant(standing, reference, card.hosts.get(host.fingerprint)) for standing in standings
        ],
    }


def _stand_alone(card: Card, entry: Entry, stored: StoredVariant | str | None, host: Host) -> Standing:
    """What is true of a variant whatever the others are."""
    if entry.failure is not None:
        return Standing(entry, None, entry.failure.status, entry.failure.reason, None, ())
    if not isinstance(stored, StoredVariant):
        return Standing(entry, None, Status.REFUSED, stored or "its artifact is not in the store", None, ())
    measured = card.hosts.get(host.fingerprint)
    known = measured.profiles.get(entry.id.version, ()) if measured else ()
    profiles = tuple(profile for profile in known if profile.threads <= host.threads)
    profile = choose_profile(profiles, card.spec.profile_batch)
    if profile is None:
        refusals = measured.refusals.get(entry.id.version, {}) if measured else {}
        reason = "; ".join(f"{runtime}: {why}" for runtime, why in refusals.items())
        reason = reason or f"not profiled on this host. Run `mipgate profile {card.spec.model}`."
        return Standing(entry, stored, Status.REFUSED, reason, None, ())
    return Standing(entry, stored, Status.SERVING, "", profile, profiles)


def _stand_among(
    standing: Standing, serving: list[Standing], reference: Standing | None, batch: int | None
) -> Standing:
    """What follows from the comparison with the others: dominance and gain."""
    profile, stored = standing.profile, standing.stored
    if profile is None or stored is None:
        return standing
    status, reason = standing.status, standing.reason
    for other in serving:
        if other is not standing and other.profile is not None and dominates(other.profile, profile):
            status = Status.DOMINATED
            reason = f"{other.entry.id.recipe} is at least as good and faster at every batch size"
            break
    gain = "none"
    if reference and reference.profile and reference.stored and reference is not standing:
        is_faster = profile.cost_ms(batch) * TIE < reference.profile.cost_ms(batch)
        is_smaller = stored.scorecard.bytes * TIE < reference.stored.scorecard.bytes
        parts = [name for name, won in (("latency", is_faster), ("size", is_smaller)) if won]
        gain = "+".join(parts) or "none"
    return Standing(standing.entry, stored, status, reason, profile, standing.profiles, gain)


def _describe_baseline(card: Card, reference: Standing | None) -> dict[str, Any] | None:
    if card.spec.comparison is None:
        return None
    sentence = against_baseline(card.spec, reference.profile if reference else None)
    described: dict[str, Any] = document.to_json(card.spec.comparison)
    return described | {"sentence": sentence}


def _describe_variant(
    standing: Standing, reference: Standing | None, measured: HostProfiles | None
) -> dict[str, Any]:
    entry, stored, profile = standing.entry, standing.stored, standing.profile
    base = reference.profile.quality if reference and reference.profile else None
    refusals = measured.refusals.get(entry.id.version, {}) if measured else {}
    described: dict[str, Any] = {
        "name": entry.id.recipe,
        "build": entry.id.build,
        "life": entry.life.value,
        "status": standing.status.value,
        "reason": standing.reason,
        "recipe": entry.steps,
        "artifact": None,
        "quality": describe_quality(profile.quality) if profile else None,
        "size": None,
        "cost": None,
        "invariants": [],
        "runtime": profile.runtime if profile else None,
        "precision": profile.precision if profile else None,
        "threads": profile.threads if profile else None,
        "profiles": [describe_profile(known) for known in standing.profiles],
        "classes": document.to_json(changed_classes(profile.quality, base)) if profile and base else {},
        "portability": portability(standing.profiles, refusals),
        "gain": standing.gain,
    }
    if stored is not None:
        card = stored.scorecard
        described |= {
            "artifact": {
                "path": str(stored.model_path),
                "bytes": card.bytes,
                "sha256": card.sha256,
                "tag": entry.id.tag,
            },
            "size": describe_size(card),
            "cost": describe_cost(card),
            "invariants": card.invariants,
            "sqnr": document.to_json(card.sqnr) if card.sqnr else None,
            "unmeasured": card.unmeasured,
            "created": stored.variant.created,
        }
        if reference and reference.stored:
            described["compression"] = compression_ratios(card, reference.stored.scorecard)
    return described
