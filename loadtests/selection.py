"""Which targets a load test aims at, from what the gateway offers and what is known of the model. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from loadtests.targets import MIX, GatewayError, Offer, Target

_RELEASED = "released"


def choose_targets(
    offered: Offer, document: Mapping[str, Any], wanted: Sequence[str] | None, *, mix: bool = False
) -> tuple[list[Target], dict[str, str]]:
    """The targets to measure, and why variants of the document are left out.

    Args:
        offered: What the gateway offers.
        document: What `mipgate show MODEL --json` prints.
        wanted: Labels such as `tier:fast`; None takes all.
        mix: Whether all tiers at once are a target too, the first.

    Raises:
        ValueError: A wanted target does not exist.
        GatewayError: The gateway and the document are not of the same model.
    """
    if unknown := [tier for tier in offered.tiers if tier not in document["tiers"]]:
        raise GatewayError(
            f"the gateway offers the tiers {', '.join(unknown)}, and the document does not know them. "
            "Give the document of the model that is served."
        )
    targets = [
        replace(t, unfit=_unfit(t.name, document)) if t.kind == "tier" else t for t in offered.targets()
    ]
    if mix:
        targets = [Target(offered.model, "mix", MIX), *targets]
    not_measured = {
        entry["name"]: f"{entry['status']}: {entry.get('reason') or 'the gateway does not offer it'}"
        for entry in document["variants"]
        if entry["name"] not in offered.variants
    }
    if wanted is None:
        return targets, not_measured
    known = {target.label: target for target in targets}
    if missing := [label for label in wanted if label not in known]:
        raise ValueError(f"unknown target {', '.join(missing)}; the gateway offers {', '.join(known)}")
    return [known[label] for label in dict.fromkeys(wanted)], {}


def _unfit(tier: str, document: Mapping[str, Any]) -> dict[str, str]:
    """Variants whose quality ratio is below the tier's floor, or that are not released: with the reason."""
    floor = document["tiers"][tier]["min_quality_ratio"]
    fit: set[str] = set()
    unfit: dict[str, str] = {}
    for entry in document["variants"]:
        ratio = ((entry.get("quality") or {}).get("validation") or {}).get("ratio")
        if entry["life"] != _RELEASED:
            unfit[entry["name"]] = f"it is {entry['life']}, not released"
        elif ratio is None or ratio < floor:
            unfit[entry["name"]] = f"its quality ratio {ratio} is below the floor {floor}"
        else:
            fit.add(entry["name"])  # a candidate build of the same recipe changes nothing
    return {name: why for name, why in unfit.items() if name not in fit}


def with_reference(targets: list[Target], offered: Offer, reference: str) -> list[Target]:
    """The targets, and the reference: quality ratios need its pass over the test split."""
    target = Target(offered.model, "variant", reference)
    if target in targets or reference not in offered.variants:
        return targets
    return [target, *targets]
