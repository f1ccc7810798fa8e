"""`mipgate retire`."""

from __future__ import annotations

import click

from variants.cli.remote import gateway_option, key_option
from variants.cli.target import set_life
from variants.variant import Life


@click.command(name="retire")
@click.argument("name", metavar="MODEL/VARIANT")
@gateway_option
@key_option
def command(name: str, url: str, key: str | None) -> None:
    """Take a variant out of traffic. Its artifact stays in the store.

    Example: mipgate retire digits/int8-dynamic
    """
    set_life(name, Life.RETIRED, url, key)
