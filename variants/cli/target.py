"""Verbs that act on one variant, and the running gateway that should hear of it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import click
import httpx

from variants.card import Card
from variants.catalog import Catalog
from variants.variant import Life, VariantId, parse_name

DEFAULT_URL = "http://127.0.0.1:3000"

url_option: Callable[[Callable[..., Any]], Callable[..., Any]] = click.option(
    "--url",
    envvar="MIPGATE_URL",
    default=DEFAULT_URL,
    show_default=True,
    help="A running gateway.",
)


def find_variant(catalog: Catalog, name: str) -> tuple[Card, VariantId]:
    """The card and the exact variant that `MODEL/VARIANT` means."""
    model, recipe, build = parse_name(name)
    card = catalog.card(model)
    return card, card.find(recipe, build).id


def set_life(name: str, life: Life, url: str) -> None:
    """Moves a variant to another life and tells the running gateway."""
    catalog = Catalog()
    _, variant = find_variant(catalog, name)
    catalog.change(variant.model, lambda card: card.with_life(variant, life))
    click.echo(f"{variant} is {life.value}.")
    tell_gateway(url, variant.model)


def tell_gateway(url: str, model: str) -> None:
    """Has a gateway load a model anew; says so when none is running."""
    try:
        response = httpx.post(f"{url.rstrip('/')}/v2/repository/models/{model}/load", timeout=600)
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
