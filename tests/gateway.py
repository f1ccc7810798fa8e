"""A real gateway as a subprocess, for tests that speak HTTP to it."""

import contextlib
import os
import signal
import socket
import ssl
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
import numpy as np
import psutil

from tests.conftest import ROOT, Homes

READY_WITHIN_S = 120.0
SERVICE = "service.gateway:Gateway"


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


class Gateway:
    """One `bentoml serve`; over TLS with the `cert.pem` and `key.pem` of a folder."""

    def __init__(
        self,
        homes: Homes,
        *,
        workers: int = 1,
        service: str = SERVICE,
        folder: Path = ROOT,
        tls: Path | None = None,
        **settings: str,
    ) -> None:
        self.port = free_port()
        self.url = f"http{'s' if tls else ''}://127.0.0.1:{self.port}"
        self.trusts: ssl.SSLContext | bool = True
        self.log = homes.mipgate / f"gateway-{self.port}.log"
        command = [sys.executable, "-m", "bentoml", "serve", service, "--port", str(self.port)]
        if tls is not None:
            self.trusts = ssl.create_default_context(cafile=tls / "cert.pem")
            command += ["--ssl-certfile", str(tls / "cert.pem"), "--ssl-keyfile", str(tls / "key.pem")]
        environment = (
            homes.environment | {"MIPGATE_WORKERS": str(workers), "MIPGATE_CONTAINER": "no"} | settings
        )
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(
                [*command, "--host", "127.0.0.1"], env=environment, cwd=folder, stdout=log, stderr=log
            )

    def wait_until_ready(self) -> None:
        end = time.monotonic() + READY_WITHIN_S
        while time.monotonic() < end:
            assert self.process.poll() is None, self.log.read_text()
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(f"{self.url}/v2/health/ready", timeout=5, verify=self.trusts).is_success:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log.read_text())

    def workers(self) -> list[psutil.Process]:
        children = psutil.Process(self.process.pid).children(recursive=True)
        return [child for child in children if _is_worker(child)]

    def stop(self) -> None:
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGTERM)
            try:
                self.process.wait(30)
            except subprocess.TimeoutExpired:
                for process in psutil.Process(self.process.pid).children(recursive=True):
                    os.kill(process.pid, signal.SIGKILL)
                self.process.kill()
                self.process.wait()

    def infer(
        self, row: np.ndarray, version: str | None = None, **parameters: str | float | bool
    ) -> httpx.Response:
        path = "digits" if version is None else f"digits/versions/{version}"
        url = f"{self.url}/v2/models/{path}/infer"
        return httpx.post(url, json=request(row, **parameters), timeout=30, verify=self.trusts)


def _is_worker(process: psutil.Process) -> bool:
    try:
        return "_bentoml_impl.worker.service" in " ".join(process.cmdline())
    except psutil.Error:
        return False  # it died meanwhile


@contextlib.contextmanager
def running(homes: Homes, **options: object) -> Iterator[Gateway]:
    gateway = Gateway(homes, **options)  # type: ignore[arg-type]
    try:
        gateway.wait_until_ready()
        yield gateway
    finally:
        gateway.stop()


def request(rows: np.ndarray, **parameters: str | float | bool) -> dict[str, object]:
    """A v2 JSON request for digits."""
    rows = np.atleast_2d(rows)
    tensor = {"name": "image", "datatype": "FP32", "shape": list(rows.shape), "data": rows.ravel().tolist()}
    return {"inputs": [tensor], "parameters": parameters}


def digit(response: httpx.Response) -> int:
    """The answer's class."""
    assert response.status_code == 200, response.text
    return int(np.argmax(response.json()["outputs"][0]["data"]))
