"""The bound on a request's head, and the short way of an inference, over real connections to uvicorn."""

import socket
from collections.abc import Iterator
from typing import Any

import pytest
from uvicorn.config import HTTP_PROTOCOLS

from service.http_protocol import MOST_HEAD_BYTES, take_protocol
from tests.service.uvicorn_server import serving

REFUSED = (b"HTTP/1.1 431", b"")  # nothing where the connection was reset before the answer could be read
ENOUGH = 32 * 2**20  # more than the buffers of both ends hold


async def count(scope: Any, receive: Any, send: Any) -> None:
    """Answers with the number of bytes in the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size += len(message.get("body", b""))
        more = message.get("more_body", False)
    body = b"%d" % size
    headers = [(b"content-length", b"%d" % len(body))]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(autouse=True)
def _protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uvicorn serves as a gateway's worker does."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])  # given back at the end
    take_protocol()


@pytest.fixture
def port() -> Iterator[int]:
    with serving(count) as at:
        yield at


def answer(port: int, *parts: bytes) -> bytes:
    """What comes back until the server closes, or is silent for a second."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            for part in parts:
                connection.sendall(part)
            connection.settimeout(1)
            while part := connection.recv(65536):
                received += part
        except (ConnectionError, TimeoutError):
            return received
    return received


def head(*lines: bytes) -> bytes:
    return b"\r\n".join([b"POST / HTTP/1.1", b"host: here", *lines, b"", b""])


def endless(port: int, beginning: bytes, more: bytes) -> int:
    """How many bytes the server takes before it ends the connection."""
    sent = 0
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        try:
            connection.sendall(beginning)
            while sent < ENOUGH:
                connection.sendall(more)
                sent += len(more)
        except ConnectionError:
            return sent
    return sent


@pytest.mark.parametrize(
    ("beginning", "more"),
    [
        (b"GET / HTTP/1.1\r\nx: ", b"y" * 4096),
        (b"GET /", b"y" * 4096),
        (b"GET / HTTP/1.1\r\n", b"name: value\r\n" * 300),
        (head(b"transfer-encoding: chunked") + b"0\r\n", b"name: value\r\n" * 300),
        (head(b"transfer-encoding: chunked") + b"5;", b"y" * 4096),
    ],
    ids=["header", "path", "headers", "trailers", "extension"],
)
def test_what_does_not_end_is_ended(port: int, beginning: bytes, more: bytes) -> None:
    assert endless(port, beginning, more) < ENOUGH
    assert answer(port, head(b"content-length: 0")).startswith(b"HTTP/1.1 200")


def test_one_byte_too_many_is_told(port: int) -> None:
    told = answer(port, b"GET /" + b"y" * (MOST_HEAD_BYTES - 4))
    assert told.startswith(b"HTTP/1.1 431")
    assert b"Send less" in told


def test_a_long_head_that_ends_is_refused_too(port: int) -> None:
    long = head(b"x: " + b"y" * MOST_HEAD_BYTES, b"content-length: 0")
    assert answer(port, long)[:12] in REFUSED
    assert answer(port, long[:1000], long[1000:])[:12] in REFUSED


def test_a_head_within_bounds_passes_in_one_piece_or_many(port: int) -> None:
    fits = head(b"x: " + b"y" * (MOST_HEAD_BYTES - 200), b"content-length: 0")
    assert answer(port, fits).startswith(b"HTTP/1.1 200")
    pieces = [fits[start : start + 5000] for start in range(0, len(fits), 5000)]
    assert answer(port, *pieces).startswith(b"HTTP/1.1 200")


def test_bodies_are_not_counted(port: int) -> None:
    body = b"z" * 500_000
    assert answer(port, head(b"content-length: 500000") + body).endswith(b"500000")
    chunks = b"".join(b"3e8\r\n%b\r\n" % body[:1000] for _ in range(500)) + b"0\r\n\r\n"
    assert answer(port, head(b"transfer-encoding: chunked") + chunks).endswith(b"500000")


def test_a_connection_may_carry_any_number_of_heads(port: int) -> None:
    one = head(b"x: " + b"y" * 4000, b"content-length: 0")
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for _ in range(40):
            connection.sendall(one)
            assert connection.recv(65536).startswith(b"HTTP/1.1 200")


def test_what_is_no_http_is_called_that(port: int) -> None:
    assert answer(port, b"\x00\x01\x02\r\n\r\n").startswith(b"HTTP/1.1 400")
