"""A Prometheus of one's own: started on the rules of this folder, asked for what panels show, and stopped."""

from __future__ import annotations

import math
import re
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import yaml

RULES = Path(__file__).resolve().parents[1] / "prometheus"
_READY_WITHIN_S = 30.0
_TARGETS = "targets.yml"
_DURATION = re.compile(r"(\[|\boffset |\bfor: )(\d+)([smhd])\b")
_SECONDS = {"s": 1, "m": 60, "h": 3600, "d": 86400}


@dataclass(frozen=True)
class Value:
    """One series of an answer: its labels and its newest value."""

    labels: Mapping[str, str]
    value: float


@dataclass(frozen=True)
class Prometheus:
    """A running server."""

    url: str

    def ask(self, expression: str) -> list[Value]:
        """What an instant query answers; values that are no number are left out.

        Raises:
            ValueError: Prometheus refuses the query; the message says why.
        """
        answer = httpx.get(f"{self.url}/api/v1/query", params={"query": expression}, timeout=30).json()
        if answer["status"] != "success":
            raise ValueError(f"{expression}: {answer['error']}")
        series = [Value(each["metric"], float(each["value"][1])) for each in answer["data"]["result"]]
        return [each for each in series if not math.isnan(each.value)]

    def alerts(self) -> dict[str, str]:
        """What fires now: what the alert says, by its name; of several of a name, one."""
        answer = httpx.get(f"{self.url}/api/v1/alerts", timeout=30).json()
        firing = (each for each in answer["data"]["alerts"] if each["state"] == "firing")
        return {each["labels"]["alertname"]: each["annotations"]["summary"] for each in firing}

    def targets(self) -> list[dict[str, Any]]:
        """What it scrapes, and how that went."""
        answer: dict[str, Any] = httpx.get(f"{self.url}/api/v1/targets", timeout=30).json()
        found: list[dict[str, Any]] = answer["data"]["activeTargets"]
        return found


@contextmanager
def running_prometheus(
    program: Path, port: int, targets: Sequence[str], folder: Path, every_s: int = 1, faster: int = 1
) -> Iterator[Prometheus]:
    """Starts Prometheus on `deploy/prometheus`, but for how often it scrapes and whom.

    Args:
        program: Path of `prometheus`.
        port: Where it listens, on this machine alone.
        targets: `host:port` of the gateways.
        folder: An empty one, for its configuration and data.
        every_s: Seconds between scrapes, and between evaluations of rules.
        faster: How many times shorter than written the rules' ranges, offsets and delays are to be.

    Raises:
        RuntimeError: It ended, or did not get ready.
    """
    with (folder / "prometheus.log").open("wb") as log:
        command = [str(program), f"--config.file={_configured(folder, targets, every_s, faster)}"]
        command += [f"--storage.tsdb.path={folder / 'data'}", f"--web.listen-address=127.0.0.1:{port}"]
        server = subprocess.Popen(command, stdout=log, stderr=log)
        try:
            prometheus = Prometheus(f"http://127.0.0.1:{port}")
            _wait_until_ready(prometheus, server, folder / "prometheus.log")
            yield prometheus
        finally:
            server.terminate()
            server.wait(30)


def _configured(folder: Path, targets: Sequence[str], every_s: int, faster: int) -> Path:
    configuration = yaml.safe_load((RULES / "prometheus.yml").read_text())
    configuration["global"] = {"scrape_interval": f"{every_s}s", "evaluation_interval": f"{every_s}s"}
    for name in configuration["rule_files"]:
        (folder / name).write_text(hurried((RULES / name).read_text(), faster))
    (folder / _TARGETS).write_text(yaml.safe_dump([{"targets": list(targets)}]))
    written = folder / "prometheus.yml"
    written.write_text(yaml.safe_dump(configuration))
    return written


def hurried(rules: str, faster: int) -> str:
    """Rules whose ranges, offsets and delays are that many times shorter: a minute stands for many."""

    def shorter(match: re.Match[str]) -> str:
        return f"{match[1]}{int(match[2]) * _SECONDS[match[3]] * 1000 // faster}ms"

    return _DURATION.sub(shorter, rules)


def _wait_until_ready(prometheus: Prometheus, server: subprocess.Popen[bytes], log: Path) -> None:
    end = time.monotonic() + _READY_WITHIN_S
    while time.monotonic() < end and server.poll() is None:
        try:
            if httpx.get(f"{prometheus.url}/-/ready", timeout=5).is_success:
                return
        except httpx.TransportError:
            pass  # it does not listen yet
        time.sleep(0.1)
    raise RuntimeError(f"Prometheus is not ready on {prometheus.url}. Its log: {log.read_text()[-1000:]}")


def filled_in(expression: str, model: str, span: str) -> str:
    """A panel's query as Grafana would send it, for one model or a pattern, over a span such as `30s`."""
    variables = {"$model": model, "$__rate_interval": span, "$__range": span}
    for name, value in variables.items():
        expression = expression.replace(name, value)
    return expression
