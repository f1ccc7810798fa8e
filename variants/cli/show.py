"""`mipgate show`."""

from __future__ import annotations

import click

from variants.assessment import Standing, assess_model, describe, tier_choice
from variants.card import Card
from variants.catalog import Catalog
from variants.cli.output import human_bytes, json_option, print_json, print_table
from variants.host import Host, this_host
from variants.profile import Profile
from variants.quality import Estimate
from variants.variant import parse_name


@click.command(name="show")
@click.argument("name", metavar="MODEL[/VARIANT]")
@json_option
def command(name: str, as_json: bool) -> None:
    """Show a model, or one of its variants in full.

    Example: mipgate show digits --json
    Example: mipgate show digits/int8-static
    """
    model, recipe, build = parse_name(name) if "/" in name else (name, None, None)
    host = this_host()
    card, standings = assess_model(Catalog(), model, host)
    document = describe(card, standings, host)
    if recipe is None:
        print_json(document) if as_json else print_model(card, standings, host)
        return
    entry = card.find(recipe, build)
    position = next(i for i, standing in enumerate(standings) if standing.entry == entry)
    if as_json:
        print_json(document["variants"][position])
    else:
        _print_variant(standings[position])


def print_model(card: Card, standings: list[Standing], host: Host) -> None:
    """Prints a model's variants and tiers as tables."""
    serves = {
        tier.name: choice.entry.id.recipe
        for tier in card.spec.tiers
        if (choice := tier_choice(standings, tier.min_quality_ratio))
    }
    columns = [
        "variant", "build", "life", "status", "runtime", "size>", "p50 b1>", "p50 b8>",
        f"{card.spec.metric} val", "ratio (low)", "test", "gain",
    ]  # fmt: skip
    print_table(
        columns, [_row(s) for s in standings], f"{card.spec.model} on {host.cpu}, {host.threads} threads"
    )
    click.echo()
    tiers = [
        [t.name, f"{t.min_quality_ratio:.3f}", f"{t.deadline_ms:g} ms", serves.get(t.name, "nothing")]
        for t in card.spec.tiers
    ]
    print_table(["tier", "floor>", "deadline>", "served by"], tiers)
    for first, second in zip(card.spec.tiers, card.spec.tiers[1:], strict=False):
        if serves.get(first.name) and serves.get(first.name) == serves.get(second.name):
            click.echo(f"{first.name} and {second.name} fall on one variant, {serves[first.name]}.")
    if reasons := [(s.entry.id.recipe, s.reason) for s in standings if s.reason]:
        click.echo()
        for recipe, reason in reasons:
            click.echo(f"{recipe}: {reason}")


def _row(standing: Standing) -> list[str]:
    entry, stored, profile = standing.entry, standing.stored, standing.profile
    row = [entry.id.recipe, entry.id.build, entry.life.value, standing.status.value]
    if profile is None:
        size = human_bytes(stored.scorecard.bytes) if stored else "-"
        return [*row, "-", size, "-", "-", "-", "-", "-", "-"]
    quality = profile.quality
    return [
        *row,
        f"{profile.runtime} {profile.precision} x{profile.threads}",
        human_bytes(stored.scorecard.bytes) if stored else "-",
        f"{profile.latency_ms[1].p50:.3f} ms",
        f"{profile.latency_ms[8].p50:.3f} ms",
        _interval(quality.validation),
        f"{quality.validation.ratio:.4f} ({quality.validation.ratio_low:.4f})",
        f"{quality.test.value:.4f}",
        standing.gain,
    ]


def _interval(estimate: Estimate) -> str:
    return f"{estimate.value:.4f} [{estimate.low:.4f}, {estimate.high:.4f}]"


def _print_variant(standing: Standing) -> None:
    entry, stored = standing.entry, standing.stored
    lines = [
        ("variant", str(entry.id)),
        ("life, status", f"{entry.life.value}, {standing.status.value} {standing.reason}".strip()),
        ("recipe", " -> ".join(step["pass"] for step in entry.steps) or "none: the reference"),
        ("gain", standing.gain),
    ]
    if stored is not None:
        card = stored.scorecard
        lines += [
            ("artifact", f"{stored.model_path} ({human_bytes(card.bytes)}, sha256 {card.sha256[:12]})"),
            ("parameters", f"{card.parameters:,} ({card.nonzero_parameters:,} not zero)"),
            ("operations", f"{card.flops:,} per row"),
            ("built", f"in {card.build_seconds:.1f} s, peak memory {human_bytes(card.peak_memory_bytes)}"),
            *((str(fact.get("pass", fact.get("check", ""))), _facts(fact)) for fact in card.invariants),
        ]
    print_table(["", ""], [list(line) for line in lines])
    rows = [_latency_row(p, batch) for p in standing.profiles for batch in p.latency_ms]
    if rows:
        click.echo()
        columns = ["runtime", "batch>", "p50 ms>", "p95 ms>", "p99 ms>", "load>", "memory>", "validation"]
        print_table([*columns, "test"], rows)


def _latency_row(profile: Profile, batch: int) -> list[str]:
    latency = profile.latency_ms[batch]
    return [
        f"{profile.runtime} {profile.precision} x{profile.threads}",
        str(batch),
        *(f"{value:.3f}" for value in (latency.p50, latency.p95, latency.p99)),
        f"{profile.load_s * 1e3:.0f} ms",
        human_bytes(profile.memory_bytes),
        _interval(profile.quality.validation),
        _interval(profile.quality.test),
    ]


def _facts(fact: dict[str, object]) -> str:
    shown = fact.get("facts", {key: value for key, value in fact.items() if key not in ("pass", "check")})
    items = shown.items() if isinstance(shown, dict) else []
    return ", ".join(f"{key} {value}" for key, value in items)
