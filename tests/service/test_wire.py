"""Answers written at once are what uvicorn would write, on real connections."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Iterator
from typing import Any

import pytest
import uvicorn

from service.wire import header_lines, write_at_once

HEADERS = [(b"content-type", b"text/plain"), (b"x-a", b"1"), (b"content-length", b"5")]


class App:
    """Answers `hello`, at once where the path says so, and remembers what came of that."""

    def __init__(self) -> None:
        self.status = 200
        self.written: list[bool] = []

    async def __call__(self, scope: Any, receive: Any, send: Any) -> None:
        message = {"more_body": True}
        while message.get("more_body"):
            message = await receive()
        if scope["path"] == "/at-once":
            self.written.append(write_at_once(send, self.status, header_lines(HEADERS), b"hello"))
            if self.written[-1]:
                return
        await send({"type": "http.response.start", "status": self.status, "headers": HEADERS})
        await send({"type": "http.response.body", "body": b"hello"})


@pytest.fixture
def app() -> App:
    return App()


@pytest.fixture
def port(app: App) -> Iterator[int]:
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, lifespan="off"))
    with socket.create_server(("127.0.0.1", 0)) as listening:
        thread = threading.Thread(target=server.run, args=([listening],))
        thread.start()
        yield listening.getsockname()[1]
        server.should_exit = True
        thread.join(30)


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
