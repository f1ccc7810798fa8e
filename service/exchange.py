"""One request over HTTP and the way back to its client, whatever stands in between.

Headers of answers are lines from the start, as they go over the wire, so that nobody puts them together anew.
"""

from __future__ import annotations

import asyncio
from collections.abc import Iterable
from typing import Any, Protocol

from service.asgi import Headers, Receive, Scope, Send
from service.errors import TooLargeError


class ClientGoneError(Exception):
    """The client closed the connection before its answer was there."""


class Head:
    """What stands before the body of a request. It is the same for many, and then one object may be.

    Attributes:
        path: Without the query.
        headers: In the order that they came in, names in lower case.
        fields: Values by name; of several with one name the last.
        meaning: What the data plane made of it.
    """

    __slots__ = ("fields", "headers", "meaning", "path")

    def __init__(self, path: str, headers: Headers) -> None:
        self.path = path
        self.headers = headers
        self.fields = dict(headers)
        self.meaning: tuple[int | None, dict[str, Any]] | None = None


class Exchange(Protocol):
    """A request whose head came, and what answers it.

    Attributes:
        head: What was asked.
        request_id: What the request is called, from when it is decoded; "" before.
        is_abandoned: Whether the client left, and the task that answers was cancelled for it.
    """

    head: Head
    request_id: str
    is_abandoned: bool

    @property
    def body(self) -> bytes | None:
        """All of it where it is there already, else None."""

    async def read(self, most: int) -> bytes:
        """The body, of so many bytes at most.

        Raises:
            ClientGoneError: It never came.
            TooLargeError: It is longer.
        """

    def watch(self) -> None:
        """From now on cancels the task that answers, and calls this, when the client leaves."""

    def write(self, status: int, lines: bytes, payload: bytes) -> bool:
        """Answers at once.

        Args:
            status: Of HTTP.
            lines: Headers, names in lower case, checked: nothing of a client's that could end a line.
            payload: The body, whose length is among the headers.

        Returns:
            Whether it did; else `send` has to.
        """

    async def send(self, status: int, lines: bytes, payload: bytes) -> None:
        """Answers as `write` does, as soon as the client takes it."""

    def end(self) -> None:
        """Nothing more comes of it: whoever leaves now has had the answer, or gets none."""


def header_lines(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """Headers as lines, each with its end."""
    return b"".join([b"%b: %b\r\n" % header for header in headers])


def headers_of(lines: bytes) -> Headers:
    """The headers that stand in lines."""
    pairs = (line.partition(b": ") for line in lines.split(b"\r\n") if line)
    return [(name, value) for name, _, value in pairs]


def too_large(most: int) -> TooLargeError:
    """A body that is longer than is taken."""
    return TooLargeError(f"the body is larger than {most} bytes. Send less, or raise MIPGATE_MAX_BODY_BYTES.")


async def read_body(receive: Receive, most: int) -> bytes:
    """As `Exchange.read` does, by ASGI."""
    chunks: list[bytes] = []
    size, more = 0, True
    while more:
        message = await receive()
        if message["type"] == "http.disconnect":
            raise ClientGoneError
        chunks.append(message.get("body", b""))
        size += len(chunks[-1])
        if size > most:
            raise too_large(most)
        more = message.get("more_body", False)
    return chunks[0] if len(chunks) == 1 else b"".join(chunks)


class AsgiExchange:
    """An exchange by ASGI: any server, any layer in between."""

    __slots__ = ("_receive", "_send", "_watcher", "body", "head", "is_abandoned", "request_id")

    def __init__(self, scope: Scope, receive: Receive, send: Send) -> None:
        self.head = Head(scope["path"], scope["headers"])
        self.body: bytes | None = None
        self.request_id = ""
        self.is_abandoned = False
        self._receive = receive
        self._send = send
        self._watcher: asyncio.Task[None] | None = None

    async def read(self, most: int) -> bytes:
        """As `Exchange` has it."""
        return await read_body(self._receive, most)

    def watch(self) -> None:
        """As `Exchange` has it; the body was read to its end."""
        task = asyncio.current_task()
        if self._watcher is None and task is not None:
            self._watcher = asyncio.create_task(self._cancel(task))

    async def _cancel(self, answering: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.is_abandoned = True
        answering.cancel()

    def write(self, status: int, lines: bytes, payload: bytes) -> bool:
        """As `Exchange` has it: ASGI has no way to."""
        return False

    async def send(self, status: int, lines: bytes, payload: bytes) -> None:
        """As `Exchange` has it."""
        await self._send({"type": "http.response.start", "status": status, "headers": headers_of(lines)})
        await self._send({"type": "http.response.body", "body": payload})

    def end(self) -> None:
        """As `Exchange` has it."""
        if self._watcher is not None:
            self._watcher.cancel()
