"""Verbs that act on one variant, and the running gateway that should hear of it."""

from __future__ import annotations

import click
import httpx

from variants.card import Card
from variants.catalog import Catalog
from variants.cli.remote import Remote
from variants.variant import Life, VariantId, parse_name


def find_variant(catalog: Catalog, name: str) -> tuple[Card, VariantId]:
    """The card and the exact variant that `MODEL/VARIANT` means."""
    model, recipe, build = parse_name(name)
    card = catalog.card(model)
    return card, card.find(recipe, build).id


def set_life(name: str, life: Life, url: str, key: str | None) -> None:
    """Moves a variant to another life: in the store here, or by the gateway when only that one knows it."""
    catalog = Catalog()
    model, _, wanted = name.partition("/")
    if _is_given("url") and wanted and model not in catalog.models():
        verb = {Life.RELEASED: "release", Life.RETIRED: "retire"}[life]
        changed = Remote(url, key).post(f"/admin/models/{model}/variants/{wanted}/{verb}")
        click.echo(f"{changed['variant']} is {changed['life']} at {url}.")
        return
    _, variant = find_variant(catalog, name)
    catalog.change(variant.model, lambda card: card.with_life(variant, life))
    click.echo(f"{variant} is {life.value}.")
    tell_gateway(url, variant.model, key)


def tell_gateway(url: str, model: str, key: str | None = None) -> None:
    """Has a gateway load a model anew; says so when none is running."""
    headers = {"Authorization": f"Bearer {key}"} if key else {}
    address = f"{url.rstrip('/')}/v2/repository/models/{model}/load"
    try:
        response = httpx.post(address, headers=headers, timeout=600)
    except httpx.TransportError:
        click.echo(f"no gateway answers at {url}; the next one to start will follow.", err=True)
        return
    if response.is_success:
        click.echo(f"the gateway at {url} follows.")
    else:
        reason = (
            response.json()["error"] if "json" in response.headers.get("content-type", "") else response.text
        )
        click.echo(f"the gateway at {url} does not follow: {reason[:300]}", err=True)


def _is_given(option: str) -> bool:
    source = click.get_current_context().get_parameter_source(option)
    return source is not click.core.ParameterSource.DEFAULT
