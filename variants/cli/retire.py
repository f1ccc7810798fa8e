"""`mipgate retire`."""

from __future__ import annotations

import click

from variants.cli.target import set_life, url_option
from variants.variant import Life


@click.command(name="retire")
@click.argument("name", metavar="MODEL/VARIANT")
@url_option
def command(name: str, url: str) -> None:
    """Take a variant out of traffic. Its artifact stays in the store.

    Example: mipgate retire digits/int8-dynamic
    """
    set_life(name, Life.RETIRED, url)
