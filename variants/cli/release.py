"""`mipgate release`."""

from __future__ import annotations

import click

from variants.cli.target import set_life, url_option
from variants.variant import Life


@click.command(name="release")
@click.argument("name", metavar="MODEL/VARIANT")
@url_option
def command(name: str, url: str) -> None:
    """Give a candidate or retired variant traffic. The recipe's released build is retired.

    Example: mipgate release digits/int8-static@3f2a9c0d1e4b
    """
    set_life(name, Life.RELEASED, url)
