"""`mipgate report`."""

from __future__ import annotations

from pathlib import Path

import click

from variants.assessment import assess_model
from variants.catalog import Catalog
from variants.host import this_host
from variants.report.page import render


@click.command(name="report")
@click.argument("model")
@click.option(
    "--out",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Where to write; MODEL-report.html here if not given.",
)
@click.option("--open", "opens", is_flag=True, help="Show it in the browser.")
def command(model: str, out: Path | None, opens: bool) -> None:
    """Write one HTML file about MODEL: what each variant costs and keeps, on this host.

    Example: mipgate report digits --open
    """
    host = this_host()
    card, standings = assess_model(Catalog(), model, host)
    path = out or Path(f"{model}-report.html")
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(render(card, standings, host), encoding="utf-8")
    click.echo(f"{path} is written.")
    if opens:
        click.launch(str(path))
