"""Work for builders, asked for over HTTP."""

from __future__ import annotations

import asyncio
from dataclasses import asdict
from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from service.access.principal import Principal
from service.admin.bodies import Body, BuildBody, SearchBody, read_body
from service.admin.desk import Desk, answer
from service.conducting import BUILDERS
from service.errors import NoBuilderError
from service.state.jobs import Job, Kind

_SHOWN = ("id", "kind", "model", "state", "phrase", "fraction", "created", "started", "finished", "error",
          "result", "cancelling")  # fmt: skip


async def build(desk: Desk, request: Request, who: Principal) -> Response:
    """Queues a recipe of the spec by its name, or one of the caller's own."""
    body = await read_body(request, BuildBody)
    return await _queue(desk, request, who, Kind.BUILD, body.model_dump(exclude_none=True, by_alias=True))


async def search(desk: Desk, request: Request, who: Principal) -> Response:
    """Queues a search for the cheapest recipe above a floor."""
    body = await read_body(request, SearchBody)
    return await _queue(desk, request, who, Kind.SEARCH, body.model_dump(exclude_none=True))


async def profile(desk: Desk, request: Request, who: Principal) -> Response:
    """Queues a measurement of all variants on the builder's host."""
    await read_body(request, Body)
    return await _queue(desk, request, who, Kind.PROFILE, {})


async def list_jobs(desk: Desk, request: Request, who: Principal) -> Response:
    """Jobs, the newest first."""
    model = request.query_params.get("model")
    jobs = await asyncio.to_thread(desk.jobs.of, model)
    return answer([shown(job) for job in jobs])


async def find_job(desk: Desk, request: Request, who: Principal) -> Response:
    """One job."""
    return answer(shown(await asyncio.to_thread(desk.jobs.find, request.path_params["job"])))


async def cancel(desk: Desk, request: Request, who: Principal) -> Response:
    """Cancels a job, or asks its builder to."""
    await read_body(request, Body)
    before = await asyncio.to_thread(desk.jobs.find, request.path_params["job"])
    job = await asyncio.to_thread(desk.jobs.cancel, before.id)
    await desk.audit(who, "cancel job", job.id, {"state": before.state.value}, {"state": job.state.value})
    return answer(shown(job))


def shown(job: Job) -> dict[str, Any]:
    """The job as the API tells it."""
    told = asdict(job)
    return {name: told[name] for name in _SHOWN}


async def _queue(
    desk: Desk, request: Request, who: Principal, kind: Kind, arguments: dict[str, Any]
) -> Response:
    model = request.path_params["model"]
    await asyncio.to_thread(desk.described, model)
    desk.require_changeable()
    if not await asyncio.to_thread(desk.leases.held, BUILDERS):
        raise NoBuilderError(
            "no builder is running. Start one beside the gateway: `mipgate builder`, or "
            "`mipgate serve --with-builder`."
        )
    job = await asyncio.to_thread(desk.jobs.add, kind, model, arguments)
    await desk.audit(who, f"{kind.value} {model}", job.id, None, arguments)
    return answer(shown(job), 202)
