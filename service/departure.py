"""Clients that leave before their answer is there: nobody computes for them."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, MutableMapping
from typing import Any


class Departure:
    """Cancels the task that answers a request when its client closes the connection."""

    __slots__ = ("_receive", "_watcher", "happened")

    def __init__(self, receive: Callable[[], Awaitable[MutableMapping[str, Any]]]) -> None:
        """`receive` is ASGI's, whose request was read to its end."""
        self._receive = receive
        self._watcher: asyncio.Task[None] | None = None
        self.happened = False

    def watch(self) -> None:
        """From now on; to be called by the task that answers."""
        task = asyncio.current_task()
        if self._watcher is None and task is not None:
            self._watcher = asyncio.create_task(self._wait(task))

    def forget(self) -> None:
        """The answer is there: whoever leaves now has had it."""
        if self._watcher is not None:
            self._watcher.cancel()

    async def _wait(self, answering: asyncio.Task[Any]) -> None:
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.happened = True
        answering.cancel()
