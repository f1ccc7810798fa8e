"""Bodies read and answers written at once, where nothing stands between here and uvicorn.

ASGI has a coroutine for each part of a body; most are there as a whole before anyone asks. uvicorn writes
head and body of an answer apart, two system calls, and checks every header. The headers here are lines from
the start, as they go over the wire, so that nobody puts them together anew.
"""

from __future__ import annotations

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any

from uvicorn.protocols.http.httptools_impl import RequestResponseCycle

Headers = list[tuple[bytes, bytes]]

_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as lines, each with its end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def headers_of(lines: bytes) -> Headers:
    """The headers that stand in lines."""
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


class _ServersOwn:
    """The lines of uvicorn's own headers, which it makes anew once a second."""

    def __init__(self) -> None:
        self._headers: Headers = []
        self._lines = b""

    def lines(self, headers: Headers) -> bytes:
        """The lines, put together once for the same list."""
        if headers is not self._headers:
            self._headers, self._lines = headers, header_lines(headers)
        return self._lines


_servers_own = _ServersOwn()


def read_at_once(receive: Any) -> bytes | None:
    """The body of a request, where uvicorn has all of it.

    Args:
        receive: ASGI's; nobody asked it for anything yet.

    Returns:
        None where it has to be asked: more is to come, the client left or waits to be told to go on, or
        another server or a layer stands between.
    """
    cycle = getattr(receive, "__self__", None)
    if type(cycle) is not RequestResponseCycle:
        return None
    if cycle.more_body or cycle.disconnected or cycle.response_complete or cycle.waiting_for_100_continue:
        return None
    body, cycle.body = cycle.body, bytearray()
    cycle.flow.resume_reading()
    cycle.message_event.clear()  # what is asked for next is whether the client left
    return bytes(body)


def write_at_once(send: Any, status: int, lines: bytes, payload: bytes) -> bool:
    """Writes a whole answer with one call, where nothing stands between here and uvicorn.

    Args:
        send: ASGI's.
        status: Of HTTP.
        lines: Headers, names in lower case, checked: nothing of a client's that could end a line.
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
    own = _servers_own.lines(cycle.default_headers)
    cycle.transport.write(b"".join((_STATUS_LINES[status], own, lines, b"\r\n", payload)))
    cycle.response_started = cycle.response_complete = True
    cycle.message_event.set()
    cycle.on_response()
    return True
