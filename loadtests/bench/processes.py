"""Servers as processes, each in a session of its own on a free port; those that never rest sleep by turns."""

from __future__ import annotations

import contextlib
import http.client
import os
import signal
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from loadtests.bench.requests import Request, Wire

_ROOT = Path(__file__).parents[2]
_START_S = 180.0
_STOP_S = 10.0
_POLL_S = 0.05
_TIMEOUT_S = 30.0
_LOG_SHOWN = 800
_REFUSED = range(400, 500)


class PeerError(Exception):
    """A server did not start, or does not answer what it should."""


@dataclass(frozen=True)
class Peer:
    """One server to measure.

    Attributes:
        name: In the tables.
        command: Starts it; `{port}` stands for the port.
        wires: How it is spoken to, by `json` and `binary`.
        variables: Of its environment, beside the caller's.
        lacks: Why there is no such wire, by its name.
        restless: Whether it takes the processor while nobody asks, and must be stopped then.
    """

    name: str
    command: tuple[str, ...]
    wires: Mapping[str, Wire]
    variables: Mapping[str, str]
    lacks: Mapping[str, str]
    restless: bool = False


@dataclass(frozen=True)
class Memory:
    """Resident bytes of a server: of all its processes, and of the largest, which is the one that serves."""

    all_bytes: int
    largest_bytes: int


class Server:
    """A peer that runs."""

    def __init__(self, peer: Peer, port: int, process: subprocess.Popen[bytes], ready_s: float) -> None:
        self.peer = peer
        self.port = port
        self.ready_s = ready_s
        self._process = process
        self._wakers = 0

    def sleep(self) -> None:
        """Stops a restless server's processes, so that they take nothing from the one that is measured.

        No other: some batchers take the time that they were stopped for time that their model needs.
        """
        if not self.peer.restless:
            return
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.suspend()

    def wake(self) -> None:
        """Lets them go on."""
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                process.resume()

    @contextmanager
    def awake(self) -> Iterator[None]:
        """Awake for a measurement, until the last of those that need it awake is done."""
        if not self._wakers:
            self.wake()
        self._wakers += 1
        try:
            yield
        finally:
            self._wakers -= 1
            if not self._wakers:
                self.sleep()

    def memory(self) -> Memory:
        """What it holds in memory now."""
        sizes = self._sizes().values()
        return Memory(sum(sizes), max(sizes, default=0))

    def serving_pid(self) -> int:
        """The process that serves: the largest."""
        sizes = self._sizes()
        return max(sizes, key=sizes.__getitem__, default=self._process.pid)

    def _sizes(self) -> dict[int, int]:
        """Resident bytes by process."""
        sizes = {}
        for process in self._processes():
            with contextlib.suppress(psutil.NoSuchProcess):
                sizes[process.pid] = process.memory_info().rss
        return sizes

    def _processes(self) -> list[psutil.Process]:
        try:
            parent = psutil.Process(self._process.pid)
            return [*parent.children(recursive=True), parent]
        except psutil.NoSuchProcess:
            return []


@contextmanager
def started(peer: Peer, probe: Request, log: Path) -> Iterator[Server]:
    """Runs a peer; gives it once it answers.

    Args:
        peer: What to run.
        probe: A request that it should answer.
        log: Gets its output.

    Raises:
        PeerError: It did not come up; the message ends with its log.
    """
    port = free_port()
    began = time.monotonic()
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in peer.command],
            cwd=_ROOT,
            env={**os.environ, **{key: value.format(port=port) for key, value in peer.variables.items()}},
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    server = Server(peer, port, process, 0.0)
    try:
        _wait(peer, process, port, probe, log)
        server.ready_s = time.monotonic() - began
        yield server
    finally:
        server.wake()
        _stop(process)


def ask(port: int, request: Request) -> tuple[int, bytes, Mapping[str, str]]:
    """Sends one request; gives status, body and headers, whose names are in lower case.

    Raises:
        OSError, http.client.HTTPException: No answer comes.
    """
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=_TIMEOUT_S)
    with contextlib.closing(connection):
        connection.request("POST", request.path, request.body, dict(request.headers))
        response = connection.getresponse()
        headers = {name.lower(): value for name, value in response.getheaders()}
        return response.status, response.read(), headers


def free_port() -> int:
    """A port that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _wait(peer: Peer, process: subprocess.Popen[bytes], port: int, probe: Request, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    said = "nothing"
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(OSError, http.client.HTTPException):
            status, body, _ = ask(port, probe)
            said = f"{status} {body[:_LOG_SHOWN].decode(errors='replace')}"
            if status == http.client.OK:
                return
            if status in _REFUSED and status != http.client.NOT_FOUND:  # routes may appear late
                break
        time.sleep(_POLL_S)
    written = log.read_text(errors="replace")[-_LOG_SHOWN:]
    raise PeerError(f"{peer.name} does not answer but says {said}; its log ends with: {written}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the peer and its workers: they are the process group that was started for it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)
