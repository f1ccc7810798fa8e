"""What the gateway adds to one call while nothing else happens: one connection, one request at a time."""

from __future__ import annotations

import contextlib
import re
import socket
import time
from collections.abc import Callable
from statistics import median
from typing import TypedDict

from loadtests.bench.requests import Request

_LENGTH = re.compile(rb"content-length: *(\d+)", re.IGNORECASE)
_END = b"\r\n\r\n"
_CHUNK = 65536
_WARM_UP = 50
_PAUSE_S = 0.001


class IdleError(Exception):
    """The gateway closed the connection or sent what is no answer."""


class Idle(TypedDict):
    """Medians in milliseconds, and what is between them."""

    gateway_ms: float
    direct_ms: float
    added_ms: float


def added_latency(port: int, request: Request, call: Callable[[], object], calls: int) -> Idle:
    """Asks the gateway and calls the session in turn.

    Args:
        port: Of the gateway.
        request: What is asked.
        call: The same, in this process.
        calls: How often.

    Raises:
        IdleError: An answer is not 200.
    """
    payload = request.http1(port)
    gateway: list[float] = []
    direct: list[float] = []
    with contextlib.closing(socket.create_connection(("127.0.0.1", port))) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number in range(-_WARM_UP, calls):
            for times, act in ((gateway, lambda: _exchange(connection, payload)), (direct, call)):
                time.sleep(_PAUSE_S)
                began = time.perf_counter()
                act()
                if number >= 0:
                    times.append((time.perf_counter() - began) * 1e3)
    theirs, ours = median(gateway), median(direct)
    return {"gateway_ms": theirs, "direct_ms": ours, "added_ms": theirs - ours}


def _exchange(connection: socket.socket, payload: bytes) -> None:
    connection.sendall(payload)
    received = b""
    while _END not in received:
        received += _receive(connection)
    head, _, body = received.partition(_END)
    length = _LENGTH.search(head)
    if not head.startswith(b"HTTP/1.1 200") or length is None:
        raise IdleError(f"the gateway answers {received[:300]!r}")
    missing = int(length[1]) - len(body)
    while missing > 0:
        missing -= len(_receive(connection))


def _receive(connection: socket.socket) -> bytes:
    received = connection.recv(_CHUNK)
    if not received:
        raise IdleError("the gateway closed the connection.")
    return received
