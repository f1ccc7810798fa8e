"""Connections over the workers of a gateway."""

import asyncio
import contextlib
import os
import signal
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import httpx
import psutil
import pytest
import uvicorn

from service.workers.accepting import FairServer, Shares, spread_connections
from tests.conftest import Homes
from tests.gateway import Gateway, running

CONNECTIONS = 16
STARTS_WITHIN_S = 60.0


@pytest.fixture
def gateway(homes: Homes) -> Iterator[Gateway]:
    with running(homes, workers=2) as gateway:
        end = time.monotonic() + STARTS_WITHIN_S
        while min(spread(gateway)) == 0:  # until the second is there, too
            assert time.monotonic() < end, gateway.log.read_text()
        yield gateway


def spread(gateway: Gateway) -> list[int]:
    """How many of some connections that are made at once each worker takes."""
    with contextlib.ExitStack() as stack:
        connections = [connect(gateway, stack) for _ in range(CONNECTIONS)]
        assert all(ask(each).startswith(b"HTTP/1.1 200") for each in connections)
        return shares_of(gateway)


def shares_of(gateway: Gateway) -> list[int]:
    """Connections by worker, as the kernel tells."""
    return [
        sum(c.laddr.port == gateway.port and c.status == "ESTABLISHED" for c in worker.net_connections())
        for worker in gateway.workers()
    ]


def connect(gateway: Gateway, stack: contextlib.ExitStack) -> socket.socket:
    return stack.enter_context(socket.create_connection(("127.0.0.1", gateway.port), timeout=5))


def ask(connection: socket.socket) -> bytes:
    connection.sendall(b"GET /v2/health/live HTTP/1.1\r\nHost: localhost\r\n\r\n")
    return connection.recv(4096)


def test_connections_that_come_at_once_are_spread_evenly_and_all_answered(gateway: Gateway) -> None:
    for _ in range(3):
        shares = spread(gateway)
        assert sum(shares) == CONNECTIONS
        assert max(shares) <= CONNECTIONS / 2 + 2


def test_a_worker_that_hangs_keeps_nobody_waiting(gateway: Gateway) -> None:
    hanging = gateway.workers()[0].pid
    os.kill(hanging, signal.SIGSTOP)
    try:
        with contextlib.ExitStack() as stack:
            for _ in range(CONNECTIONS):  # more than half: the other has fewer all the time
                assert ask(connect(gateway, stack)).startswith(b"HTTP/1.1 200")
    finally:
        os.kill(hanging, signal.SIGCONT)


def test_one_that_died_counts_for_nothing_once_another_took_its_place(gateway: Gateway) -> None:
    with contextlib.ExitStack() as stack:
        for _ in range(CONNECTIONS):
            ask(connect(gateway, stack))
        dead = gateway.workers()[0]
        dead.kill()
        psutil.wait_procs([dead], 10)
        while len(gateway.workers()) < 2:
            assert httpx.get(f"{gateway.url}/v2/health/live", timeout=30).is_success
        for _ in range(CONNECTIONS):
            assert ask(connect(gateway, stack)).startswith(b"HTTP/1.1 200")


def test_who_is_ahead_of_another(tmp_path: Path) -> None:
    first, second, third = (Shares(tmp_path / "shares", number, 3) for number in (1, 2, 3))
    assert not first.is_ahead(0)
    assert first.is_ahead(1)
    second.tell(1)
    assert first.is_ahead(1)
    third.tell(4)
    assert not first.is_ahead(1)
    assert second.is_ahead(1)
    Shares(tmp_path / "shares", 3, 3)  # started anew
    first.tell(2)
    assert second.is_ahead(1)


def test_a_worker_that_is_alone_or_cannot_share_has_uvicorns_own_server(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(uvicorn, "Server", uvicorn.Server)  # and puts it back
    own = uvicorn.Server
    spread_connections(tmp_path / "shares", 1, 1)
    assert uvicorn.Server is own
    (tmp_path / "file").touch()
    spread_connections(tmp_path / "file" / "shares", 1, 2)
    assert uvicorn.Server is own
    assert "not spread" in caplog.text
    spread_connections(tmp_path / "shares", 1, 2)
    made = uvicorn.Server(uvicorn.Config(app="nothing"))
    assert isinstance(made, FairServer)


def test_a_worker_without_files_left_says_so_and_tries_again(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr("service.workers.accepting._OUT_OF_FILES_S", 0.01)
    failures = iter([OSError(24, "Too many open files"), BlockingIOError()])
    tried: list[None] = []

    class Listener(socket.socket):
        def accept(self) -> tuple[socket.socket, object]:
            tried.append(None)
            raise next(failures, BlockingIOError())

    async def main() -> None:
        server = FairServer(Shares(tmp_path / "shares", 1, 2), uvicorn.Config(app="nothing"))
        server.lifespan = SimpleNamespace(state={})  # type: ignore[assignment]
        with Listener() as listener:
            listener.bind(("127.0.0.1", 0))
            listener.setblocking(False)
            listener.listen()
            server._watch(listener)
            with socket.create_connection(listener.getsockname()):
                while len(tried) < 3:
                    await asyncio.sleep(0.01)
            asyncio.get_running_loop().remove_reader(listener)

    asyncio.run(asyncio.wait_for(main(), 10))
    assert "Too many open files" in caplog.text
