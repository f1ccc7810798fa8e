"""Server-sent events: what changes, told to everybody who looks on.

A listener that is slow gets the newest state of each document, never a backlog: what waits for it is at most
one of each.
"""

from __future__ import annotations

import asyncio
import logging
import signal
import threading
from collections.abc import AsyncIterator, Callable, Mapping
from types import FrameType
from typing import Any

import orjson

from service.errors import UnavailableError
from service.state.database import StateAwayError

log = logging.getLogger("mipgate.admin")

_LOOK_EVERY_S = 1.0
_CHECK_EVERY_S = 1.0
_HEARTBEAT_EVERY = 15  # checks
_MOST_LISTENERS = 100

SignalHandler = Callable[[int, FrameType | None], None]
Key = tuple[str, str]  # kind of document, and its id


class Listener:
    """One open stream."""

    def __init__(self, wants: Callable[[Key], bool]) -> None:
        self._wants = wants
        self._pending: dict[Key, bytes] = {}
        self._wake = asyncio.Event()
        self.is_closed = False

    def put(self, key: Key, document: bytes) -> None:
        """Has the newest state of a document wait for the listener."""
        if self._wants(key):
            self._pending.pop(key, None)  # the newest goes last
            self._pending[key] = document
            self._wake.set()

    def close(self) -> None:
        """Ends the stream once what waits was sent."""
        self.is_closed = True
        self._wake.set()

    async def take(self, within_s: float) -> list[tuple[Key, bytes]]:
        """What waits; nothing when nothing came in time."""
        try:
            async with asyncio.timeout(within_s):
                await self._wake.wait()
        except TimeoutError:
            return []
        self._wake.clear()
        taken, self._pending = list(self._pending.items()), {}
        return taken


class Changes:
    """Looks for changes once a second, while anybody listens.

    Args:
        look: Every document that there is now, by kind and id. Blocks.
    """

    def __init__(self, look: Callable[[], Mapping[Key, Any]]) -> None:
        self._look = look
        self._known: dict[Key, bytes] = {}
        self._listeners: set[Listener] = set()
        self._watching: asyncio.Task[None] | None = None
        self._is_closed = False

    def listen(self, wants: Callable[[Key], bool] = lambda _: True) -> Listener:
        """A listener to what is wanted; it begins with the state of everything.

        Raises:
            UnavailableError: There are too many, or the gateway stops.
        """
        if self._is_closed or len(self._listeners) >= _MOST_LISTENERS:
            raise UnavailableError("no more listeners are taken now. Try again.")
        listener = Listener(wants)
        for key, document in self._known.items():
            listener.put(key, document)
        self._listeners.add(listener)
        if self._watching is None or self._watching.done():
            self._watching = asyncio.create_task(self._watch())
        return listener

    def leave(self, listener: Listener) -> None:
        """Forgets a listener."""
        self._listeners.discard(listener)

    def close(self) -> None:
        """Ends every stream, so that the server can stop."""
        self._is_closed = True
        for listener in self._listeners:
            listener.close()
        if self._watching is not None:
            self._watching.cancel()

    def close_on_signals(self) -> None:
        """Ends every stream as soon as the process is told to stop: the server waits for open connections."""
        if threading.current_thread() is not threading.main_thread():
            return
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._chained(loop, signal.getsignal(number)))

    def _chained(self, loop: asyncio.AbstractEventLoop, before: Any) -> SignalHandler:
        def handle(number: int, frame: FrameType | None) -> None:
            loop.call_soon_threadsafe(self.close)
            if callable(before):
                before(number, frame)

        return handle

    async def _watch(self) -> None:
        while self._listeners:
            try:
                self._tell(await asyncio.to_thread(self._look))
            except StateAwayError as error:
                log.warning("changes are not seen: %s", error)
            except Exception:  # one look went wrong; the next may not
                log.exception("changes were not seen")
            await asyncio.sleep(_LOOK_EVERY_S)
        self._known = {}

    def _tell(self, seen: Mapping[Key, Any]) -> None:
        now = {key: orjson.dumps(document) for key, document in seen.items()}
        for key, document in now.items():
            if self._known.get(key) != document:
                for listener in self._listeners:
                    listener.put(key, document)
        self._known = now


async def stream(
    changes: Changes,
    listener: Listener,
    name: Callable[[Key, bytes], str],
    may_go_on: Callable[[], bool],
    is_last: Callable[[bytes], bool] = lambda _: False,
) -> AsyncIterator[bytes]:
    """The bytes of a stream of events.

    Args:
        changes: Where the listener is known.
        listener: What is told.
        name: The event's name for a document.
        may_go_on: Asked once a second whether the caller may still look on.
        is_last: Whether a document ends the stream.
    """
    quiet = 0
    try:
        yield b"retry: 2000\n: listening\n\n"
        while may_go_on():
            taken = await listener.take(_CHECK_EVERY_S)
            for key, document in taken:
                yield b"event: %b\ndata: %b\n\n" % (name(key, document).encode(), document)
                if is_last(document):
                    return
            if listener.is_closed:
                return
            quiet = 0 if taken else quiet + 1
            if quiet == _HEARTBEAT_EVERY:
                quiet = 0
                yield b": still here\n\n"
    finally:
        changes.leave(listener)
