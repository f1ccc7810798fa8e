"""The routes of the admin API."""

from __future__ import annotations

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from service.access.principal import Role
from service.admin import feedback, jobs, keys, models, rollouts, streams
from service.admin.desk import Desk, Handler, answer
from service.admin.events import Changes
from service.admin.guard import guarded
from service.console.routes import CONSOLE_PATH, console_routes
from service.rollout.command import Verb
from variants.variant import Life

PATHS = ("/admin", "/v1/feedback", CONSOLE_PATH)

_MODEL = "/admin/models/{model}"
_VARIANT = f"{_MODEL}/variants/{{variant}}"
_ROLLOUT = "/admin/rollouts/{rollout}"
_JOB = "/admin/jobs/{job}"


def routes(changes: Changes) -> list[tuple[str, str, Role | None, Handler]]:
    """Method, path, who may, and what answers."""
    infer, operate, admin = Role
    return [
        ("GET", "/admin/models", infer, models.list_models),
        ("GET", _MODEL, infer, models.show),
        ("GET", f"{_MODEL}/live", infer, models.live),
        ("POST", f"{_VARIANT}/release", operate, models.life_change("release", Life.RELEASED)),
        ("POST", f"{_VARIANT}/retire", operate, models.life_change("retire", Life.RETIRED)),
        ("POST", f"{_VARIANT}/unload", operate, models.life_change("unload", Life.RETIRED)),
        ("POST", f"{_VARIANT}/load", operate, models.life_change("load", Life.CANDIDATE)),
        ("POST", f"{_MODEL}/profile", operate, jobs.profile),
        ("POST", f"{_MODEL}/builds", operate, jobs.build),
        ("POST", f"{_MODEL}/searches", operate, jobs.search),
        ("GET", "/admin/jobs", infer, jobs.list_jobs),
        ("GET", _JOB, infer, jobs.find_job),
        ("GET", f"{_JOB}/events", infer, streams.job_events(changes)),
        ("POST", f"{_JOB}/cancel", operate, jobs.cancel),
        ("POST", f"{_MODEL}/rollouts", operate, rollouts.start),
        ("GET", f"{_MODEL}/rollouts", infer, rollouts.list_rollouts),
        ("GET", _ROLLOUT, infer, rollouts.find),
        ("GET", f"{_ROLLOUT}/history", infer, rollouts.history),
        *(("POST", f"{_ROLLOUT}/{verb.value}", operate, rollouts.change(verb)) for verb in Verb),
        ("GET", "/admin/events", infer, streams.all_events(changes)),
        ("GET", "/admin/keys", admin, keys.list_keys),
        ("POST", "/admin/keys", admin, keys.create_key),
        ("DELETE", "/admin/keys/{key}", admin, keys.revoke_key),
        ("GET", "/admin/audit", admin, keys.list_audit),
        ("POST", "/admin/session", None, keys.sign_in),
        ("GET", "/admin/session", infer, keys.signed_in),
        ("DELETE", "/admin/session", infer, keys.sign_out),
        ("POST", "/v1/feedback", infer, feedback.feedback),
    ]


def admin_app(desk: Desk, changes: Changes) -> Starlette:
    """The API over these rooms, and the page over it."""
    api = [
        Route(path, guarded(desk, role, handler), methods=[method])
        for method, path, role, handler in routes(changes)
    ]
    return Starlette(
        routes=[*api, *console_routes(desk.access)],
        exception_handlers={HTTPException: _unrouted},
    )


async def _unrouted(request: Request, error: Exception) -> Response:
    """No such path, or not with this method."""
    status = error.status_code if isinstance(error, HTTPException) else 500
    if status == 405:
        return answer({"error": f"{request.method} is not answered here. docs/api.md says what is."}, status)
    return answer(
        {"error": f'unknown path "{request.url.path[:200]}". docs/api.md lists what exists.'}, status
    )
