"""Spreads connections over the workers of a gateway, which listen on the same socket.

Left alone, the worker that wakes first takes all connections that wait, and clients that keep theirs ask it
for as long as they live, while others idle. Here a worker that has more than another looks away for a
moment, so that the other may take what waits.
"""

from __future__ import annotations

import asyncio
import logging
import socket
from collections.abc import Callable
from functools import partial
from pathlib import Path

import uvicorn

from service.mapped import map_file

log = logging.getLogger("mipgate.workers")

_ITEM_BYTES = 8
# For the others to wake up in.
_LOOK_AWAY_S = 0.001
_OUT_OF_FILES_S = 1.0


class Shares:
    """How many connections each worker has; each writes its own number."""

    def __init__(self, path: Path, number: int, workers: int) -> None:
        """`number` counts the workers from 1.

        Raises:
            OSError: The file cannot be written.
        """
        self._counts = memoryview(map_file(path, workers * _ITEM_BYTES)).cast("Q")
        self._own = number - 1
        self._others = [each for each in range(workers) if each != self._own]
        self.tell(0)

    def tell(self, connections: int) -> None:
        """Notes how many this worker has."""
        self._counts[self._own] = connections

    def is_ahead(self, connections: int) -> bool:
        """Whether any other has fewer."""
        return any([self._counts[other] < connections for other in self._others])


class _Counted(set[object]):
    """uvicorn's set of a server's connections, which tells how many there are."""

    def __init__(self, tell: Callable[[int], None]) -> None:
        super().__init__()
        self._tell = tell

    def add(self, element: object) -> None:
        super().add(element)
        self._tell(len(self))

    def discard(self, element: object) -> None:
        super().discard(element)
        self._tell(len(self))


class FairServer(uvicorn.Server):
    """A uvicorn server that leaves new connections to workers that have fewer."""

    def __init__(self, shares: Shares, config: uvicorn.Config) -> None:
        super().__init__(config)
        self.server_state.connections = _Counted(shares.tell)  # type: ignore[assignment]
        self._shares = shares
        self._adopting: set[asyncio.Task[object]] = set()

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Starts, and accepts connections from the sockets that it is given."""
        await super().startup(sockets=None if sockets is None else [])
        for listener in sockets or []:
            listener.setblocking(False)
            listener.listen(self.config.backlog)
            self._watch(listener)

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Accepts no more, and ends as uvicorn does."""
        loop = asyncio.get_running_loop()
        for listener in sockets or []:
            loop.remove_reader(listener)
        await super().shutdown(sockets=sockets)

    def _watch(self, listener: socket.socket) -> None:
        asyncio.get_running_loop().add_reader(listener, self._look, listener)

    def _look(self, listener: socket.socket) -> None:
        """A connection waits: takes it, or leaves it to others for a moment."""
        if self._shares.is_ahead(len(self.server_state.connections) + len(self._adopting)):
            self._look_away(listener, _LOOK_AWAY_S)
        else:
            self._take(listener)

    def _look_away(self, listener: socket.socket, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        loop.remove_reader(listener)
        loop.call_later(seconds, self._look_again, listener)

    def _look_again(self, listener: socket.socket) -> None:
        """Takes what nobody else has taken meanwhile."""
        if listener.fileno() >= 0:  # not closed
            self._watch(listener)
            self._take(listener)

    def _take(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except (BlockingIOError, InterruptedError, ConnectionAbortedError):
            return  # another worker was there first, or the client left
        except OSError as error:  # no more files, say
            log.error("no connection is accepted for %g s: %s", _OUT_OF_FILES_S, error)
            self._look_away(listener, _OUT_OF_FILES_S)
            return
        connection.setblocking(False)
        connection.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        loop = asyncio.get_running_loop()
        task: asyncio.Task[object] = loop.create_task(
            loop.connect_accepted_socket(self._protocol, connection, ssl=self.config.ssl)
        )
        self._adopting.add(task)
        task.add_done_callback(self._adopted)

    def _adopted(self, task: asyncio.Task[object]) -> None:
        self._adopting.discard(task)
        error = None if task.cancelled() else task.exception()
        if error is not None:
            log.debug("a connection ended before it began: %s", error)

    def _protocol(self) -> asyncio.Protocol:
        """As uvicorn makes it for each connection."""
        return self.config.http_protocol_class(  # type: ignore[call-arg]
            config=self.config, server_state=self.server_state, app_state=self.lifespan.state
        )


def spread_connections(path: Path, number: int, workers: int) -> None:
    """Has the uvicorn server that this process starts next be a `FairServer`, where it is not alone.

    BentoML makes the server itself, as `uvicorn.Server`, after it has asked for our app.

    Args:
        path: A file that all workers see.
        number: Which this is, from 1.
        workers: How many there are.
    """
    if workers == 1:
        return
    try:
        shares = Shares(path, number, workers)
    except OSError as error:
        log.warning("connections are not spread over the workers: %s", error)
        return
    uvicorn.Server = partial(FairServer, shares)  # type: ignore[misc, assignment]
