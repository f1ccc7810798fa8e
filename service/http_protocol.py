"""uvicorn's side of a connection, as the gateway needs it.

The head of a request is bounded: uvicorn's parser reads one of any length, and keeps it in memory.

And an inference goes straight to the data plane, as an exchange of its own: ASGI's scope, its messages, the
timer that uvicorn sets after each answer and its search for what proxies say of the client would take
a quarter of a small request's time. What is not plain goes uvicorn's way: long or chunked bodies,
requests that wait behind another on their connection, HTTP/1.0, `Expect: 100-continue`. So does everything
while an app stands around the data plane, as it does for traces.

A client that keeps its connection sends one head over and over. One that the parser took for a plain
inference is not parsed again when the same bytes come at the beginning of a message.
"""

from __future__ import annotations

import asyncio
from collections.abc import Coroutine
from http import HTTPStatus
from typing import Any, Protocol

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.flow_control import HIGH_WATER_LIMIT
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

from service.asgi import Headers
from service.exchange import Exchange, Head, header_lines

MOST_HEAD_BYTES = 64 * 1024
_INFERENCE = "/infer"
_MESSAGE = b'{"error":"the request line and headers are longer than %d bytes. Send less."}' % MOST_HEAD_BYTES
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_MESSAGE), _MESSAGE)
)
_STATUS_LINES = {
    status.value: f"HTTP/1.1 {status.value} {status.phrase}\r\n".encode() for status in HTTPStatus
}
_HEAD_ENDS = b"\r\n\r\n"
_MOST_BODY_BYTES = HIGH_WATER_LIMIT  # as much as uvicorn reads before anyone asks for it
_LONGEST_LENGTH = len(str(_MOST_BODY_BYTES))
_MOST_REMEMBERED, _LONGEST_REMEMBERED = 1024, 2048  # heads, bytes
_NOT_PLAIN = b"%?#"  # of a path: escapes, a query, a fragment


class HeadTooLongError(Exception):
    """The head of a request is longer than is taken."""


class InferenceApp(Protocol):
    """An ASGI app that answers inferences without ASGI, too."""

    def infer(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """Answers one; raises nothing that a client could bring about, and ends the exchange."""


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


class _Remembered:
    """A plain head that came before, and how many bytes a message with it has."""

    __slots__ = ("head", "message_bytes")

    def __init__(self, head: Head, message_bytes: int) -> None:
        self.head = head
        self.message_bytes = message_bytes


# Over all connections of the process, by their bytes.
_remembered: dict[bytes, _Remembered] = {}


class PlainExchange:
    """An inference whose head is plain; it stands where uvicorn has the cycle of a connection's request.

    Attributes:
        response_complete: Whether it was answered.
        disconnected: Whether the client left.
        keep_alive: Whether the connection stays open after the answer.
    """

    __slots__ = (
        "_is_watched", "_protocol", "body", "disconnected", "head", "is_abandoned", "keep_alive",
        "request_id", "response_complete", "task",
    )  # fmt: skip

    # uvicorn sets it when the client left; here nobody waits for it.
    message_event = asyncio.Event()

    def __init__(self, protocol: GatewayProtocol, head: Head, body: bytes = b"") -> None:
        self.head = head
        self.body = body
        self.request_id = ""
        self.is_abandoned = False
        self.response_complete = False
        self.disconnected = False
        self.keep_alive = True
        self.task: asyncio.Task[None] | None = None
        self._protocol = protocol
        self._is_watched = False

    async def read(self, most: int) -> bytes:
        """As `Exchange` has it; `most` was looked at with the head, and is more than is plain."""
        return self.body

    def watch(self) -> None:
        """As `Exchange` has it."""
        self._is_watched = True
        self._protocol.flow.resume_reading()  # paused while others wait behind it, no end would be seen
        if self.disconnected:
            self.left()

    def left(self) -> None:
        """The client is gone."""
        if self._is_watched and self.task is not None and not self.is_abandoned:
            self.is_abandoned = True
            self.task.cancel()

    def write(self, status: int, lines: bytes, payload: bytes) -> bool:
        """As `Exchange` has it."""
        protocol = self._protocol
        if protocol.flow.write_paused and not self.disconnected:
            return False
        self.response_complete = True
        if self.disconnected:
            return True
        own = _servers_own.lines(protocol.server_state.default_headers)
        if self.keep_alive:
            protocol.transport.write(b"".join((_STATUS_LINES[status], own, lines, b"\r\n", payload)))
        else:
            closing = b"connection: close\r\n\r\n"
            protocol.transport.write(b"".join((_STATUS_LINES[status], own, lines, closing, payload)))
            protocol.transport.close()
        protocol.on_response_complete()
        return True

    async def send(self, status: int, lines: bytes, payload: bytes) -> None:
        """As `Exchange` has it."""
        while not self.write(status, lines, payload):
            await self._protocol.flow.drain()

    def end(self) -> None:
        """As `Exchange` has it: without an answer the connection has to end."""
        protocol = self._protocol
        if self.task is not None:
            protocol.tasks.discard(self.task)
        if not self.response_complete:
            self.response_complete = True
            protocol.transport.close()


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to request line, headers and trailers, and a short way for inference.

    The end is `MOST_HEAD_BYTES`. What came since the last end of a head or part of a body is counted by
    reads, not by headers. Only a head that shares its first read with an earlier request may be longer, by
    that read.
    """

    cycle: Any  # of the last request: uvicorn's, or a `PlainExchange`
    _answering: Any = None  # that of the request that is being answered; others may wait behind it
    _unended = 0  # bytes
    _is_too_long = False
    _is_between = True  # messages: none has begun, or the last was read to its end
    _first = b""  # what came with the beginning of a message first
    _quiet_since = 0.0
    _quiet_timer: asyncio.TimerHandle | None = None

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        app = self.app.app if isinstance(self.app, ProxyHeadersMiddleware) else self.app
        is_usual = not (self.access_log or self.root_path or self.limit_concurrency)
        self._plane: InferenceApp | None = app if is_usual and hasattr(app, "infer") else None

    def data_received(self, data: bytes) -> None:
        """Parses what came; ends the connection of a head that does not end."""
        if self._is_between:
            known = _remembered.get(data[: data.find(_HEAD_ENDS, 0, _LONGEST_REMEMBERED) + 4])
            if known is not None and len(data) == known.message_bytes and self._is_free():
                self._answer(PlainExchange(self, known.head, data[data.find(_HEAD_ENDS) + 4 :]))
                return
            self._first = data
        self._unended += len(data)
        super().data_received(data)
        self._first = b""
        if self._unended > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_message_begin(self) -> None:
        """A head begins."""
        self._is_between = False
        super().on_message_begin()

    def on_headers_complete(self) -> None:
        """Measures a head that came in a large read, which may hold a body too; begins a plain inference.

        Raises:
            HeadTooLongError: It is too long; the parser then has a 400 sent, which is ours.
        """
        if self._unended > MOST_HEAD_BYTES and self._head_bytes() > MOST_HEAD_BYTES:
            self._is_too_long = True
            raise HeadTooLongError
        self._unended = 0
        head = self._plain_head()
        if head is None:
            super().on_headers_complete()
        else:
            self.cycle = PlainExchange(self, head)

    def on_body(self, body: bytes) -> None:
        """A part of a body, which is bounded elsewhere."""
        self._unended = 0
        if type(self.cycle) is PlainExchange:
            self.cycle.body += body
        else:
            super().on_body(body)

    def on_message_complete(self) -> None:
        """All of a request came."""
        self._is_between = True
        self._first = b""
        if type(self.cycle) is PlainExchange:
            self._answer(self.cycle)
        else:
            super().on_message_complete()

    def on_response_complete(self) -> None:
        """Turns to what waits on this connection; what is quiet for too long is closed.

        One timer for many answers, where uvicorn has one for each.
        """
        self.server_state.total_requests += 1
        if self.transport.is_closing():
            return
        self.flow.resume_reading()
        if self.pipeline:
            self._start_asgi_task(*self.pipeline.pop())
            return
        self._quiet_since = self.loop.time()
        if self._quiet_timer is None:
            self._quiet_timer = self.loop.call_later(self.timeout_keep_alive, self._close_if_quiet)

    def connection_lost(self, exc: Exception | None) -> None:
        """Tells who waits for the device that nobody waits for the answer."""
        super().connection_lost(exc)
        if self._quiet_timer is not None:
            self._quiet_timer.cancel()
        answering = self._answering
        if answering is not None and not answering.response_complete:
            answering.disconnected = True  # uvicorn tells the last request of the connection only
            answering.message_event.set()
            if type(answering) is PlainExchange:
                answering.left()

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser does not take."""
        if self._is_too_long:
            self._refuse()
        else:
            super().send_400_response(msg)

    def _is_free(self) -> bool:
        """Whether nothing of this connection is being answered."""
        return (self.cycle is None or self.cycle.response_complete) and not self.transport.is_closing()

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        self._answering = cycle
        super()._start_asgi_task(cycle, app)

    def _answer(self, exchange: PlainExchange) -> None:
        self.cycle = self._answering = exchange
        assert self._plane is not None  # nothing is plain without it
        exchange.task = task = self.loop.create_task(self._plane.infer(exchange))
        self.tasks.add(task)

    def _plain_head(self) -> Head | None:
        """The head that was just read, if it is a plain inference's; it is known again."""
        parser = self.parser
        if (
            self._plane is None
            or parser.get_method() != b"POST"
            or parser.get_http_version() != "1.1"
            or not parser.should_keep_alive()
            or parser.should_upgrade()
            or self.expect_100_continue
            or not self._is_free()
        ):
            return None
        url = self.url
        if not url.isascii() or any(sign in url for sign in _NOT_PLAIN):
            return None
        head = Head(url.decode(), self.headers)
        length = head.fields.get(b"content-length", b"")
        if (
            not head.path.endswith(_INFERENCE)
            or b"transfer-encoding" in head.fields
            or not length.isdigit()
            or len(length) > _LONGEST_LENGTH
            or int(length) > _MOST_BODY_BYTES
        ):
            return None
        self._remember(head, int(length))
        return head

    def _remember(self, head: Head, body_bytes: int) -> None:
        """Keeps a head whose bytes are at hand, where no doubt is possible where they end."""
        raw = self._first[: self._first.find(_HEAD_ENDS, 0, _LONGEST_REMEMBERED) + 4]
        lines = len(head.headers) + 2  # the first, and the empty one
        if raw.startswith(b"POST %b HTTP/1.1\r\n" % self.url) and raw.count(b"\n") == lines:
            if len(_remembered) == _MOST_REMEMBERED:
                _remembered.clear()
            _remembered[raw] = _Remembered(head, len(raw) + body_bytes)

    def _close_if_quiet(self) -> None:
        """Closes the connection where nothing came since the last answer, long ago."""
        self._quiet_timer = None
        left_s = self._quiet_since + self.timeout_keep_alive - self.loop.time()
        if left_s <= 0 and self._is_free() and self._is_between and not self._unended:
            self.transport.close()
        elif not self.transport.is_closing():
            self._quiet_timer = self.loop.call_later(max(left_s, 1.0), self._close_if_quiet)

    def _head_bytes(self) -> int:
        return len(self.url) + sum(len(name) + len(value) + len(b": \r\n") for name, value in self.headers)

    def _refuse(self) -> None:
        if self.cycle and not self.cycle.response_complete:
            self.transport.abort()  # of a request that is being answered: no other answer may get between
            return
        self.transport.write(_REFUSAL)
        self.transport.close()


def take_protocol() -> None:
    """Has every uvicorn of this process take `GatewayProtocol`, from its next start on.

    BentoML makes the `uvicorn.Config` itself, without `http=`, and has no option that gets there. What "auto"
    means is looked up in this table when the server starts, which is after BentoML has asked for our app.
    """
    HTTP_PROTOCOLS["auto"] = f"{__name__}:{GatewayProtocol.__name__}"
