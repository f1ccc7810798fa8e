"""`mipgate search`."""

from __future__ import annotations

import click

from variants.assessment import Standing
from variants.catalog import Catalog
from variants.cli.output import print_table
from variants.cli.remote import Remote, key_option, over_api_option
from variants.cli.remote_job import run_job
from variants.host import this_host
from variants.progress import reporter
from variants.search import Objective, search
from variants.store import human_bytes


@click.command(name="search")
@click.argument("model")
@click.option(
    "--min-accuracy",
    "floor",
    type=click.FloatRange(0.0, 1.5, min_open=True),
    default=0.99,
    show_default=True,
    help="Lowest quality over the reference's, on validation, whatever the metric.",
)
@click.option("--objective", type=click.Choice(["latency", "size"]), default="latency", show_default=True)
@click.option(
    "--trials", type=click.IntRange(1), default=20, show_default=True, help="Recipes to try in all."
)
@click.option("--epochs", type=click.IntRange(1), help="Of each training; a quarter of the model's own.")
@click.option("--name", metavar="RECIPE", help="Name of the winner; search-OBJECTIVE if not given.")
@click.option("--fresh", is_flag=True, help="Forget what earlier runs tried.")
@over_api_option
@key_option
def command(
    model: str,
    floor: float,
    objective: Objective,
    trials: int,
    epochs: int | None,
    name: str | None,
    fresh: bool,
    url: str | None,
    key: str | None,
) -> None:
    """Search for the recipe of least latency or size above a floor of quality, and publish it as a candidate.

    Interrupt it at any time: the same command goes on where it stood.

    Example: mipgate search digits --min-accuracy 0.99 --objective latency --trials 12
    """
    if url is not None:
        if epochs is not None or name is not None or fresh:
            raise click.UsageError("--epochs, --name and --fresh are for a search on this machine.")
        body = {"min_accuracy": floor, "objective": objective, "trials": trials}
        run_job(Remote(url, key), f"/admin/models/{model}/searches", body)
        return
    with reporter() as progress:
        found = search(
            model,
            Catalog(),
            this_host(),
            progress,
            floor=floor,
            objective=objective,
            trials=trials,
            epochs=epochs,
            name=name,
            fresh=fresh,
        )
    columns = ["recipe", "ratio (low)>", "b1 p50>", "b8 p50>", "size>", "steps"]
    rows = [_row(standing) for standing in (found.reference, *found.frontier)]
    print_table(
        columns, rows, f"Frontier of {found.tried} tried recipes, {found.given_up} of them given up early"
    )
    if found.winner is None or found.published is None:
        raise click.ClickException(
            f"no recipe keeps {floor:g} of the reference's quality. Lower --min-accuracy, or raise --epochs "
            "or --trials."
        )
    entry = found.published.card.find(found.winner.name)
    click.echo(f"\n{entry.id} is published as {entry.life.value}. `mipgate release` gives it traffic.")


def _row(standing: Standing) -> list[str]:
    profile, stored = standing.profile, standing.stored
    if profile is None or stored is None:
        return [standing.entry.id.recipe, "-", "-", "-", "-", standing.reason]
    quality = profile.quality.validation
    steps = [
        f"{each['pass']} {' '.join(f'{key}={value}' for key, value in each['settings'].items())}".strip()
        for each in standing.entry.steps
    ]
    return [
        standing.entry.id.recipe,
        f"{quality.ratio:.4f} ({quality.ratio_low:.4f})",
        f"{profile.latency_ms[1].p50:.3f} ms",
        f"{profile.latency_ms[8].p50:.3f} ms",
        human_bytes(stored.scorecard.bytes),
        " -> ".join(steps) or "none: the reference",
    ]
