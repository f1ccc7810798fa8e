"""`mipgate release`."""

from __future__ import annotations

import click

from variants.cli.remote import gateway_option, key_option
from variants.cli.target import set_life
from variants.variant import Life


@click.command(name="release")
@click.argument("name", metavar="MODEL/VARIANT")
@gateway_option
@key_option
def command(name: str, url: str, key: str | None) -> None:
    """Give a candidate or retired variant traffic. The recipe's released build is retired.

    Example: mipgate release digits/int8-static@3f2a9c0d1e4b
    """
    set_life(name, Life.RELEASED, url, key)
