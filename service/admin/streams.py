"""The two streams of the API: all that changes, and one job."""

from __future__ import annotations

import asyncio
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response, StreamingResponse

from service.access.principal import Principal, Role
from service.admin import jobs, rollouts
from service.admin.desk import Desk, Handler
from service.admin.events import Changes, Key, Listener, stream
from service.admin.guard import check
from service.errors import ForbiddenError, UnauthorizedError
from service.state.jobs import State

_NEWEST = 50
_FINAL = {state.value for state in State if state.is_final}
_HEADERS = {"cache-control": "no-store", "x-accel-buffering": "no", "x-content-type-options": "nosniff"}


def documents(desk: Desk) -> dict[Key, Any]:
    """Every document that the console shows. Blocks."""
    found: dict[Key, Any] = {}
    for name in desk.catalog.models():
        found["model", name] = desk.described(name)[1]
        found["live", name] = {"model": name, **desk.sampler.live(name)}
    for rollout in desk.rollouts.of(limit=_NEWEST):
        found["rollout", rollout.id] = rollouts.shown(desk, rollout)
    for job in desk.jobs.of(limit=_NEWEST):
        found["job", job.id] = jobs.shown(job)
    return found


def all_events(changes: Changes) -> Handler:
    """Tells of everything that changes; begins with the state of everything."""

    async def handler(desk: Desk, request: Request, who: Principal) -> Response:
        return _streamed(desk, request, changes, changes.listen(), _kind)

    return handler


def job_events(changes: Changes) -> Handler:
    """Tells how far a job is, until it ends."""

    async def handler(desk: Desk, request: Request, who: Principal) -> Response:
        job = await asyncio.to_thread(desk.jobs.find, request.path_params["job"])
        key = "job", job.id
        listener = changes.listen(lambda wanted: wanted == key)
        listener.put(key, orjson.dumps(jobs.shown(job)))
        return _streamed(desk, request, changes, listener, _progress, _has_ended)

    return handler


def _streamed(
    desk: Desk,
    request: Request,
    changes: Changes,
    listener: Listener,
    name: Any,
    is_last: Any = lambda _: False,
) -> Response:
    def may_go_on() -> bool:
        try:
            check(desk.access, request, Role.INFER, counts=False)
        except (UnauthorizedError, ForbiddenError):
            return False  # the key was revoked meanwhile
        return True

    body = stream(changes, listener, name, may_go_on, is_last)
    return StreamingResponse(body, headers=_HEADERS, media_type="text/event-stream")


def _kind(key: Key, document: bytes) -> str:
    return key[0]


def _progress(key: Key, document: bytes) -> str:
    return "done" if _has_ended(document) else "progress"


def _has_ended(document: bytes) -> bool:
    return orjson.loads(document)["state"] in _FINAL
