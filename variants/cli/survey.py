"""`mipgate survey`."""

from __future__ import annotations

import click

from variants.catalog import Catalog
from variants.cli.build import build_options, tell
from variants.host import this_host
from variants.progress import reporter
from variants.survey import survey


@click.command(name="survey")
@click.argument("model")
@click.option("--epochs", type=click.IntRange(1), help="Of each training; half of the model's own.")
@build_options
def command(model: str, epochs: int | None, jobs: int, timeout_s: float | None, quiet: bool) -> None:
    """Build one recipe of every technique: what does each bring to MODEL on this host?

    All of them are judged by the same rows and measured on the same runtimes. They arrive as candidates:
    `mipgate release` gives one traffic. Interrupted, the same command goes on where it stood.

    Example: mipgate survey digits && mipgate report digits
    """
    catalog, host = Catalog(), this_host()
    with reporter() as progress:
        found = survey(model, catalog, host, progress, epochs=epochs, jobs=jobs, timeout_s=timeout_s)
    failed = tell(found.built, catalog, host, quiet)
    if found.left_out:
        click.echo(
            f"{model} is an ONNX file, and these need a torch module: {', '.join(found.left_out)}. "
            "Register it as a module to try them: `mipgate add module:SPEC`.",
            err=True,
        )
    if failed:
        raise click.ClickException(failed)
