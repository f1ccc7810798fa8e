"""`make ops`: a gateway, Prometheus and a little load on this machine, and what every panel then says.

    python -m deploy.ops.show --prometheus /usr/bin/prometheus

No containers. Under the load a canary runs from the reference to another variant, and some answers get their
label, so that the boards have something to say of both. Everything that it starts it stops again.
"""

from __future__ import annotations

import argparse
import itertools
import os
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from deploy.grafana.board import Panel, Query
from deploy.grafana.boards import BOARDS
from deploy.ops.local import BIN, GatewayError, free_port, running_gateway
from deploy.ops.prometheus import Prometheus, Value, filled_in, running_prometheus
from loadtests.authorization import authorization
from loadtests.samples import Samples, SamplesError, read_samples
from variants.catalog import SAMPLES_FILE, Catalog
from variants.store import CatalogError
from variants.variant import Life

_MOST_SERIES = 4
_NARROWEST = 120
_CANDIDATE = "int8-static"
_TIER = "balanced"
_PAUSE_S = 0.02
_SCALES = {
    "s": (1e3, " ms"),
    "percentunit": (100, " %"),
    "bytes": (1e-3, " kB"),
    "reqps": (1, "/s"),
    "rowsps": (1, "/s"),
}


def main() -> None:
    """Starts, loads, prints, stops."""
    parser = argparse.ArgumentParser(description="Print what every panel of the dashboards says under load.")
    parser.add_argument("--prometheus", type=Path, required=True, help="the program `prometheus`")
    parser.add_argument("--model", default="digits", help="a registered model (default: digits)")
    parser.add_argument("--seconds", type=int, default=20, help="how long the load lasts (default: 20)")
    given = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="mipgate-ops-") as folder:
        port, key = free_port(), secrets.token_hex(32)
        os.environ["MIPGATE_KEY"] = key  # of those that ask
        target = f"127.0.0.1:{port}"
        try:
            with (
                running_gateway(port, Path(folder) / "gateway.log", _apart(folder, key)),
                running_prometheus(given.prometheus, free_port(), [target], Path(folder)) as prometheus,
            ):
                _run(f"http://{target}", given.model, given.seconds)
                _print_boards(prometheus, given.model, f"{given.seconds}s")
        except (GatewayError, CatalogError, SamplesError) as error:
            sys.exit(str(error))


def _apart(folder: str, key: str) -> dict[str, str]:
    """Settings of a gateway with a key of its own, whatever the keys and rollouts of this machine's own."""
    return {
        "MIPGATE_STATE": f"sqlite:///{folder}/state.db",
        "MIPGATE_ADMIN_KEY": key,
        "MIPGATE_REQUIRE_KEYS": "auto",
    }


def _run(url: str, model: str, seconds: int) -> None:
    """Load, and what an operator and the users of answers do meanwhile."""
    path = Catalog().card_file(model, SAMPLES_FILE)
    with _load(url, model, seconds, path):
        _start_canary(url, model)
        _tell_labels(url, model, read_samples(path), seconds / 2)


@contextmanager
def _load(url: str, model: str, seconds: int, samples: Path) -> Iterator[None]:
    """Sends requests of all tiers meanwhile, and waits until all are sent."""
    command = [
        str(BIN / "locust"),
        "-f",
        "loadtests/locustfile.py",
        "--headless",
        "--host",
        url,
        "--model",
        model,
    ]
    command += ["--samples", str(samples)]  # invented rows would be drift
    command += ["--users", "8", "--spawn-rate", "8", "--run-time", f"{seconds}s", "--only-summary"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True) as sending:
        try:
            yield
            said, _ = sending.communicate()
        finally:
            sending.terminate()
    if "Aggregated" not in said:
        raise GatewayError(f"Locust sent nothing. It said: {said[-2000:]}")


def _start_canary(url: str, model: str) -> None:
    """From the reference to another released variant; where there is none, nothing."""
    card = Catalog().card(model)
    reference = card.spec.reference
    released = [entry.id.recipe for entry in card.entries if entry.life is Life.RELEASED]
    others = sorted(set(released) - {reference}, key=lambda recipe: recipe != _CANDIDATE)
    if not others:
        return
    command = [str(BIN / "mipgate"), "rollout", "start", model, "--url", url, "--kind", "canary"]
    command += ["--primary", reference, "--candidate", others[0], "--steps", "25,50", "--step-duration", "1m"]
    command += ["--fraction", "0.2", "--guard", "agreement>=0.9@95%,n=100", "--guard", "errors<=1%"]
    done = subprocess.run(command, capture_output=True, text=True)
    if done.returncode:
        raise GatewayError(f"no rollout starts: {done.stderr.strip()[-800:]}")


def _tell_labels(url: str, model: str, samples: Samples, seconds: float) -> None:
    """Asks with labelled rows, and tells the labels; where there are no classes, nothing."""
    if samples.labels is None:
        return
    end = time.monotonic() + seconds
    with httpx.Client(base_url=url, headers=authorization(), timeout=10) as client:
        for row in itertools.cycle(range(samples.rows)):
            if time.monotonic() > end:
                return
            body = samples.body(row, {"tier": _TIER})
            answer = client.post(f"/v2/models/{model}/infer", content=body.payload, headers=body.headers)
            told = {"request_id": answer.headers.get("x-mipgate-request-id", ""), "label": body.label}
            if answer.is_success and "x-mipgate-arm" in answer.headers:
                client.post("/v1/feedback", json=told).raise_for_status()
            time.sleep(_PAUSE_S)


def _print_boards(prometheus: Prometheus, model: str, span: str) -> None:
    console = Console()
    console.width = max(console.width, _NARROWEST)
    for board in BOARDS:
        table = Table("panel", "now", title=board.title, title_justify="left")
        for panel in board.panels:
            found = [
                (query, value)
                for query in panel.queries
                for value in prometheus.ask(filled_in(query.expression, model, span))
            ]
            table.add_row(panel.title, _told(panel, found))
        console.print(table)
    console.print(f"A scrape took {_told_of_scrapes(prometheus, span)}.")


def _told_of_scrapes(prometheus: Prometheus, span: str) -> str:
    mean, most, samples = (
        prometheus.ask(f'{function}({metric}{{job="mipgate"}}[{span}])')[0].value
        for function, metric in (
            ("avg_over_time", "scrape_duration_seconds"),
            ("max_over_time", "scrape_duration_seconds"),
            ("max_over_time", "scrape_samples_scraped"),
        )
    )
    return f"{mean * 1e3:.0f} ms in the mean and {most * 1e3:.0f} ms at most, for {samples:.0f} series"


def _told(panel: Panel, found: list[tuple[Query, Value]]) -> str:
    if not found:
        return "-  (no rollout, feedback, build or drift yet)" if panel.scripted else "no data"
    shown = [
        f"{_name(query, value)} {_number(panel, query, value.value)}" for query, value in found[:_MOST_SERIES]
    ]
    more = len(found) - len(shown)
    return ", ".join(shown) + (f" and {more} more" if more else "")


def _name(query: Query, value: Value) -> str:
    """A legend with its labels filled in; rows of tables carry a name of their own."""
    legend = query.legend
    for label, text in value.labels.items():
        legend = legend.replace("{{" + label + "}}", text)
    return f"{value.labels['name']} {legend}" if "name" in value.labels else legend


def _number(panel: Panel, query: Query, value: float) -> str:
    factor, unit = _SCALES.get(panel.unit_of(query), (1, ""))
    return f"{value * factor:.4g}{unit}"


if __name__ == "__main__":
    main()
