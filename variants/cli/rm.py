"""`mipgate rm`."""

from __future__ import annotations

import click

from variants.catalog import Catalog
from variants.cli.target import find_variant
from variants.variant import Life


@click.command(name="rm")
@click.argument("name", metavar="MODEL/VARIANT")
@click.option("--force", is_flag=True, help="Delete a released variant too.")
def command(name: str, force: bool) -> None:
    """Delete a variant and its profiles. One that a Bento packs is kept.

    Example: mipgate rm digits/int8-dynamic
    """
    catalog = Catalog()
    card, variant = find_variant(catalog, name)
    entry = card.find(variant.recipe, variant.build)
    others = [e for e in card.entries if e.id.recipe == card.spec.reference and e.id != variant]
    if variant.recipe == card.spec.reference and not others and len(card.entries) > 1:
        raise click.ClickException(f"{variant} is the reference of the others. Delete those first.")
    if entry.life is Life.RELEASED and not force:
        raise click.ClickException(f"{variant} is released. Run `mipgate retire {name}`, or add --force.")
    catalog.forget(variant)
    click.echo(f"{variant} is deleted.")
