"""Answers written at once are what uvicorn would write, on real connections."""

from __future__ import annotations

import http.client
import socket
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.wire import header_lines, headers_of, read_at_once, write_at_once
from tests.service.uvicorn_server import serving

HEADERS = [(b"content-type", b"text/plain"), (b"x-a", b"1"), (b"content-length", b"5")]


class App:
    """Answers `hello`, at once where the path says so, and remembers what came of that."""

    def __init__(self) -> None:
        self.status = 200
        self.written: list[bool] = []
        self.read: list[bool] = []
        self.waits = False
        self.then: list[str] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        if scope["path"].startswith("/read"):
            await self._tell_body(receive, send)
            return
        message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        if scope["path"] == "/at-once":
            self.written.append(write_at_once(send, self.status, header_lines(HEADERS), b"hello"))
            if self.written[-1]:
                return
        await send({"type": "http.response.start", "status": self.status, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"hello"})

    async def _tell_body(self, receive: Any, send: Any) -> None:
        """Answers with the body, and whether it was there at once."""
        body = read_at_once(receive)
        self.read.append(body is not None)
        if body is None:
            message, body = {"more_body": True}, b""
            while message.get("more_body"):
                message = await receive()
                body += message["body"]
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": body, "more_body": True})
        if self.waits:
            self.then.append((await receive())["type"])
        await send({"type": "http.response.body", "body": b""})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    with serving(app) as at:
        yield at


@pytest.mark.parametrize("status", [200, 400, 422, 503])
def test_one_connection_gets_the_same_answers_either_way(app: App, port: int, status: int) -> None:
    app.status = status
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    seen = []
    for path in ("/at-once", "/", "/at-once", "/at-once", "/"):
        connection.request("POST", path, b"x" * 70_000)
        response = connection.getresponse()
        body = response.read()
        told = {name.lower(): text for name, text in response.getheaders() if name.lower() != "date"}
        seen.append((response.status, response.reason, body, told))
    connection.close()
    assert app.written == [True] * 3
    assert all(each == seen[0] for each in seen)
    assert seen[0][2] == b"hello"
    assert seen[0][3]["x-a"] == "1"


def test_requests_in_a_row_are_answered_in_a_row(app: App, port: int) -> None:
    request = b"POST /at-once HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\nx"
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(request * 20)
        received = b""
        while received.count(b"hello") < 20:
            received += connection.recv(65536)
    assert received.count(b"HTTP/1.1 200 OK\r\n") == 20
    assert app.written == [True] * 20


def test_a_client_that_wants_the_connection_closed_gets_that(app: App, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    connection.request("POST", "/at-once", b"x", {"connection": "close"})
    response = connection.getresponse()
    assert (response.read(), response.getheader("connection")) == (b"hello", "close")
    assert app.written == [False]


def test_who_asks_for_headers_gets_no_body(app: App, port: int) -> None:
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=10)
    for _ in range(2):
        connection.request("HEAD", "/at-once")
        response = connection.getresponse()
        assert (response.read(), response.getheader("content-length")) == (b"", "5")
    connection.close()
    assert app.written == [False] * 2


def test_what_stands_between_is_not_passed_by() -> None:
    async def send(message: Any) -> None:
        raise NotImplementedError

    assert not write_at_once(send, 200, header_lines(HEADERS), b"hello")


def test_a_body_that_is_there_is_read_at_once_and_none_of_it_again(app: App, port: int) -> None:
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        for body in (b"one", b"", b"three"):  # each with its head in one piece: clients may send two
            head = b"POST /read HTTP/1.1\r\nhost: here\r\ncontent-length: %d\r\n\r\n" % len(body)
            connection.sendall(head + body)
            received = b""
            while not received.endswith(b"0\r\n\r\n"):
                received += connection.recv(65536)
            assert body in received
    assert app.read == [True] * 3


@pytest.mark.parametrize("expects", [False, True])
def test_a_body_that_is_still_on_its_way_is_waited_for(app: App, port: int, expects: bool) -> None:
    expecting = b"expect: 100-continue\r\n" if expects else b""
    head = b"POST /read HTTP/1.1\r\nhost: here\r\n%bcontent-length: 10\r\n\r\n" % expecting
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(head + (b"" if expects else b"01234"))
        if expects:
            assert connection.recv(65536).startswith(b"HTTP/1.1 100")
        else:
            while not app.read:
                pass
        connection.sendall(b"0123456789" if expects else b"56789")
        received = b""
        while not received.endswith(b"\r\n0\r\n\r\n"):
            received += connection.recv(65536)
    assert b"0123456789" in received
    assert app.read == [False]


def test_who_read_at_once_still_hears_that_the_client_left(app: App, port: int) -> None:
    app.waits = True
    with socket.create_connection(("127.0.0.1", port), timeout=10) as connection:
        connection.sendall(b"POST /read HTTP/1.1\r\nhost: here\r\ncontent-length: 1\r\n\r\nx")
        assert b"x" in connection.recv(65536)
        assert app.then == []
    for _ in range(1000):
        if app.then:
            break
        time.sleep(0.01)
    assert app.then == ["http.disconnect"]


def test_lines_hold_the_headers_that_they_were_made_of() -> None:
    headers = [(b"x-a", b"1: 2"), (b"x-b", b"")]
    assert headers_of(header_lines(headers)) == headers
