"""uvicorn's side of a connection, as the gateway needs it.

The head of a request is bounded: uvicorn's parser reads one of any length, and keeps it in memory. And an
inference goes straight to the gateway's app, past uvicorn's search for what proxies say of the client. No
answer depends on that; traces name the scheme of the connection itself.
"""

from __future__ import annotations

from typing import Any

from uvicorn.config import HTTP_PROTOCOLS
from uvicorn.middleware.proxy_headers import ProxyHeadersMiddleware
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol, RequestResponseCycle

MOST_HEAD_BYTES = 64 * 1024
_INFERENCE = "/infer"
_MESSAGE = b'{"error":"the request line and headers are longer than %d bytes. Send less."}' % MOST_HEAD_BYTES
_REFUSAL = (
    b"HTTP/1.1 431 Request Header Fields Too Large\r\ncontent-type: application/json\r\n"
    b"content-length: %d\r\nconnection: close\r\n\r\n%b" % (len(_MESSAGE), _MESSAGE)
)


class HeadTooLongError(Exception):
    """The head of a request is longer than is taken."""


class GatewayProtocol(HttpToolsProtocol):
    """uvicorn's protocol with an end to request line, headers and trailers, and a short way for inference.

    The end is `MOST_HEAD_BYTES`. What came since the last end of a head or part of a body is counted by
    reads, not by headers. Only a head that shares its first read with an earlier request may be longer, by
    that read.
    """

    _unended = 0  # bytes
    _is_too_long = False

    def __init__(self, *arguments: Any, **named: Any) -> None:
        super().__init__(*arguments, **named)
        self._inner = self.app.app if isinstance(self.app, ProxyHeadersMiddleware) else self.app

    def data_received(self, data: bytes) -> None:
        """Parses what came; ends the connection of a head that does not end."""
        self._unended += len(data)
        super().data_received(data)
        if self._unended > MOST_HEAD_BYTES and not self.transport.is_closing():
            self._refuse()

    def on_headers_complete(self) -> None:
        """Measures a head that came in a large read, which may hold a body too.

        Raises:
            HeadTooLongError: It is too long; the parser then has a 400 sent, which is ours.
        """
        if self._unended > MOST_HEAD_BYTES and self._head_bytes() > MOST_HEAD_BYTES:
            self._is_too_long = True
            raise HeadTooLongError
        self._unended = 0
        super().on_headers_complete()

    def on_body(self, body: bytes) -> None:
        """A part of a body, which is bounded elsewhere."""
        self._unended = 0
        super().on_body(body)

    def _start_asgi_task(self, cycle: RequestResponseCycle, app: Any) -> None:
        """Has a request answered: an inference by the app inside."""
        if app is self.app and cycle.scope["path"].endswith(_INFERENCE):
            app = self._inner
        super()._start_asgi_task(cycle, app)

    def send_400_response(self, msg: str) -> None:
        """Answers what the parser does not take."""
        if self._is_too_long:
            self._refuse()
        else:
            super().send_400_response(msg)

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
