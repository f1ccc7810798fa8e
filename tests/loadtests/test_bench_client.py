"""The open-loop client as the process that it is, against a server that stalls."""

import asyncio
import contextlib
import subprocess
import sys
import threading
import time
from pathlib import Path

import numpy as np
import pytest

from loadtests.bench.open_loop import ANSWERS, EVENTS, PLAN
from loadtests.bench.servers import PEERS, chosen
from tests.conftest import ROOT

STALL_S = 0.3
TIMER_S = 0.002  # timers of the loop are exact to a millisecond
PINS = ROOT / "loadtests" / "bench" / "peers"


@pytest.fixture
def stalling():
    """The port of a server whose third answer blocks everything for a while."""
    ready, loop, servers, answered = threading.Event(), asyncio.new_event_loop(), [], []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        # It ends when the client closes the connection.
        with contextlib.closing(writer), contextlib.suppress(asyncio.IncompleteReadError):
            while head := await reader.readuntil(b"\r\n\r\n"):
                length = int(head.lower().split(b"content-length: ")[1].split(b"\r\n")[0])
                body = await reader.readexactly(length)
                answered.append(body)
                if len(answered) == 3:
                    time.sleep(STALL_S)
                status = b"503 Busy" if body == b"refuse" else b"200 OK"
                writer.write(b"HTTP/1.1 %s\r\nContent-Length: %d\r\n\r\n%s" % (status, length, body))

    async def run() -> None:
        servers.append(await asyncio.start_server(serve, "127.0.0.1", 0))
        ready.set()

    async def end() -> None:
        servers[0].close()
        tasks = asyncio.all_tasks() - {asyncio.current_task()}
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await asyncio.sleep(0)  # connections close one turn later

    thread = threading.Thread(target=lambda: (loop.create_task(run()), loop.run_forever()))
    thread.start()
    ready.wait()
    yield servers[0].sockets[0].getsockname()[1]
    loop.call_soon_threadsafe(loop.stop)
    thread.join()
    loop.run_until_complete(end())
    loop.close()


def http1(body: bytes) -> bytes:
    return b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s" % (len(body), body)


def test_latency_counts_from_when_a_request_was_due(stalling: int, tmp_path: Path) -> None:
    payloads = [http1(b"answer"), http1(b"refuse")]
    due_s = np.arange(20) * 0.01
    which = np.array([0] * 19 + [1])
    np.savez(
        tmp_path / PLAN,
        port=stalling,
        connections=1,
        patience_s=5.0,
        due_s=due_s,
        which=which,
        ends=np.cumsum([len(payload) for payload in payloads]),
        blob=np.frombuffer(b"".join(payloads), np.uint8),
    )
    command = [sys.executable, "-m", "loadtests.bench.open_loop", str(tmp_path)]
    subprocess.run(command, check=True, timeout=60, cwd=ROOT)
    with np.load(tmp_path / EVENTS) as events:
        status, sent_s, done_s = events["status"], events["sent_s"], events["done_s"]
        assert events["answered"].tolist() == list(range(20))
    assert status.tolist() == [200] * 19 + [503]
    assert (tmp_path / ANSWERS).read_bytes() == b"answer" * 19 + b"refuse"
    # A client that waits for answers would send one late request and time the others from when it sent them.
    stalled = (done_s - due_s) > STALL_S / 3
    assert stalled.sum() >= 10
    assert (sent_s >= due_s - TIMER_S).all()


def test_every_requirement_of_a_peer_is_pinned() -> None:
    files = sorted(PINS.glob("*.txt"))
    assert [file.stem for file in files] == ["bentoml", "litserve", "mlserver", "mosec", "triton", "uvicorn"]
    lines = [line for file in files for line in file.read_text().splitlines()]
    assert not [line for line in lines if "==" not in line]


def test_peers_are_chosen_by_short_names() -> None:
    assert chosen(None) == PEERS
    assert chosen(["triton", "mosec"]) == ("mosec", "triton, python backend")
    with pytest.raises(ValueError, match=r"no peer is called nobody\. There are bare uvicorn, "):
        chosen(["nobody"])
