"""`mipgate gc`."""

from __future__ import annotations

import click

from variants.catalog import Catalog
from variants.cli.output import json_option, print_json


@click.command(name="gc")
@json_option
def command(as_json: bool) -> None:
    """Delete old cards, and artifacts that no card or Bento refers to.

    Example: mipgate gc
    """
    deleted = Catalog().collect()
    if as_json:
        print_json({"deleted": deleted})
        return
    for tag in deleted:
        click.echo(f"deleted {tag}")
    click.echo(f"{len(deleted)} deleted.")
