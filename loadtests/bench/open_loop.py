"""The open-loop client, a process of its own: `python -m loadtests.bench.open_loop FOLDER`.

It sends each request when it is due, whether or not earlier ones were answered, over as many connections as
that takes; latencies count from when a request was due, so that nothing is omitted while the server stalls
(Tene 2013, "How not to measure latency"). Reads `plan.npz` and the requests beside it, writes `events.npz`.
"""

from __future__ import annotations

import asyncio
import os
import sys
from collections import deque
from contextlib import suppress
from pathlib import Path
from time import monotonic
from typing import cast

import httptools
import numpy as np
import uvloop

from loadtests.bench.requests import Array

PLAN, EVENTS, ANSWERS = "plan.npz", "events.npz", "answers.bin"
_MOST_CONNECTIONS = 2048
_LEAD_S = 0.5
_PRIORITY = -10


class _Connection(asyncio.Protocol):
    """One kept connection with at most one request in flight."""

    def __init__(self, client: _Client) -> None:
        self._client = client
        self._parser = httptools.HttpResponseParser(self)
        self._header_length = -1
        self._body: list[bytes] = []
        self.number = -1
        self.transport: asyncio.Transport | None = None

    def send(self, number: int, payload: bytes) -> None:
        assert self.transport is not None
        self.number = number
        self._header_length, self._body = -1, []
        self.transport.write(payload)

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        self.transport = cast(asyncio.Transport, transport)  # uvloop's is one in all but name

    def data_received(self, data: bytes) -> None:
        self._parser.feed_data(data)

    def on_header(self, name: bytes, value: bytes) -> None:
        if name.lower() == b"inference-header-content-length":
            self._header_length = int(value)

    def on_body(self, body: bytes) -> None:
        self._body.append(body)

    def on_message_complete(self) -> None:
        number, self.number = self.number, -1
        status = self._parser.get_status_code()
        self._client.answered(number, status, b"".join(self._body), self._header_length)
        if self._parser.should_keep_alive():
            self._client.free(self)
        elif self.transport is not None:
            self.transport.close()

    def connection_lost(self, error: Exception | None) -> None:
        self.transport = None
        self._client.lost(self)


class _Client:
    """All connections, and what happened to each request."""

    def __init__(self, port: int, due_s: Array, which: Array, payloads: list[bytes]) -> None:
        self._port, self._due_s, self._which, self._payloads = port, due_s, which, payloads
        self.idle: list[_Connection] = []
        self._connections = 0
        self._waiting: deque[int] = deque()
        self._open = len(due_s)
        self._start = 0.0
        self._done = asyncio.Event()
        self.sent_s = np.full(len(due_s), np.nan)
        self.done_s = np.full(len(due_s), np.nan)
        self.status = np.zeros(len(due_s), np.int32)
        self.answers: list[tuple[int, int, bytes]] = []

    async def run(self, connections: int, patience_s: float) -> None:
        """Sends everything when it is due, then waits for what is still open."""
        await asyncio.gather(*(self._connect() for _ in range(connections)))
        self._start = monotonic() + _LEAD_S
        for number, due_s in enumerate(self._due_s.tolist()):
            wait_s = self._start + due_s - monotonic()
            if wait_s > 0:
                await asyncio.sleep(wait_s)
            self._dispatch(number)
        if self._open:
            try:
                await asyncio.wait_for(self._done.wait(), patience_s)
            except TimeoutError:
                print(f"{self._open} requests got no answer", file=sys.stderr)

    def answered(self, number: int, status: int, body: bytes, header_length: int) -> None:
        self.done_s[number] = monotonic() - self._start
        self.status[number] = status
        self.answers.append((number, header_length, body))
        self._closed()

    def free(self, connection: _Connection) -> None:
        if self._waiting:
            self._send(connection, self._waiting.popleft())
        else:
            self.idle.append(connection)

    def lost(self, connection: _Connection) -> None:
        self._connections -= 1
        if connection in self.idle:
            self.idle.remove(connection)
        if connection.number >= 0:
            self._closed()

    def _dispatch(self, number: int) -> None:
        if self.idle:
            self._send(self.idle.pop(), number)
            return
        self._waiting.append(number)
        if self._connections < _MOST_CONNECTIONS:
            asyncio.get_running_loop().create_task(self._connect())

    def _send(self, connection: _Connection, number: int) -> None:
        if connection.transport is None:
            self._dispatch(number)
            return
        self.sent_s[number] = monotonic() - self._start
        connection.send(number, self._payloads[self._which[number]])

    async def _connect(self) -> None:
        self._connections += 1
        loop = asyncio.get_running_loop()
        _, connection = await loop.create_connection(lambda: _Connection(self), "127.0.0.1", self._port)
        self.free(connection)

    def _closed(self) -> None:
        self._open -= 1
        if not self._open:
            self._done.set()


def main(folder: Path) -> None:
    """Runs the plan in a folder."""
    # Where it is allowed: the client shares the processors with what it overloads.
    with suppress(PermissionError):
        os.setpriority(os.PRIO_PROCESS, 0, _PRIORITY)
    with np.load(folder / PLAN, allow_pickle=False) as plan:
        ends, blob = plan["ends"], plan["blob"].tobytes()
        payloads = [
            blob[begin:end] for begin, end in zip([0, *ends[:-1].tolist()], ends.tolist(), strict=True)
        ]
        port, connections, patience_s = int(plan["port"]), int(plan["connections"]), float(plan["patience_s"])
        due_s, which = plan["due_s"], plan["which"]
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        done = runner.run(_run(port, due_s, which, payloads, connections, patience_s))
    bodies = sorted(done.answers)
    np.savez(
        folder / EVENTS,
        sent_s=done.sent_s,
        done_s=done.done_s,
        status=done.status,
        answered=np.asarray([number for number, _, _ in bodies], np.int64),
        header_length=np.asarray([length for _, length, _ in bodies], np.int64),
        ends=np.cumsum([len(body) for _, _, body in bodies], dtype=np.int64),
    )
    (folder / ANSWERS).write_bytes(b"".join(body for _, _, body in bodies))


async def _run(
    port: int, due_s: Array, which: Array, payloads: list[bytes], connections: int, patience_s: float
) -> _Client:
    client = _Client(port, due_s, which, payloads)
    await client.run(connections, patience_s)
    return client


if __name__ == "__main__":
    main(Path(sys.argv[1]))
