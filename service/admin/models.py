"""Models and their variants: what there is, what happens now, and their lives."""

from __future__ import annotations

import asyncio
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.access.principal import Principal
from service.admin.bodies import Body, read_body
from service.admin.desk import Desk, Handler, answer
from service.errors import BadRequestError, ConflictError, NotFoundError, UnavailableError
from variants.card import Card, UnknownVariantError
from variants.catalog import CatalogBusyError
from variants.store import CatalogError
from variants.variant import Life, VariantId, VariantNameError, parse_name

_WAIT_S = 10.0  # for another's change of the same card


async def list_models(desk: Desk, request: Request, who: Principal) -> Response:
    """Every registered model in one line."""
    return answer(await asyncio.to_thread(_models, desk))


async def show(desk: Desk, request: Request, who: Principal) -> Response:
    """The document of `mipgate show MODEL --json`."""
    _, document = await asyncio.to_thread(desk.described, request.path_params["model"])
    return answer(document)


async def live(desk: Desk, request: Request, who: Principal) -> Response:
    """What happened in the last minute, over all workers."""
    model = request.path_params["model"]
    await asyncio.to_thread(desk.described, model)
    return answer(await asyncio.to_thread(desk.sampler.live, model))


def life_change(verb: str, life: Life) -> Handler:
    """The handler that moves a variant to this life; gateways follow within a second."""

    async def handler(desk: Desk, request: Request, who: Principal) -> Response:
        await read_body(request, Body)
        desk.require_changeable()
        variant, before, after = await asyncio.to_thread(_change_life, desk, request.path_params, life)
        target = str(variant)
        if before is not after:
            await desk.audit(who, verb, target, {"life": before.value}, {"life": after.value})
        return answer({"variant": target, "life": after.value, "was": before.value})

    return handler


def find_variant(card: Card, text: str) -> VariantId:
    """The exact variant that `recipe` or `recipe@build` means.

    Raises:
        BadRequestError: The text names no variant.
        NotFoundError: There is no such variant.
    """
    try:
        _, recipe, build = parse_name(f"{card.spec.model}/{text}")
        return card.find(recipe, build).id
    except VariantNameError as error:
        raise BadRequestError(f'"variant" does not fit: {error}') from error
    except UnknownVariantError as error:
        raise NotFoundError(str(error)) from error


def _models(desk: Desk) -> list[dict[str, Any]]:
    running = {rollout.model: rollout.id for rollout in desk.rollouts.running({}).values()}
    listed = []
    for name in desk.catalog.models():
        _, document = desk.described(name)
        variants = document["variants"]
        serving = [v for v in variants if v["life"] == Life.RELEASED.value and v["status"] == "serving"]
        listed.append(
            {
                "model": name,
                "metric": document["metric"],
                "reference": document["reference"],
                "variants": len(variants),
                "serving": len(serving),
                "rollout": running.get(name),
            }
        )
    return listed


def _change_life(desk: Desk, path: dict[str, str], life: Life) -> tuple[VariantId, Life, Life]:
    """Moves the variant; returns it, and the lives that it had and has.

    Raises:
        NotFoundError: There is no such variant.
        ConflictError: It cannot have this life.
        UnavailableError: Another changes the model's card.
    """
    card, _ = desk.described(path["model"])
    variant = find_variant(card, path["variant"])
    lives = []

    def moved(newest: Card) -> Card:
        lives.append(newest.find(variant.recipe, variant.build).life)
        serves = life is Life.CANDIDATE and lives[-1] is Life.RELEASED  # it is loaded, and more than that
        return newest if serves else newest.with_life(variant, life)

    try:
        card = desk.catalog.change(variant.model, moved, wait_s=_WAIT_S)
    except UnknownVariantError as error:
        raise NotFoundError(str(error)) from error
    except CatalogBusyError as error:
        raise UnavailableError(f"nothing was changed: {error}") from error
    except CatalogError as error:
        raise ConflictError(str(error)) from error
    return variant, lives[-1], card.find(variant.recipe, variant.build).life
