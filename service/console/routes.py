"""Serves the console's page from memory: a handful of files, all of them ours."""

from __future__ import annotations

from hashlib import sha256
from pathlib import Path

from starlette.requests import Request
from starlette.responses import PlainTextResponse, RedirectResponse, Response
from starlette.routing import Route

from service.access.access import Access
from service.access.principal import Role
from service.errors import ServiceError

CONSOLE_PATH = "/console"

_PAGE = Path(__file__).parent / "page"
_MEDIA_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".js": "text/javascript; charset=utf-8",
    ".css": "text/css; charset=utf-8",
    ".svg": "image/svg+xml",
    ".txt": "text/plain; charset=utf-8",
}
_POLICY = (
    "default-src 'none'; script-src 'self'; style-src 'self'; connect-src 'self'; img-src 'self' data:; "
    "base-uri 'none'; form-action 'none'; frame-ancestors 'none'; require-trusted-types-for 'script'"
)
_HEADERS = {
    "content-security-policy": _POLICY,
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "referrer-policy": "no-referrer",
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "cache-control": "no-cache",  # asked for again each time, and answered with 304
}


def console_routes(access: Access) -> list[Route]:
    """The routes of the page and its files.

    Args:
        access: Whether keys are set. Without any, the page is for this machine only, as what it speaks to is;
            with keys it is open, since somebody has to sign in on it.
    """
    files = {path.relative_to(_PAGE).as_posix(): _File(path) for path in _PAGE.rglob("*") if path.is_file()}
    files[""] = files.pop("index.html")

    async def serve(request: Request) -> Response:
        try:
            if not access.has_keys:
                access.check_operation(request.scope["headers"], request.scope.get("client"), Role.INFER)
        except ServiceError as error:
            return PlainTextResponse(str(error), error.status, _HEADERS)
        file = files.get(request.path_params["file"])
        if file is None:
            return PlainTextResponse("the console has no such file.", 404, _HEADERS)
        return file.answer(request)

    async def to_folder(request: Request) -> Response:
        return RedirectResponse("console/", 307, _HEADERS)  # relative: a proxy may add a prefix

    return [
        Route(CONSOLE_PATH, to_folder, methods=["GET"]),
        Route(f"{CONSOLE_PATH}/{{file:path}}", serve, methods=["GET"]),
    ]


class _File:
    """A file as it is sent."""

    def __init__(self, path: Path) -> None:
        self._content = path.read_bytes()
        self._media_type = _MEDIA_TYPES[path.suffix]
        self._tag = f'"{sha256(self._content).hexdigest()[:16]}"'

    def answer(self, request: Request) -> Response:
        """The file, or that the browser has it already."""
        headers = _HEADERS | {"etag": self._tag}
        if request.headers.get("if-none-match") == self._tag:
            return Response(None, 304, headers)
        return Response(self._content, 200, headers, self._media_type)
