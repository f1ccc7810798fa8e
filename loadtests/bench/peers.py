"""The servers side by side: each in a process and a home of its own, on a free port."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from loadtests.bench.arithmetic import ECHO, GATEWAY, PLAIN

_ROOT = Path(__file__).parents[2]
_START_S = 120.0
_STOP_S = 10.0
_POLL_S = 0.1
_LOG_SHOWN = 600


class PeerError(Exception):
    """A server did not start, or does not answer what it should."""


@dataclass(frozen=True)
class Peer:
    """One server to measure.

    Attributes:
        name: In the table.
        command: Starts it; `{port}` stands for the port.
        path: Path that is measured.
        body: What is sent there.
        choice: The class that an answer names, or None of a peer that runs no model.
        environment: Beside the caller's.
    """

    name: str
    command: tuple[str, ...]
    path: str
    body: bytes
    choice: Callable[[Any], int | None]
    environment: Mapping[str, str] = field(default_factory=dict)


def peers(onnx: Path, threads: int, row: list[float], folder: Path) -> list[Peer]:
    """The three peers.

    Args:
        onnx: The file that the gateway's `fp32` serves.
        threads: Threads of one call there.
        row: The input of every request.
        folder: For the homes of the servers; the gateway's has the caller's models.
    """
    tensor = {"name": "image", "shape": [1, len(row)], "datatype": "FP32", "data": row}
    body = json.dumps({"inputs": [tensor]}).encode()
    bentoml = (str(Path(sys.executable).with_name("bentoml")), "serve")
    address = ("--host", "127.0.0.1", "--port", "{port}")
    return [
        Peer(
            GATEWAY,
            (*bentoml, "service.gateway:Gateway", *address),
            "/v2/models/digits/versions/fp32/infer",
            body,
            lambda answer: _argmax(answer["outputs"][0]["data"]),
            {"BENTOML_HOME": str(_home_with_models(folder / "gateway")), "MIPGATE_WORKERS": "1"},
        ),
        Peer(
            PLAIN,
            (*bentoml, "loadtests.bench.plain_bentoml:Plain", *address),
            "/predict",
            json.dumps({"rows": [row]}).encode(),
            lambda answer: _argmax(answer[0]),
            {"BENTOML_HOME": str(folder / "plain"), "BENCH_ONNX": str(onnx), "BENCH_THREADS": str(threads)},
        ),
        Peer(
            ECHO,
            (sys.executable, "-m", "uvicorn", "loadtests.bench.echo:app", *address, "--no-access-log"),
            "/",
            body,
            lambda answer: None,
        ),
    ]


@contextmanager
def started(peer: Peer, log: Path) -> Iterator[str]:
    """Runs a peer; gives the URL to measure once it answers.

    Raises:
        PeerError: It did not come up; the message ends with its log.
    """
    port = _free_port()
    url = f"http://127.0.0.1:{port}{peer.path}"
    environment = {**os.environ, "BENTOML_DO_NOT_TRACK": "1", **peer.environment}
    with log.open("wb") as output:
        process = subprocess.Popen(
            [part.format(port=port) for part in peer.command],
            cwd=_ROOT,
            env=environment,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
    try:
        _wait(peer, process, url, log)
        yield url
    finally:
        _stop(process)


def ask(peer: Peer, url: str) -> Any:
    """One answer of a peer.

    Raises:
        OSError, ValueError: It does not answer, or not in JSON.
    """
    request = urllib.request.Request(url, peer.body, {"Content-Type": "application/json"})
    with urllib.request.urlopen(request, timeout=10) as response:
        return json.load(response)


def _wait(peer: Peer, process: subprocess.Popen[bytes], url: str, log: Path) -> None:
    deadline = time.monotonic() + _START_S
    while time.monotonic() < deadline and process.poll() is None:
        try:
            ask(peer, url)
        except urllib.error.HTTPError as error:
            if error.code < 500:
                said = error.read(_LOG_SHOWN).decode(errors="replace")
                raise PeerError(f"{peer.name} refuses the request with {error.code}: {said}") from error
        except (OSError, ValueError):
            pass
        else:
            return
        time.sleep(_POLL_S)
    raise PeerError(f"{peer.name} does not answer: {log.read_text(errors='replace')[-_LOG_SHOWN:]}")


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the peer and its workers: they are the process group that was started for it."""
    for sign in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(process.pid, sign)
        with suppress(subprocess.TimeoutExpired):
            process.wait(_STOP_S)


def _home_with_models(folder: Path) -> Path:
    """A BentoML home of its own, for a server may run in the caller's, with the caller's models."""
    caller = Path(os.environ.get("BENTOML_HOME") or Path.home() / "bentoml")
    folder.mkdir(parents=True)
    (folder / "models").symlink_to(caller.resolve() / "models")
    return folder


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def _argmax(values: list[float]) -> int:
    return values.index(max(values))
