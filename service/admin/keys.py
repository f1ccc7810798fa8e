"""Keys, the sign-in of the console's page, and the audit."""

from __future__ import annotations

import asyncio
import re
import time

from starlette.requests import Request
from starlette.responses import Response

from service.access.keys import new_key
from service.access.peer import require_same_origin
from service.access.principal import Principal, Role
from service.admin.bodies import Body, KeyBody, SessionBody, read_body
from service.admin.desk import Desk, answer
from service.admin.guard import COOKIE
from service.errors import BadRequestError, ForbiddenError, NotFoundError, UnauthorizedError

_MOST_LINES = 1000
_USUAL_LINES = 100
_NUMBER = re.compile(r"[0-9]{1,9}")


async def list_keys(desk: Desk, request: Request, who: Principal) -> Response:
    """Every key that opens something, sessions of the console among them."""
    keys = await asyncio.to_thread(desk.keys.keys, time.time())
    return answer([key.to_json() for key in keys])


async def create_key(desk: Desk, request: Request, who: Principal) -> Response:
    """Makes a key; this answer is the only one that shows it."""
    body = await read_body(request, KeyBody)
    shown, key = new_key(body.name, Role(body.role), time.time(), body.rate_per_s)
    await asyncio.to_thread(desk.keys.add, key)
    await desk.follower.follow()
    await desk.audit(who, "create key", key.id, None, key.to_json())
    return answer({**key.to_json(), "key": shown}, 201)


async def revoke_key(desk: Desk, request: Request, who: Principal) -> Response:
    """Revokes a key; every worker knows within a second."""
    key_id = request.path_params["key"]
    key = await asyncio.to_thread(desk.keys.revoke, key_id, time.time())
    if key is None:
        raise NotFoundError(f'no key "{key_id[:80]}" is in force. List them: `mipgate keys list`.')
    await desk.follower.follow()
    await desk.audit(who, "revoke key", key.id, key.to_json(), None)
    return answer({"id": key.id, "revoked": True})


async def sign_in(desk: Desk, request: Request, who: Principal) -> Response:
    """Gives the console's page a session of its own in exchange for a key or token."""
    headers = request.scope["headers"]
    require_same_origin(headers)
    if "x-mipgate-console" not in request.headers:
        raise ForbiddenError("only the console's page signs in. Send `Authorization: Bearer KEY` instead.")
    body = await read_body(request, SessionBody)
    principal = await _identified(desk, body.key.strip().encode())
    now = time.time()
    ends = min(now + desk.session_s, principal.expires or float("inf"))
    parent = desk.access.parent(principal)
    shown, session = new_key(principal.who, principal.role, now, expires=ends, parent=parent)
    await asyncio.to_thread(desk.keys.add, session)
    await desk.follower.follow()
    await desk.audit(principal, "sign in", session.id, None, {"role": session.role.value, "expires": ends})
    response = answer({"who": principal.who, "role": principal.role.value, "expires": ends}, 201)
    is_secure = request.url.scheme == "https"
    response.set_cookie(
        COOKIE, shown, max_age=int(ends - now), httponly=True, samesite="strict", secure=is_secure
    )
    return response


async def signed_in(desk: Desk, request: Request, who: Principal) -> Response:
    """Who the caller is here."""
    return answer({"who": who.who, "role": who.role.value, "needs_key": desk.access.has_keys})


async def sign_out(desk: Desk, request: Request, who: Principal) -> Response:
    """Ends the session that the request came with; a key that came with it stays."""
    await read_body(request, Body)
    has_session = COOKIE in request.cookies
    if has_session and "authorization" in request.headers:
        raise BadRequestError("the request came with a key and a session. Send the session alone to end it.")
    if has_session and who.key is not None:
        await asyncio.to_thread(desk.keys.revoke, who.key, time.time())
        await desk.follower.follow()
        await desk.audit(who, "sign out", who.key, None, None)
    response = answer({})
    response.delete_cookie(COOKIE)
    return response


async def list_audit(desk: Desk, request: Request, who: Principal) -> Response:
    """The newest changes, the newest first."""
    given = request.query_params.get("limit", str(_USUAL_LINES))
    if not (_NUMBER.fullmatch(given) and 1 <= int(given) <= _MOST_LINES):
        raise BadRequestError(f'"limit" is {given[:20]!r}. Give a whole number from 1 to {_MOST_LINES}.')
    lines = await asyncio.to_thread(desk.keys.audited, int(given))
    return answer([vars(line) for line in lines])


async def _identified(desk: Desk, sent: bytes) -> Principal:
    try:
        return desk.access.identify(sent, Role.INFER)
    except UnauthorizedError:
        await desk.follower.follow_soon()
        return desk.access.identify(sent, Role.INFER)
