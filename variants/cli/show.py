"""`mipgate show`."""

from __future__ import annotations

from collections.abc import Sequence

import click

from variants.assessment import Standing, assess_model, describe, find_reference, measured_metric, tier_choice
from variants.card import Card
from variants.catalog import Catalog
from variants.cli.output import json_option, print_json, print_table
from variants.details import against_baseline, changed_classes, compression_ratios, facts_of
from variants.host import Host, this_host
from variants.labels import class_name, class_names
from variants.profile import Profile
from variants.quality import Estimate
from variants.scorecard import Scorecard
from variants.store import human_bytes
from variants.variant import parse_name

_WORST = 5


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
        names = class_names(card.spec.transforms)
        print_variant(standings[position], find_reference(card, standings), names)


def print_model(card: Card, standings: list[Standing], host: Host) -> None:
    """Prints a model's variants and tiers as tables."""
    serves = {
        tier.name: choice.entry.id.recipe
        for tier in card.spec.tiers
        if (choice := tier_choice(standings, tier.min_quality_ratio))
    }
    columns = [
        "variant", "build", "life", "status", "runtime", "size>", "p50 b1>", "p50 b8>",
        f"{measured_metric(card, standings)} val", "ratio (low)", "test", "gain",
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
    reference = find_reference(card, standings)
    if sentence := against_baseline(card.spec, reference.profile if reference else None):
        click.echo(f"\n{sentence}")
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


def print_variant(standing: Standing, reference: Standing | None, names: Sequence[str]) -> None:
    """Prints all that is known of a variant; classes by their names where they have any."""
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
            ("operations", f"{card.flops:,} per row, {card.macs:,} multiply-accumulates"),
            ("memory traffic", _traffic(card)),
            ("built", _built(card)),
            ("smaller than the reference", _smaller(card, reference)),
            ("signal to noise", _noise(card)),
            *((str(fact.get("pass", fact.get("check", ""))), facts_of(fact)) for fact in card.invariants),
        ]
    print_table(["", ""], [list(line) for line in lines])
    rows = [_latency_row(p, batch) for p in standing.profiles for batch in p.latency_ms]
    if rows:
        click.echo()
        columns = ["runtime", "batch>", "p50 ms>", "p95 ms>", "p99 ms>", "jitter>", "load>", "memory>"]
        print_table([*columns, "validation", "test"], rows)
    if standing.profile is not None:
        _print_quality(standing.profile, reference, names)


def _print_quality(profile: Profile, reference: Standing | None, names: Sequence[str]) -> None:
    quality = profile.quality
    for split, measured in (("validation", quality.validation), ("test", quality.test)):
        if measured.p_value is not None and measured.ratio != 1.0:
            chance = "more than chance" if measured.significant else "not significant"
            click.echo(
                f"\n{split}: {measured.ratio:.4f} of the reference, {chance} (p {measured.p_value:.3f})"
            )
    if reference is not None and reference.profile is not None:
        changes = changed_classes(quality, reference.profile.quality).get("validation", [])
        lost = [change for change in changes if change.recall_change < 0][:_WORST]
        if lost:
            click.echo("\nclasses that lost most on validation")
            rows = [
                [
                    class_name(c.label, names),
                    str(c.rows),
                    f"{c.recall:.4f}",
                    f"{c.recall_change:+.4f}",
                    f"{c.f1_change:+.4f}",
                ]
                for c in lost
            ]
            print_table(["class", "rows>", "recall>", "change>", "F1 change>"], rows)
    if quality.robustness:
        click.echo("\non disturbed validation rows")
        print_table(["disturbed by", "severity>", "here>", "reference>", "drop, to the reference's>"], [
            [
                each.perturbation,
                f"{each.severity:g}",
                f"{each.value:.4f}",
                f"{each.reference:.4f}",
                "-" if each.drop_ratio is None else f"{each.drop_ratio:.2f}",
            ]
            for each in quality.robustness
        ])  # fmt: skip


def _traffic(card: Scorecard) -> str:
    if card.traffic is None or card.intensity is None:
        return card.unmeasured.get("traffic", "-")
    weights, moved = human_bytes(card.traffic.weight_bytes), human_bytes(card.traffic.activation_bytes)
    return f"{weights} weights and {moved} activations per row, {card.intensity:.1f} operations per byte"


def _built(card: Scorecard) -> str:
    memory = f"peak memory {human_bytes(card.peak_memory_bytes)}"
    if card.seconds is None:
        return f"in {card.build_seconds:.1f} s, {memory}"
    parts = f"training {card.seconds.training:.1f}, compression {card.seconds.compress:.1f}"
    return f"in {card.build_seconds:.1f} s ({parts}, verification {card.seconds.verify:.1f}), {memory}"


def _smaller(card: Scorecard, reference: Standing | None) -> str:
    if reference is None or reference.stored is None or reference.stored.scorecard is card:
        return "-"
    ratios = compression_ratios(card, reference.stored.scorecard)
    return ", ".join(f"{name.replace('_', ' ')} {ratio:.2f}x" for name, ratio in ratios.items())


def _noise(card: Scorecard) -> str:
    if card.sqnr is None:
        return card.unmeasured.get("sqnr", "-")
    outputs = [f"{name} {value:.1f} dB" for name, value in card.sqnr.outputs.items()]
    worst = [f"{layer.label} {layer.worst_db:.1f} dB" for layer in card.sqnr.layers[:_WORST]]
    return ", ".join(outputs) + (f"; worst layers {', '.join(worst)}" if worst else "")


def _latency_row(profile: Profile, batch: int) -> list[str]:
    latency = profile.latency_ms[batch]
    return [
        f"{profile.runtime} {profile.precision} x{profile.threads}",
        str(batch),
        *(f"{value:.3f}" for value in (latency.p50, latency.p95, latency.p99)),
        f"{latency.jitter:.0%}",
        f"{profile.load_s * 1e3:.0f} ms",
        human_bytes(profile.memory_bytes),
        _interval(profile.quality.validation),
        _interval(profile.quality.test),
    ]
