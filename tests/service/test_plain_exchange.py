"""Inferences that go straight to the data plane, over real connections to uvicorn.

Whatever a client sends, and in whatever pieces, is answered as if it went by ASGI.
"""

from __future__ import annotations

import asyncio
import http.client
import logging
import socket
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from uvicorn.config import HTTP_PROTOCOLS

from service import http_protocol
from service.exchange import AsgiExchange, Exchange, header_lines
from service.http_protocol import PlainExchange, take_protocol
from tests.service.uvicorn_server import serving

PATH = b"/v2/models/m/infer"
LONG = 100_000  # bytes, more than is plain


class Plane:
    """Answers with path, `x-a` and body, and remembers which way each request came."""

    def __init__(self) -> None:
        self.status = 200
        self.ways: list[type] = []
        self.paths: list[str] = []
        self.holds = False
        self.abandoned = 0
        self.fails = False
        self.is_early = False

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        await self.infer(AsgiExchange(scope, receive, send))

    async def infer(self, exchange: Exchange) -> None:
        try:
            body = b"early" if self.is_early else exchange.body or await exchange.read(10**7)
            self.ways.append(type(exchange))
            self.paths.append(exchange.head.path)
            if self.fails:
                return
            if self.holds:
                exchange.watch()
                await asyncio.sleep(30)
            payload = b"<%b %b>" % (exchange.head.fields.get(b"x-a", b"-"), body)
            lines = header_lines([(b"x-b", b"2"), (b"content-length", b"%d" % len(payload))])
            if not exchange.write(self.status, lines, payload):
                await exchange.send(self.status, lines, payload)
        except asyncio.CancelledError:
            self.abandoned += exchange.is_abandoned
            raise
        finally:
            exchange.end()

    @property
    def plain(self) -> list[bool]:
        """Of each request, whether it came straight."""
        return [way is PlainExchange for way in self.ways]


@pytest.fixture(autouse=True)
def _protocol(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every uvicorn serves as a gateway's worker does; no head is known."""
    monkeypatch.setitem(HTTP_PROTOCOLS, "auto", HTTP_PROTOCOLS["auto"])  # given back at the end
    monkeypatch.setattr(http_protocol, "_remembered", {})
    monkeypatch.setattr(logging.getLogger("uvicorn.access"), "hasHandlers", lambda: False)  # pytest has one
    take_protocol()


@pytest.fixture
def plane() -> Plane:
    return Plane()


@pytest.fixture
def port(plane: Plane) -> Iterator[int]:
    with serving(plane) as at:
        yield at


def request(body: bytes = b"hello", *lines: bytes, path: bytes = PATH) -> bytes:
    return b"\r\n".join(
        [b"POST %b HTTP/1.1" % path, b"Host: here", b"Content-Length: %d" % len(body), *lines, b"", body]
    )


def talk(port: int, *parts: bytes, until: Callable[[bytes], bool]) -> bytes:
    """Sends the parts, each when the last may have been read alone, and reads until that is enough."""
    received = b""
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for number, part in enumerate(parts):
            if number:
                time.sleep(0.05)
            connection.sendall(part)
        while not until(received):
            chunk = connection.recv(65536)
            if not chunk:
                break
            received += chunk
    return received


def answers(count: int) -> Callable[[bytes], bool]:
    return lambda received: received.count(b">") == count


@pytest.mark.parametrize("status", [200, 400, 422, 503])
def test_one_connection_gets_the_same_answers_either_way(plane: Plane, port: int, status: int) -> None:
    plane.status = status
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    seen = []
    for query in ("", "?", "", "", "?"):
        connection.request("POST", PATH.decode() + query, b"hello", {"X-A": "1"})
        response = connection.getresponse()
        body = response.read()
        told = {name.lower(): text for name, text in response.getheaders() if name.lower() != "date"}
        seen.append((response.status, response.reason, body, told))
    connection.close()
    assert plane.plain == [True, False, True, True, False]
    assert all(each == seen[0] for each in seen)
    assert seen[0][2] == b"<1 hello>"


def test_a_known_head_is_not_parsed_again(plane: Plane, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    heads: list[bytes] = []
    parsed = http_protocol.GatewayProtocol.on_headers_complete

    def counted(self: http_protocol.GatewayProtocol) -> None:
        heads.append(self.url)
        parsed(self)

    monkeypatch.setattr(http_protocol.GatewayProtocol, "on_headers_complete", counted)
    for _ in range(2):  # connections
        received = b""
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            for body in (b"hello", b"world", b"again"):
                connection.sendall(request(body, b"X-A: 7"))
                received += connection.recv(65536)
        assert (
            received.count(b"<7 hello>") == received.count(b"<7 world>") == received.count(b"<7 again>") == 1
        )
    assert plane.plain == [True] * 6
    assert len(heads) == 1


@pytest.mark.parametrize("first", [True, False], ids=["unknown", "known"])
@pytest.mark.parametrize("cut", [1, 20, -6, -5, -2])
def test_a_request_in_pieces_is_one(plane: Plane, port: int, cut: int, first: bool) -> None:
    if not first:
        talk(port, request(), until=answers(1))
    received = talk(port, request()[:cut], request()[cut:], until=answers(1))
    assert received.endswith(b"<- hello>")
    assert received.startswith(b"HTTP/1.1 200 OK\r\n")


def test_requests_in_one_piece_are_answered_in_order(plane: Plane, port: int) -> None:
    bodies = [b"body %d" % number for number in range(20)]
    received = talk(port, b"".join(map(request, bodies)), until=answers(20))
    assert [part[2:] for part in received.split(b"<")[1:] if b">" in part]
    places = [received.index(b"<- %b>" % body) for body in bodies]
    assert places == sorted(places)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 20
    assert plane.plain[0]  # what comes behind it waits for it, uvicorn's way


def test_a_known_head_behind_another_request_waits_for_it(plane: Plane, port: int) -> None:
    talk(port, request(), until=answers(1))
    received = talk(port, request(b"first") + request(b"later"), request(), until=answers(3))
    assert received.index(b"first") < received.index(b"later") < received.index(b"hello")


def test_a_body_that_looks_like_a_request_is_a_body(plane: Plane, port: int) -> None:
    inner = request(b"inner", b"X-A: smuggled")
    talk(port, inner, until=answers(1))  # its head is known now
    outer = request(inner)
    head = outer[: outer.index(inner)]
    assert b"<- POST" in talk(port, head, inner, until=answers(1))
    assert b"<- POST" in talk(port, outer, until=answers(1))
    assert plane.plain == [True] * 3


def test_an_answer_before_the_body_came_leaves_the_body_a_body(plane: Plane, port: int) -> None:
    inner = request(b"inner")
    talk(port, inner, until=answers(1))
    plane.ways.clear()
    plane.is_early = True
    rest = b"x" * (LONG - len(inner))
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request(inner + rest)[:-LONG])
        assert b"<- early>" in connection.recv(65536)
        connection.sendall(inner)
        time.sleep(0.1)
        connection.sendall(rest)
        time.sleep(0.1)
        connection.sendall(inner)
        assert connection.recv(65536).count(b"<- early>") == 1
    assert plane.plain == [False, True]


@pytest.mark.parametrize(
    "odd",
    [
        request(path=PATH + b"?x=1"),
        request(path=PATH + b"?/infer"),
        request(path=b"/v2/models/%6d/infer"),
        request(path=b"/v2/models/m"),
        request(b"x" * LONG),
        request(b"", b"Expect: 100-continue"),
        b"POST %b HTTP/1.1\r\nHost: here\r\nTransfer-Encoding: chunked\r\n\r\n5\r\nhello\r\n0\r\n\r\n" % PATH,
        b"POST %b HTTP/1.1\r\nHost: here\r\nConnection: close\r\nContent-Length: 2\r\n\r\nab" % PATH,
        b"POST %b HTTP/1.0\r\nContent-Length: 2\r\n\r\nab" % PATH,
        b"PUT %b HTTP/1.1\r\nHost: here\r\nContent-Length: 2\r\n\r\nab" % PATH,
    ],
    ids=["query", "fake", "escape", "other", "long", "expect", "chunked", "close", "old", "put"],
)
def test_what_is_not_plain_goes_the_other_way(plane: Plane, port: int, odd: bytes) -> None:
    for _ in range(2):
        assert b"HTTP/1.1 200" in talk(port, odd, until=answers(1))
    assert plane.plain == [False] * 2


def test_an_escape_in_a_path_is_read(plane: Plane, port: int) -> None:
    talk(port, request(path=b"/v2/models/%6d/infer"), until=answers(1))
    assert plane.paths == [PATH.decode()]


@pytest.mark.parametrize(
    "broken",
    [
        b"POST %b HTTP/1.1\r\nContent-Length: 5\r\nContent-Length: 6\r\n\r\nhello" % PATH,
        b"POST %b HTTP/1.1\r\nContent-Length: 5\r\nTransfer-Encoding: chunked\r\n\r\nhello" % PATH,
        b"POST %b HTTP/1.1\r\nContent-Length: -5\r\n\r\nhello" % PATH,
        b"POST %b HTTP/1.1\r\nContent-Length: 5x\r\n\r\nhello" % PATH,
        b"POST %b HTTP/1.1\r\nContent-Length : 5\r\n\r\nhello" % PATH,
        b"POST %b HTTP/1.1\r\nContent-Length: %d\r\n\r\nhello" % (PATH, 10**30),
        b"POST %b HTTP/1.1\nContent-Length: 5\n\nhello" % PATH,
    ],
    ids=["two", "both", "negative", "letters", "space", "huge", "lines"],
)
def test_what_could_be_read_two_ways_is_refused(plane: Plane, port: int, broken: bytes) -> None:
    for _ in range(2):
        assert talk(port, broken, until=lambda received: b"\r\n" in received).startswith(b"HTTP/1.1 400")
    assert plane.ways == []
    assert http_protocol._remembered == {}


@pytest.mark.parametrize("before", [b"\r\n", b"\r\n\r\n"])
def test_empty_lines_before_a_request_are_no_head(plane: Plane, port: int, before: bytes) -> None:
    for _ in range(2):
        assert b"<- hello>" in talk(port, before + request(), until=answers(1))
        assert b"<- hello>" in talk(port, before, request(), until=answers(1))
    assert all(raw.startswith(b"POST ") for raw in http_protocol._remembered)


def test_known_heads_are_bounded(plane: Plane, port: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(http_protocol, "_MOST_REMEMBERED", 3)
    for number in range(8):
        assert b"<%d hello>" % number in talk(port, request(b"hello", b"X-A: %d" % number), until=answers(1))
    assert 0 < len(http_protocol._remembered) <= 3
    long = request(b"hello", b"X-C: " + b"y" * 3000)
    talk(port, long, until=answers(1))
    assert all(len(raw) < 3000 for raw in http_protocol._remembered)
    assert all(plane.plain)


def test_who_leaves_while_waiting_stops_the_work(plane: Plane, port: int) -> None:
    plane.holds = True
    for _ in range(2):  # a head that is unknown, and known
        before = plane.abandoned, len(plane.ways)
        with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
            connection.sendall(request())
            while len(plane.ways) == before[1]:
                time.sleep(0.01)
        for _ in range(500):
            if plane.abandoned > before[0]:
                break
            time.sleep(0.01)
        assert plane.abandoned == before[0] + 1


@pytest.mark.parametrize("first", [request(), request(path=PATH + b"?")], ids=["plain", "by ASGI"])
def test_who_leaves_with_requests_in_a_row_stops_the_work(plane: Plane, port: int, first: bytes) -> None:
    plane.holds = True
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(first + request() + request())
        while not plane.ways:
            time.sleep(0.01)
    for _ in range(500):
        if plane.abandoned:
            break
        time.sleep(0.01)
    assert (plane.abandoned, len(plane.ways)) == (1, 1)  # those behind it never begin


def test_a_request_without_an_answer_ends_its_connection(plane: Plane, port: int) -> None:
    plane.fails = True
    assert talk(port, request(), until=lambda _: False) == b""
    plane.fails = False
    assert b"<- hello>" in talk(port, request(), until=answers(1))


def test_a_server_that_stops_answers_first_and_says_so(plane: Plane) -> None:
    with socket.socket() as connection:
        connection.settimeout(10)
        with serving(plane) as at:
            connection.connect(("127.0.0.1", at))
            connection.sendall(request()[:-2])
            time.sleep(0.2)
            threading.Timer(0.5, connection.sendall, [request()[-2:]]).start()  # when it is told to stop
        received = b""
        while chunk := connection.recv(65536):
            received += chunk
    assert b"connection: close\r\n" in received
    assert received.endswith(b"<- hello>")


def test_a_client_that_reads_slowly_gets_everything(port: int, plane: Plane) -> None:
    count, body = 400, b"z" * 60_000
    with socket.create_connection(("127.0.0.1", port), timeout=30) as connection:
        received = 0
        for _ in range(count // 40):
            connection.sendall(request(body))
            time.sleep(0.01)
            while received < len(body):
                received += len(connection.recv(10_000))
            received = 0
            connection.recv(200_000)
    assert set(plane.plain) == {True}


def test_a_quiet_connection_is_closed_and_a_busy_one_is_not(plane: Plane) -> None:
    with serving(plane, timeout_keep_alive=1) as at:
        with socket.create_connection(("127.0.0.1", at), timeout=10) as quiet:
            quiet.sendall(request())
            began = time.monotonic()
            while quiet.recv(65536):
                pass
            assert 0.9 < time.monotonic() - began < 4
        with socket.create_connection(("127.0.0.1", at), timeout=10) as busy:
            for _ in range(8):
                busy.sendall(request())
                assert b"hello" in busy.recv(65536)
                time.sleep(0.4)
