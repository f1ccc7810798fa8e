"""Rollouts: start one, look at it, and what an operator may do to it."""

from __future__ import annotations

import asyncio
import secrets
import time
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.access.principal import Principal
from service.admin.bodies import VersionBody, read_body, read_bytes
from service.admin.desk import Desk, Handler, answer
from service.errors import BadRequestError
from service.rollout.command import Verb, command
from service.rollout.guard import Source
from service.rollout.judgement import describe
from service.rollout.request import ModelFacts, RolloutRequest, VariantFacts, begin, read_request
from service.rollout.rollout import Rollout, Transition
from service.routing import SloReader
from variants.variant import Life

_SETTLED_S = 60.0  # after its end, evidence that was under way has arrived
_MOST_ENDED = 256
_CANNOT_SERVE = ("refused", "failed", "skipped")


async def start(desk: Desk, request: Request, who: Principal) -> Response:
    """Starts a rollout, if it could ever be decided."""
    try:
        body = orjson.loads(await read_bytes(request))
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON: {error}. Send an object.") from error
    asked = read_request(body)
    rollout = await asyncio.to_thread(_start, desk, request.path_params["model"], asked, who)
    desk.hurry()
    document = await asyncio.to_thread(shown, desk, rollout)
    document["notes"] = await asyncio.to_thread(_notes, desk, rollout)
    await desk.audit(who, "start rollout", rollout.id, None, _state(rollout) | {"kind": rollout.kind.value})
    return answer(document, 201)


async def list_rollouts(desk: Desk, request: Request, who: Principal) -> Response:
    """Rollouts of a model: those that run, then the others, the newest first."""
    return answer(await asyncio.to_thread(_of, desk, request.path_params["model"]))


async def find(desk: Desk, request: Request, who: Principal) -> Response:
    """One rollout: phase, weights, evidence, verdicts."""
    rollout = await asyncio.to_thread(desk.rollouts.find, request.path_params["rollout"])
    return answer(await asyncio.to_thread(shown, desk, rollout))


async def history(desk: Desk, request: Request, who: Principal) -> Response:
    """Every change of a rollout with its reason, the oldest first."""
    lines = await asyncio.to_thread(desk.rollouts.history, request.path_params["rollout"])
    return answer(lines)


def change(verb: Verb) -> Handler:
    """The handler of an operator's command."""

    async def handler(desk: Desk, request: Request, who: Principal) -> Response:
        body = await read_body(request, VersionBody)
        before = await asyncio.to_thread(desk.rollouts.find, request.path_params["rollout"])
        after = await asyncio.to_thread(
            desk.rollouts.change,
            before.id,
            lambda rollout, now: command(rollout, verb, who.who, now),
            body.version,
        )
        desk.hurry()
        await desk.audit(who, f"{verb.value} rollout", after.id, _state(before), _state(after))
        return answer(await asyncio.to_thread(shown, desk, after))

    return handler


def shown(desk: Desk, rollout: Rollout) -> dict[str, Any]:
    """The rollout as the API tells it. Blocks, unless it ended long ago and was told before."""
    place = rollout.id, rollout.version
    known = desk.ended.get(place)
    if known is None:
        known = describe(rollout, desk.evidence.read(rollout.id))
        if rollout.phase.is_final and time.time() - rollout.updated > _SETTLED_S:
            if len(desk.ended) >= _MOST_ENDED:
                desk.ended.clear()
            desk.ended[place] = known
    return known


def _start(desk: Desk, model: str, asked: RolloutRequest, who: Principal) -> Rollout:
    facts = _facts(desk, model)
    now = desk.now()
    rollout = begin(asked, facts, secrets.token_hex(6), now)
    desk.rollouts.create(Transition(rollout, rollout.reason, now, who.who))
    return rollout


def _notes(desk: Desk, rollout: Rollout) -> list[str]:
    """What an operator may not expect of a rollout that can well be started."""
    document = desk.described(rollout.model)[1]
    variants = {f"{each['name']}@{each['build']}": each for each in document["variants"]}
    tiers = {rollout.tier: document["tiers"][rollout.tier]} if rollout.tier else document["tiers"]
    notes = []
    for arm in rollout.candidates:
        told = variants[arm.variant]
        if told["life"] == Life.RELEASED.value:
            notes.append(
                f"{arm.variant} is released already: success changes nothing in the catalog, and the router "
                "goes on choosing by what each request asks for."
            )
        elif desk.catalog.is_pinned:
            notes.append("this gateway serves a Bento: release the candidate where Bentos are made.")
        served = [name for name, tier in tiers.items() if tier["serves"] == told["name"]]
        if served and told["life"] == Life.RELEASED.value:
            instead = f"{rollout.primary.variant} answers what it does not, until the rollout ends"
            notes.append(
                f"the router chooses {arm.variant} for {', '.join(served)} already: "
                f"{instead if rollout.keeps_primary else 'these requests take no part'}."
            )
        ratio = told["quality"]["validation"]["ratio"] if told["quality"] else 0.0
        above = [name for name, tier in tiers.items() if ratio < tier["min_quality_ratio"]]
        if above:
            notes.append(
                f"{arm.variant} has {ratio:.4f} of the reference's quality, below the floor of "
                f"{', '.join(above)}: it gets no requests of these tiers."
            )
    return notes + _compared(rollout, variants[rollout.primary.variant], document["reference"])


def _compared(rollout: Rollout, primary: dict[str, Any], reference: str) -> list[str]:
    """That answers are compared with what the router chooses, which need not answer as the reference does."""
    guards = [guard.name for guard in rollout.guards if guard.statistic.source is Source.COMPARISONS]
    chosen = not rollout.keeps_primary and primary["name"] != reference
    if not (guards and chosen and primary["quality"]):
        return []
    return [
        f"{' and '.join(guards)}: answers are compared with those of {rollout.primary.variant}, "
        f"which answers {primary['quality']['agreement']:.1%} of test rows as the reference does. "
        f"With the primary {reference} candidates are held against the reference."
    ]


def _facts(desk: Desk, model: str) -> ModelFacts:
    """What must be known of a model before a rollout of it."""
    card, document = desk.described(model)
    variants = tuple(
        VariantFacts(
            f"{variant['name']}@{variant['build']}",
            variant["life"],
            variant["reason"] if variant["status"] in _CANNOT_SERVE else "",
        )
        for variant in reversed(document["variants"])
    )
    serves = {tier: told["serves"] for tier, told in document["tiers"].items()}
    running = desk.rollouts.running({}).values()
    return ModelFacts(
        model,
        card.spec.metric,
        SloReader(card.spec).default.tier.name,
        {tier: recipe and card.find(recipe).id.version for tier, recipe in serves.items()},
        card.find(document["reference"]).id.version,
        variants,
        tuple(rollout for rollout in running if rollout.model == model),
        desk.takes_labels,
    )


def _of(desk: Desk, model: str) -> list[dict[str, Any]]:
    desk.described(model)
    return [shown(desk, rollout) for rollout in desk.rollouts.of(model)]


def _state(rollout: Rollout) -> dict[str, Any]:
    return {"phase": rollout.phase.value, "weights": rollout.weights, "version": rollout.version}
