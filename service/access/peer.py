"""Where a request comes from: this machine or another, a page of ours or of somebody else."""

from __future__ import annotations

import os
from collections.abc import Iterable
from ipaddress import IPv6Address, ip_address
from pathlib import Path

from service.errors import BadRequestError, ForbiddenError

Headers = Iterable[tuple[bytes, bytes]]

_FORWARDING = {
    b"forwarded", b"via", b"x-real-ip", b"x-client-ip", b"x-cluster-client-ip", b"true-client-ip",
    b"cf-connecting-ip", b"fly-client-ip", b"x-original-host", b"x-envoy-external-address",
}  # fmt: skip
_FORWARDING_PREFIX = b"x-forwarded"
_LOCAL_HOSTS = {"localhost", "127.0.0.1", "[::1]"}
_CONTAINER_FILES = (Path("/.dockerenv"), Path("/run/.containerenv"))


def in_container() -> bool:
    """Whether this process runs in a container, where the neighbours in a pod are loopback peers too."""
    return "KUBERNETES_SERVICE_HOST" in os.environ or any(path.exists() for path in _CONTAINER_FILES)


def one_header(headers: Headers, name: bytes) -> str | None:
    """The value of a header that may be there once.

    Raises:
        BadRequestError: It is there more than once, so that a proxy may have read another than we do.
    """
    values = [value for known, value in headers if known == name]
    if len(values) > 1:
        raise BadRequestError(f"the request has {len(values)} {name.decode()} headers. Send one.")
    return values[0].decode("latin-1") if values else None


def require_loopback(headers: Headers, peer: tuple[str, int] | None) -> None:
    """Lets a program of this machine through, and no proxy.

    Raises:
        ForbiddenError: The request came from elsewhere, or may have.
    """
    if not _is_loopback(peer[0] if peer else ""):
        raise ForbiddenError(
            "without a key this is open to the gateway's own machine only. Make one there: "
            "`mipgate keys create NAME --role operate`."
        )
    if any(name in _FORWARDING or name.startswith(_FORWARDING_PREFIX) for name, _ in headers):
        raise ForbiddenError(
            "without a key this is closed to what a proxy forwards. Make one on the gateway's machine: "
            "`mipgate keys create NAME --role operate`."
        )


def require_local_host(headers: Headers) -> None:
    """Keeps pages of other sites out whose name an attacker resolves to this machine (DNS rebinding).

    Raises:
        ForbiddenError: The request was not sent to this machine by one of its own names.
    """
    host = one_header(headers, b"host") or ""
    if _without_port(host) not in _LOCAL_HOSTS:
        raise ForbiddenError(
            f'without a key this is open as "localhost" or "127.0.0.1" only, not as "{host[:80]}". '
            "Use that address."
        )


def require_same_origin(headers: Headers) -> None:
    """Keeps requests out that a browser sends for a page of another site.

    Programs send neither of the two headers; browsers let no page write them.

    Raises:
        ForbiddenError: Another site's page sent it.
    """
    site = one_header(headers, b"sec-fetch-site")
    if site not in (None, "same-origin", "none"):
        raise ForbiddenError("a page of another site sent this. Use the gateway's own page.")
    origin = one_header(headers, b"origin")
    host = one_header(headers, b"host") or ""
    if origin is not None and origin.partition("://")[2].lower() != host.lower():
        raise ForbiddenError(f'a page of "{origin[:80]}" sent this. Use the gateway\'s own page.')


def _is_loopback(peer: str) -> bool:
    try:
        address = ip_address(peer)
    except ValueError:
        return False  # a Unix socket has no address
    mapped = address.ipv4_mapped if isinstance(address, IPv6Address) else None
    return (mapped or address).is_loopback


def _without_port(host: str) -> str:
    name, colon, port = host.rpartition(":")
    return (name if colon and port.isdigit() else host).lower()
