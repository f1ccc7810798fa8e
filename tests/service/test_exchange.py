"""Requests and answers by ASGI, with any server in between."""

from __future__ import annotations

import asyncio

import pytest

from service.asgi import Message
from service.errors import TooLargeError
from service.exchange import AsgiExchange, ClientGoneError, header_lines, headers_of
from tests.service.channel import channel

MOST = 10
LEFT = {"type": "http.disconnect"}


def exchange(*messages: Message) -> tuple[AsgiExchange, list[Message]]:
    """One whose client sends these messages, and what it is sent."""
    receive, send, sent = channel(messages)
    return AsgiExchange({"path": "/", "headers": []}, receive, send), sent


def part(body: bytes, more: bool = False) -> Message:
    return {"type": "http.request", "body": body, "more_body": more}


@pytest.mark.parametrize(
    ("messages", "body"),
    [
        ([part(b"one")], b"one"),
        ([part(b"")], b""),
        ([{"type": "http.request"}], b""),
        ([part(b"one", True), part(b"two", True), part(b"")], b"onetwo"),
        ([part(b"x" * MOST)], b"x" * MOST),
    ],
)
def test_a_body_is_read_to_its_end(messages: list[Message], body: bytes) -> None:
    assert asyncio.run(exchange(*messages)[0].read(MOST)) == body


@pytest.mark.parametrize(
    "messages",
    [[part(b"x" * (MOST + 1))], [part(b"x" * MOST, True), part(b"x", True)]],
    ids=["whole", "parts"],
)
def test_a_body_that_is_too_long_is_refused_before_it_ends(messages: list[Message]) -> None:
    with pytest.raises(TooLargeError, match="larger than 10 bytes"):
        asyncio.run(exchange(*messages)[0].read(MOST))


def test_a_body_that_never_ends_is_nobodys() -> None:
    with pytest.raises(ClientGoneError):
        asyncio.run(exchange(part(b"one", True), LEFT)[0].read(MOST))


def test_an_answer_is_said_in_two_messages() -> None:
    made, sent = exchange()
    lines = header_lines([(b"content-length", b"5")])
    assert not made.write(200, lines, b"hello")
    asyncio.run(made.send(200, lines, b"hello"))
    assert sent == [
        {"type": "http.response.start", "status": 200, "headers": [(b"content-length", b"5")]},
        {"type": "http.response.body", "body": b"hello"},
    ]


@pytest.mark.parametrize("is_watched", [False, True])
def test_who_leaves_while_it_is_watched_stops_the_work(is_watched: bool) -> None:
    async def answer() -> bool:
        made, _ = exchange(part(b"x"), LEFT)
        await made.read(MOST)
        if is_watched:
            made.watch()
        try:
            await asyncio.sleep(0.05)
        except asyncio.CancelledError:
            assert made.is_abandoned
            return True
        finally:
            made.end()
        return False

    assert asyncio.run(answer()) is is_watched


def test_who_leaves_after_the_end_stops_nothing() -> None:
    async def answer() -> None:
        made, _ = exchange(part(b"x"), LEFT)
        await made.read(MOST)
        made.watch()
        made.end()
        await asyncio.sleep(0.02)
        assert not made.is_abandoned

    asyncio.run(answer())


def test_lines_hold_the_headers_that_they_were_made_of() -> None:
    headers = [(b"x-a", b"1: 2"), (b"x-b", b"")]
    assert headers_of(header_lines(headers)) == headers
