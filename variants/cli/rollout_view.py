"""A rollout on the terminal: phase, weights as bars, evidence, and what each guard says."""

from __future__ import annotations

from typing import Any

import click
from rich.console import Console
from rich.text import Text

from variants.cli.output import print_table

_BAR = 32
_NARROWEST = 100
_COLORS = {
    "succeeded": "green",
    "failed": "red",
    "inconclusive": "yellow",
    "waiting": "yellow",
    "passes": "green",
    "fails": "red",
}
_MARKS = {"passes": "✓", "fails": "✗", "undecided": "…"}
# Title, key of the evidence, form; a column is left out when no arm has anything in it.
_COLUMNS = (
    ("requests>", "requests", "{:,}"),
    ("errors>", "errors", "{:,}"),
    ("timeouts>", "timeouts", "{:,}"),
    ("NaN>", "non_finite", "{:,}"),
    ("retried>", "retries", "{:,}"),
    ("late>", "misses", "{:,}"),
    ("p50>", "p50_ms", "{:.2f} ms"),
    ("p99>", "p99_ms", "{:.2f} ms"),
    ("compared>", "compared", "{:,}"),
    ("agreement>", "agreement", "{:.4f}"),
    ("cosine>", "cosine", "{:.4f}"),
    ("max abs>", "max_abs", "{:.3g}"),
    ("labelled>", "labelled", "{:,}"),
    ("accuracy>", "accuracy", "{:.4f}"),
    ("loss>", "loss", "{:.4g}"),
)


def print_status(rollout: dict[str, Any], now: float) -> None:
    """Prints a rollout.

    Args:
        rollout: As the API tells it.
        now: Unix time.
    """
    console = Console()
    console.width = max(console.width, _NARROWEST)
    where = f", tier {rollout['tier']}" if rollout["tier"] else ""
    phase = f"{rollout['phase']}, paused" if rollout["paused"] else rollout["phase"]
    title = Text(f"{rollout['model']}{where}: {rollout['kind']} {rollout['id']}  ", style="bold")
    title.append(phase, style=_COLORS.get(rollout["phase"], "cyan"))
    console.print(title)
    console.print(Text(rollout["reason"]))
    console.print(Text(_times(rollout, now), style="dim"))
    click.echo()
    width = max(len(f"{arm['name']} {arm['variant']}") for arm in rollout["arms"])
    for arm in rollout["arms"]:
        console.print(_bar(arm, width))
    click.echo()
    _print_evidence(rollout["arms"])
    if rollout["guards"]:
        click.echo()
    several = len(rollout["arms"]) > 2
    for guard in rollout["guards"]:
        verdict = guard["verdict"]
        line = Text(f"{_MARKS[verdict]} ", style=_COLORS.get(verdict, "yellow"))
        line.append(f"{guard['text']}  ", style="bold")
        line.append(f"{guard['arm']}: {guard['sentence']}" if several else guard["sentence"])
        console.print(line)


def _times(rollout: dict[str, Any], now: float) -> str:
    told = [f"version {rollout['version']}", f"begun {_ago(now - rollout['created'])} ago"]
    if rollout["steps"]:
        told.append(f"step {rollout['step'] + 1} of {len(rollout['steps'])}")
    if rollout["deadline"] > now and rollout["phase"] not in ("succeeded", "failed", "inconclusive"):
        told.append(f"at most {_ago(rollout['deadline'] - now)} more")
    return ", ".join(told)


def _ago(seconds: float) -> str:
    if seconds < 120:
        return f"{max(0, seconds):.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.1f} h"


def _bar(arm: dict[str, Any], width: int) -> Text:
    filled = round(arm["weight"] / 100 * _BAR)
    line = Text(f"{arm['name']} {arm['variant']}".ljust(width + 2))
    line.append("█" * filled, style="cyan" if arm["name"] == "primary" else "magenta")
    line.append("░" * (_BAR - filled), style="dim")
    line.append(f" {arm['weight']:g}%")
    if arm["outcome"]:
        line.append(f"  {arm['outcome']}", style="green" if arm["outcome"] == "passed" else "red")
    return line


def _print_evidence(arms: list[dict[str, Any]]) -> None:
    shown = [column for column in _COLUMNS if any(arm["evidence"][column[1]] for arm in arms)]
    if not shown:
        click.echo("no evidence yet")
        return
    rows = [[arm["name"], *(_cell(arm["evidence"][key], form) for _, key, form in shown)] for arm in arms]
    print_table(["arm", *(title for title, _, _ in shown)], rows)


def _cell(value: float | None, form: str) -> str:
    return "-" if value is None else form.format(value)
