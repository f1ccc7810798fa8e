"""`mipgate gc`."""

from __future__ import annotations

import re
import time
from typing import Any

import click

from variants.catalog import Catalog
from variants.cli.output import json_option, print_json
from variants.collecting import collect
from variants.store import human_bytes

_UNITS = {"B": 1, "KB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
_DAY_S = 24 * 3600


class _Size(click.ParamType[int]):
    """Bytes with a decimal unit: `500MB`, `1.5GB`."""

    name = "size"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> int:
        match = re.fullmatch(r"([0-9]+(?:\.[0-9]+)?) ?([KMGT]?B)", str(value), re.IGNORECASE)
        if match is None:
            self.fail(f'"{value}" is no size. Write it like 500MB or 10GB.', param, ctx)
        return int(float(match[1]) * _UNITS[match[2].upper()])


@click.command(name="gc")
@click.option(
    "--unused-days",
    type=click.FloatRange(0),
    default=30.0,
    show_default=True,
    metavar="DAYS",
    help="Age of checkpoints, searches and replicates that go.",
)
@click.option("--quota", type=_Size(), metavar="SIZE", help="Room for all of it, such as 10GB.")
@click.option("--dry-run", is_flag=True, help="Say what would be deleted, and delete nothing.")
@json_option
def command(unused_days: float, quota: int | None, dry_run: bool, as_json: bool) -> None:
    """Delete what nothing refers to, what was long not used, and what a quota has no room for.

    That is old cards, artifacts that no card or Bento names, what dead processes left behind, and trainings,
    searches and replicates that nobody used for long; of a model's trained references the last one stays.
    For a quota the oldest retired builds and more of these follow. Released and candidate builds stay, and so
    does what a Bento packs or a running build may read.

    Example: mipgate gc --quota 10GB --dry-run
    """
    found = collect(Catalog(), time.time(), unused_s=unused_days * _DAY_S, quota_bytes=quota, dry_run=dry_run)
    if as_json:
        items = {item.name: {"why": item.why, "bytes": item.bytes} for item in found.items}
        print_json({
            "deleted": list(items),
            "items": items,
            "freed_bytes": found.freed_bytes,
            "held_bytes": found.held_bytes,
            "busy": found.busy,
        })  # fmt: skip
    else:
        verb = "would delete" if dry_run else "deleted"
        for item in found.items:
            click.echo(f"{verb} {item.name} ({human_bytes(item.bytes)}): {item.why}")
        for model in found.busy:
            click.echo(f"{model} is being built: what is its own stays, and so do its caches")
        said = f"{len(found.items)} {'would be ' if dry_run else ''}deleted"
        click.echo(f"{said}, {human_bytes(found.freed_bytes)} freed, {human_bytes(found.held_bytes)} held.")
    if found.excess_bytes:
        raise click.ClickException(
            f"{human_bytes(found.excess_bytes)} more than the quota are held by what is released, a "
            "candidate, packed or in use. Retire or remove variants, delete Bentos, or raise --quota."
        )
