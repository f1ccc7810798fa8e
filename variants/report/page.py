"""Puts the report together: sentences, tables and pictures in one HTML file that needs no network."""

from __future__ import annotations

import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined, select_autoescape
from markupsafe import Markup

from variants.assessment import Standing, find_reference, measured_metric, tier_choice
from variants.card import Card, HostProfiles
from variants.details import against_baseline, changed_classes, facts_of, portability
from variants.host import Host
from variants.labels import class_name, class_names
from variants.quality import Estimate
from variants.report import charts
from variants.store import human_bytes

_WORST_CLASSES = 3


@dataclass(frozen=True)
class Section:
    """A part of the page that a picture leads.

    Attributes:
        name: Anchor and key.
        title: Heading.
        text: What the picture shows and how to read it.
        figure: The picture.
    """

    name: str
    title: str
    text: str
    figure: charts.Figure


def render(card: Card, standings: Sequence[Standing], host: Host) -> str:
    """The report as HTML.

    Args:
        card: The model's card.
        standings: Its variants as they stand on the host.
        host: Where they were profiled.
    """
    names = class_names(card.spec.transforms)
    reference = find_reference(card, standings)
    environment = Environment(
        loader=PackageLoader("variants.report", ""),
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.filters |= {"bytes": human_bytes, "ms": _milliseconds}
    sections = list(_sections(card, standings, reference, names)) if reference else []
    metric = measured_metric(card, standings)
    return environment.get_template("page.html.j2").render(
        card=card,
        spec=card.spec,
        metric=metric,
        host=host,
        made=datetime.now(UTC).strftime("%Y-%m-%d %H:%M UTC"),
        verdicts=[sentence for s in standings if (sentence := verdict(s, reference, metric))],
        baseline=against_baseline(card.spec, reference.profile if reference else None),
        tiers=[(tier, tier_choice(standings, tier.min_quality_ratio)) for tier in card.spec.tiers],
        rows=[_row(s, reference) for s in standings],
        figures_of=[(s.entry.id.recipe, p, score) for s, p, score in charts.measured(standings)],
        runtimes=list(_runtimes(standings, card.measured_on(host))),
        missing=[s for s in standings if s.profile is None],
        classes=list(_classes(standings, reference, names)),
        lineages=[_lineage(card, s) for s in standings if s.stored],
        sections=sections,
        figures=Markup(_script_safe({section.name: section.figure for section in sections})),
        plotly=Markup(_plotly()),  # the library's own script
    )


def _milliseconds(value: float) -> str:
    """With three digits that tell: `0.026 ms`, `47.9 ms`, `1,234 ms`."""
    return f"{value:,.0f} ms" if value >= 100 else f"{value:#.3g} ms"


def verdict(standing: Standing, reference: Standing | None, metric: str) -> str | None:
    """One sentence on what a variant brings and costs; None for the reference and what was not measured."""
    profile, stored = standing.profile, standing.stored
    if reference is None or standing is reference or profile is None or stored is None:
        return None
    base, base_card = reference.profile, reference.stored
    if base is None or base_card is None:
        return None
    quality, test = profile.quality.validation, profile.quality.test
    single, eight = (base.predict_ms(batch) / profile.predict_ms(batch) for batch in (1, 8))
    smaller = base_card.scorecard.bytes / stored.scorecard.bytes
    return (
        f"{standing.entry.id.recipe} is {single:.2f}x as fast at batch 1, {eight:.2f}x at batch 8, and "
        f"{smaller:.1f}x smaller. It keeps {quality.ratio:.2%} of the reference's {metric} on validation (at "
        f"least {quality.ratio_low:.2%} at 95% confidence) and has {test.value:.4f} on test; "
        f"{_significance(test)}."
    )


def _significance(estimate: Estimate) -> str:
    if estimate.p_value is None:
        return "whether it differs from the reference was not tested"
    way = "drop" if estimate.ratio < 1 else "gain" if estimate.ratio > 1 else "difference"
    said = "significant" if estimate.significant else "not significant"
    return f"the {way} there is {said} (p = {estimate.p_value:.2g})"


def _sections(
    card: Card, standings: Sequence[Standing], reference: Standing, names: Sequence[str]
) -> Iterator[Section]:
    metric = measured_metric(card, standings)
    yield Section(
        "frontier",
        "What quality costs",
        "Each point is a variant on its best runtime here; bars are 95% intervals on validation. Nothing is "
        "both cheaper and better than the dotted line. Amber points are candidates, grey ones are dominated.",
        charts.frontier(standings, metric),
    )
    yield Section(
        "gains",
        "What each technique gains on this host",
        "Right of the red line is better than the reference. A variant can be smaller and slower at once: "
        "what it gains depends on the kernels that the runtime has for this processor.",
        charts.gains(standings, reference),
    )
    yield Section(
        "kept",
        "What each technique keeps",
        "Quality over the reference's on the same rows; the bar reaches down to the lower end of the paired "
        "95% interval. Amber marks a loss that chance alone does not explain. Dotted: the tiers' floors.",
        charts.kept(standings, reference, {t.name: t.min_quality_ratio for t in card.spec.tiers}),
    )
    optional = (
        (
            "sensitivity",
            "Which layers suffer",
            "Noise in each layer's weights or results, whichever is worse, the worst first: candidates to "
            "stay in a wider number format by their name (exclude_nodes), or for int8-accuracy-control.",
            charts.sensitivity(standings),
        ),
        (
            "confusion",
            "What is taken for what",
            "Shares of each label's test rows; colours end at 20%, so that mistakes show.",
            charts.confusions(standings, names),
        ),
        (
            "robustness",
            "On disturbed rows",
            "Validation rows, disturbed: pictures by noise, blur and faded contrast (after Hendrycks and "
            "Dietterich 2019), texts by typos, capitals, lost spaces and a lost end.",
            charts.robustness(standings, metric),
        ),
        (
            "curves",
            "How they learned",
            "Validation loss by epoch; the epoch with the lowest was kept.",
            charts.curves(standings),
        ),
    )
    for name, title, text, figure in optional:
        if figure is not None:
            yield Section(name, title, text, figure)


def _row(standing: Standing, reference: Standing | None) -> dict[str, Any]:
    profile, stored = standing.profile, standing.stored
    row: dict[str, Any] = {
        "standing": standing,
        "profile": profile,
        "score": stored.scorecard if stored else None,
    }
    base = reference.stored.scorecard if reference and reference.stored else None
    if stored and base:
        row["smaller"] = _over(base.bytes, stored.scorecard.bytes)
        row["parameters"] = _over(base.parameters, stored.scorecard.parameters)
        row["operations"] = _over(base.flops, stored.scorecard.flops)
    return row


def _over(reference: float, own: float) -> str:
    return f"{reference / own:.2f}x" if own else "-"


def _classes(
    standings: Sequence[Standing], reference: Standing | None, names: Sequence[str]
) -> Iterator[tuple[str, str]]:
    """Variant, and the classes that it lost most of."""
    base = reference.profile.quality if reference and reference.profile else None
    for standing, profile, _ in charts.measured(standings):
        changes = changed_classes(profile.quality, base).get("test") if base else None
        if changes is None or standing is reference:
            continue
        lost = [each for each in changes if each.recall_change < 0][:_WORST_CLASSES]
        said = [
            f"{class_name(each.label, names)} {each.recall_change:+.1%} of {each.rows} rows" for each in lost
        ]
        yield standing.entry.id.recipe, ", ".join(said) or "none"


def _runtimes(standings: Sequence[Standing], measured: HostProfiles) -> Iterator[tuple[str, dict[str, Any]]]:
    """Which runtimes of the host ran each variant, how fast and how faithfully, or why not."""
    for standing in standings:
        cost = {(p.runtime, p.precision, p.threads): p.predict_ms(1) for p in standing.profiles}
        refusals = measured.refusals.get(standing.entry.id.version, {})
        for row in portability(standing.profiles, refusals):
            key = row["runtime"], row["precision"], row["threads"]
            yield standing.entry.id.recipe, row | {"ms": cost.get(key)}


def _lineage(card: Card, standing: Standing) -> dict[str, Any]:
    stored = standing.stored
    assert stored is not None
    entry = standing.entry
    recipe = {"name": entry.id.recipe, "steps": entry.steps, "seed": stored.variant.lineage.seed}
    return {
        "id": str(entry.id),
        "lineage": stored.variant.lineage,
        "established": [
            (each.get("pass", each.get("check", "")), facts_of(each)) for each in stored.scorecard.invariants
        ],
        "sha256": stored.scorecard.sha256,
        "created": stored.variant.created,
        "file": f"{entry.id.recipe}.json",
        "command": f"mipgate build {card.spec.model} --recipe-file {entry.id.recipe}.json",
        "recipe": json.dumps(recipe, indent=2),
        "seconds": stored.scorecard.build_seconds,
    }


def _script_safe(value: Any) -> str:
    """JSON that may stand in a script element: no `</script>` can end it."""
    return json.dumps(value, separators=(",", ":")).replace("<", "\\u003c")


def _plotly() -> str:
    return (files("plotly") / "package_data" / "plotly.min.js").read_text(encoding="utf-8")
