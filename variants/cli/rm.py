"""`mipgate rm`."""

from __future__ import annotations

import click

from variants.catalog import Catalog
from variants.cli.target import find_variant
from variants.registration import registered, remove_registration
from variants.variant import Life

_IN_USE = {Life.RELEASED: "released", Life.CANDIDATE: "a candidate, which a rollout may be comparing"}


@click.command(name="rm")
@click.argument("name", metavar="MODEL[/VARIANT]")
@click.option("--force", is_flag=True, help="Delete what is released or a candidate too.")
def command(name: str, force: bool) -> None:
    """Delete a variant and its profiles, or a model with all of them and what `add` keeps of it.

    What a Bento packs is kept. A running gateway serves a deleted model on until it unloads it or restarts.

    Example: mipgate rm digits/int8-dynamic
    """
    if "/" not in name and name in {*registered(), *Catalog().models()}:
        _remove_model(name, force)
    else:
        _remove_variant(name, force)


def _remove_model(name: str, force: bool) -> None:
    catalog = Catalog()
    if name in catalog.models():
        if not force and catalog.card(name).is_released:
            raise click.ClickException(
                f"variants of {name} are released. Run `mipgate retire {name}/VARIANT`, or add --force."
            )
        catalog.forget_model(name)
    if name in registered():
        remove_registration(name)
    click.echo(f"{name} is deleted.")


def _remove_variant(name: str, force: bool) -> None:
    catalog = Catalog()
    card, variant = find_variant(catalog, name)
    entry = card.find(variant.recipe, variant.build)
    others = [e for e in card.entries if e.id.recipe == card.spec.reference and e.id != variant]
    if variant.recipe == card.spec.reference and not others and len(card.entries) > 1:
        raise click.ClickException(f"{variant} is the reference of the others. Delete those first.")
    if entry.life in _IN_USE and entry.failure is None and not force:
        raise click.ClickException(
            f"{variant} is {_IN_USE[entry.life]}. Run `mipgate retire {name}`, or add --force."
        )
    catalog.forget(variant)
    click.echo(f"{variant} is deleted.")
