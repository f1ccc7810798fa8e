"""`mipgate replicate`."""

from __future__ import annotations

import json
from dataclasses import asdict
from statistics import fmean, stdev

import click

from variants.cli.output import print_table
from variants.host import this_host
from variants.progress import reporter
from variants.replicates import Replicated, Replicates, replicate


@click.command(name="replicate")
@click.argument("model")
@click.argument("recipe")
@click.option("--against", metavar="RECIPE", help="Hold it against this one, seed by seed and row by row.")
@click.option("--seeds", type=click.IntRange(2), default=3, show_default=True, help="How many.")
@click.option("--json", "as_json", is_flag=True, help="Print JSON.")
def command(model: str, recipe: str, against: str | None, seeds: int, as_json: bool) -> None:
    """Build RECIPE of MODEL with several seeds: is what it wins merit, or luck?

    The first seed is the model's own. Replicates have a store of their own; none of them serves. Interrupted,
    the same command goes on where it stood.

    Example: mipgate replicate cifar10 distilled --against undistilled --seeds 3
    """
    with reporter() as progress:
        found = replicate(model, recipe, against, this_host(), progress, seeds=seeds)
    if as_json:
        click.echo(json.dumps(asdict(found), indent=2))
        return
    columns = ["split", "metric", "recipe", *(f"seed {seed}>" for seed in found.seeds), "mean>", "deviation>"]
    rows = [row for split in found.splits for row in _rows(split, recipe, against)]
    print_table(columns, rows, f"Quality of {model}")
    if against is not None:
        click.echo()
        for split in found.splits:
            click.echo(_sentence(found, split, recipe, against))


def _rows(split: Replicated, recipe: str, against: str | None) -> list[list[str]]:
    named = [(recipe, split.values)] + ([(against, split.against)] if against is not None else [])
    return [
        [
            split.split,
            split.metric,
            name,
            *(f"{v:.4f}" for v in values),
            f"{fmean(values):.4f}",
            f"{stdev(values):.4f}",
        ]
        for name, values in named
    ]


def _sentence(found: Replicates, split: Replicated, recipe: str, against: str) -> str:
    """What the seeds say together."""
    assert split.interval is not None  # there is another recipe
    sign = 1 if split.higher_is_better else -1
    won = sum(sign * difference > 0 for difference in split.differences)
    low, high = split.interval
    surely = "" if low > 0 or high < 0 else ", which may be none"
    return (
        f"{split.split}: {recipe} is better than {against} with {won} of {len(found.seeds)} seeds, by "
        f"{fmean(split.differences):+.4f} in the mean ({low:+.4f} to {high:+.4f}, {split.rows} rows){surely}."
    )
