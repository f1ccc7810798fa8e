"""Dashboards: current, complete, and every query answered by a Prometheus that scraped a loaded gateway."""

import concurrent.futures
import contextlib
import itertools
import json
import threading
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import httpx
import numpy as np
import pytest
import yaml

from deploy.grafana.board import Panel
from deploy.grafana.boards import BOARDS
from deploy.grafana.generate import FOLDER, dashboard_json
from deploy.ops.prometheus import Prometheus, filled_in, running_prometheus
from tests.conftest import ROOT, Homes
from tests.debian import program
from tests.deploy.metric_names import names_read, series_names
from tests.deploy.recorded import MODEL, serving_recorded
from tests.gateway import Gateway, free_port, request, running

PANELS = [panel for board in BOARDS for panel in board.panels]
DOCUMENTS = [json.loads(path.read_text()) for path in sorted(FOLDER.glob("*.json"))]
DRAWN = [(document["title"], panel) for document in DOCUMENTS for panel in document["panels"]]


def test_the_committed_dashboards_are_current() -> None:
    committed = {path.name: path.read_text() for path in FOLDER.glob("*.json")}
    made = {f"{board.uid}.json": dashboard_json(board) for board in BOARDS}
    assert committed == made, "Run `python -m deploy.grafana.generate`."


@pytest.mark.parametrize("document", DOCUMENTS, ids=lambda document: document["uid"])
def test_dashboards_leave_source_and_model_to_the_reader(document: dict[str, Any]) -> None:
    variables = {variable["name"]: variable for variable in document["templating"]["list"]}
    assert variables.keys() == {"datasource", "model"}
    assert variables["model"]["includeAll"]
    sources = {panel["datasource"]["uid"] for panel in document["panels"]}
    assert sources == {"${datasource}"}


@pytest.mark.parametrize("panel", [panel for _, panel in DRAWN], ids=[f"{b}: {p['title']}" for b, p in DRAWN])
def test_every_panel_explains_itself(panel: dict[str, Any]) -> None:
    defaults = panel["fieldConfig"]["defaults"]
    assert panel["description"].endswith(".")
    assert defaults["unit"]
    assert defaults["thresholds"]["steps"][0]["value"] is None
    assert all(target["legendFormat"] and target["datasource"]["uid"] for target in panel["targets"])


@pytest.mark.parametrize("panel", PANELS, ids=lambda panel: panel.title)
def test_panels_read_what_exists(panel: Panel) -> None:
    rules = yaml.safe_load((ROOT / "deploy" / "prometheus" / "recording.yml").read_text())["groups"]
    recorded = {rule["record"] for group in rules for rule in group["rules"]}
    for query in panel.queries:
        assert names_read(query.expression) <= series_names() | recorded


def test_every_query_of_every_panel_returns_data(homes: Homes, tmp_path: Path) -> None:
    server = program("prometheus", "usr/bin/prometheus")
    with running(homes) as gateway, serving_recorded() as port, loaded(gateway):
        targets = [f"127.0.0.1:{gateway.port}", f"127.0.0.1:{port}"]
        with running_prometheus(server, free_port(), targets, tmp_path) as prometheus:
            wait_for_scrapes(prometheus, 5)
            empty = [
                f"{panel.title}: {query.expression}"
                for panel in PANELS
                for query in panel.queries
                if not prometheus.ask(
                    filled_in(query.expression, MODEL if panel.scripted else "digits", "10s")
                )
            ]
            assert not empty
            assert not prometheus.ask('ALERTS{alertstate="firing"}')


@contextlib.contextmanager
def loaded(gateway: Gateway) -> Iterator[None]:
    """A client that asks for every tier and pins a variant, until the test is done."""
    stop = threading.Event()
    asked = [{"tier": tier} for tier in ("accurate", "balanced", "fast")]

    def ask() -> None:
        with httpx.Client(base_url=gateway.url, timeout=30) as http:
            for wish in itertools.cycle(asked):
                if stop.wait(0.02):
                    return
                http.post("/v2/models/digits/infer", json=request(np.zeros(64, np.float32), **wish))

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        asking = pool.submit(ask)
        try:
            yield
        finally:
            stop.set()
            asking.result()


def wait_for_scrapes(prometheus: Prometheus, count: int) -> None:
    """Until every target was scraped so often."""
    end = time.monotonic() + 60
    while time.monotonic() < end:
        scraped = prometheus.ask("count_over_time(up[1m])")
        if len(scraped) == 2 and all(target.value >= count for target in scraped):
            return
        time.sleep(0.1)
    raise AssertionError(prometheus.targets())
