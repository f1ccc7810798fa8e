"""A gateway on this machine, as a child process, for what shows or tries operations."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

import httpx

BIN = Path(sys.executable).parent
_READY_WITHIN_S = 300.0


class GatewayError(Exception):
    """The gateway did not get ready."""


def free_port() -> int:
    """A port of this machine that nobody listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


@contextmanager
def running_gateway(
    port: int, log: Path, settings: Mapping[str, str] | None = None
) -> Iterator[subprocess.Popen[bytes]]:
    """Starts `mipgate serve`, waits until it is ready, and stops it at the end.

    Args:
        port: Where it listens, on this machine alone.
        log: The file for its log.
        settings: Environment variables beside those of this process.

    Raises:
        GatewayError: It ended, or did not get ready; the message has the end of its log.
    """
    command = [str(BIN / "mipgate"), "serve", "--host", "127.0.0.1", "--port", str(port), "--no-examples"]
    environment = {**os.environ, **(settings or {})}
    with (
        log.open("wb") as output,
        subprocess.Popen(command, stdout=output, stderr=output, env=environment) as server,
    ):
        try:
            _wait_until_ready(server, f"http://127.0.0.1:{port}/v2/health/ready", log)
            yield server
        finally:
            server.terminate()


def _wait_until_ready(server: subprocess.Popen[bytes], url: str, log: Path) -> None:
    end = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(url, timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.2)
    raise GatewayError(f"the gateway is not ready. Its log: {log.read_text()[-2000:]}")
