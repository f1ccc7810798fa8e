"""Stands before every handler: lets in who may, and turns errors into answers."""

from __future__ import annotations

import logging
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.requests import ClientDisconnect, Request
from starlette.responses import Response

from service.access.access import Access
from service.access.principal import Principal, Role
from service.admin.desk import Desk, Handler, answer
from service.errors import (
    INTERNAL_MESSAGE,
    BadRequestError,
    ServiceError,
    UnauthorizedError,
    UnavailableError,
)
from service.state.database import StateAwayError
from service.state.rollouts import StaleError
from variants.document import DocumentError
from variants.store import CatalogError

log = logging.getLogger("mipgate.admin")

COOKIE = "mipgate_session"
_SAFE = ("GET", "HEAD")


def guarded(desk: Desk, role: Role | None, handler: Handler) -> Callable[[Request], Awaitable[Response]]:
    """The handler behind the guard.

    Args:
        desk: What it speaks for.
        role: Who may call it; None when the handler finds that out itself.
        handler: Answers.
    """

    async def endpoint(request: Request) -> Response:
        try:
            who = _NOBODY if role is None else await _admit(desk, request, role)
            _require_text(request)
            return await handler(desk, request, who)
        except ServiceError as error:
            return _refused(error, request)
        except StateAwayError:
            return _refused(
                UnavailableError("the database does not answer, and nothing was changed. Try again."), request
            )
        except (CatalogError, DocumentError) as error:
            return _refused(UnavailableError(str(error), "refused"), request)
        except ClientDisconnect:
            log.debug("the client left before its request was read")
            return Response()
        except Exception:
            log.exception("%s %s failed", request.method, request.url.path[:200])
            return answer({"error": INTERNAL_MESSAGE}, 500)

    return endpoint


_NOBODY = Principal("nobody", Role.INFER)


async def _admit(desk: Desk, request: Request, role: Role) -> Principal:
    try:
        return check(desk.access, request, role)
    except UnauthorizedError:
        if "authorization" not in request.headers and COOKIE not in request.cookies:
            raise
        await desk.follower.follow_soon()  # the key may be newer than what this worker knows
        return check(desk.access, request, role)


def _require_text(request: Request) -> None:
    """Refuses the one character that PostgreSQL takes in no text."""
    given = (*request.path_params.values(), *request.query_params.values())
    if any("\0" in value for value in given):
        raise BadRequestError("the address has a NUL character (%00). Leave it out.")


def check(access: Access, request: Request, role: Role, counts: bool = True) -> Principal:
    """Who sent the request: by its key, by the page's session, or from this machine.

    Args:
        access: Who may.
        request: What was sent.
        role: What it takes to do what is asked for.
        counts: Whether this is one of the requests that the key's rate bounds.

    Raises:
        ServiceError: Nobody who may.
    """
    headers = request.scope["headers"]
    cookie = request.cookies.get(COOKIE)
    if cookie is None or "authorization" in request.headers:
        is_operation = request.url.path.startswith("/admin")
        ask = access.check_operation if is_operation else access.check
        return ask(headers, request.scope.get("client"), role, counts)
    return access.check_session(headers, cookie, role, request.method not in _SAFE, counts)


def _refused(error: ServiceError, request: Request) -> Response:
    document: dict[str, Any] = {"error": str(error)}
    if isinstance(error, StaleError):
        document["current"] = {
            "id": error.current.id,
            "phase": error.current.phase.value,
            "version": error.current.version,
            "reason": error.current.reason,
            "weights": error.current.weights,
        }
    response = answer(document, error.status)
    for name, value in error.headers():
        response.headers[name.decode()] = value.decode()
    if isinstance(error, UnauthorizedError) and COOKIE in request.cookies:
        response.delete_cookie(COOKIE)
    return response
