"""Answers written at once: uvicorn writes head and body apart, two system calls, and checks every header."""

from __future__ import annotations

from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Headers = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def write_at_once(send: Any, status: int, headers: Headers, payload: bytes) -> bool:
    """Writes a whole answer with one call, where nothing stands between here and uvicorn.

    Args:
        send: ASGI's.
        status: Of HTTP.
        headers: Names in lower case and values, checked: nothing of a client's that could end a line.
        payload: The body, whose length is among the headers.

    Returns:
        False where it has to go through `send`: another server or a layer between, a client that reads
        slowly, or wants the connection closed or the headers alone.
    """
    cycle = getattr(send, "__self__", None)
    if type(cycle) is not RequestResponseCycle:
        return False
    if cycle.flow.write_paused or not cycle.keep_alive or cycle.response_started:
        return False
    if cycle.scope["method"] == "HEAD":  # its answer has no body
        return False
    if cycle.disconnected:
        return True
    lines = [_STATUS_LINES[status]]
    for name, value in cycle.default_headers:
        lines += (name, b": ", value, b"\r\n")
    for name, value in headers:
        lines += (name, b": ", value, b"\r\n")
    lines += (b"\r\n", payload)
    cycle.transport.write(b"".join(lines))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
