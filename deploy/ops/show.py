"""`make ops`: a gateway, Prometheus and a little load on this machine, and what every panel then says.

    python -m deploy.ops.show --prometheus /usr/bin/prometheus

No containers. Everything that it starts it stops again.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
from pathlib import Path

from rich.console import Console
from rich.table import Table

from deploy.grafana.board import Panel, Query
from deploy.grafana.boards import BOARDS
from deploy.ops.local import BIN, GatewayError, free_port, running_gateway
from deploy.ops.prometheus import Prometheus, Value, filled_in, running_prometheus
from variants.catalog import SAMPLES_FILE, Catalog
from variants.store import CatalogError

_MOST_SERIES = 4
_NARROWEST = 120
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
        port = free_port()
        target = f"127.0.0.1:{port}"
        try:
            with (
                running_gateway(port, Path(folder) / "gateway.log", _apart(folder)),
                running_prometheus(given.prometheus, free_port(), [target], Path(folder)) as prometheus,
            ):
                _load(f"http://{target}", given.model, given.seconds)
                _print_boards(prometheus, given.model, f"{given.seconds}s")
        except (GatewayError, CatalogError) as error:
            sys.exit(str(error))


def _apart(folder: str) -> dict[str, str]:
    """Settings of a gateway that needs no key, whatever the keys and rollouts of this machine's own."""
    return {
        "MIPGATE_STATE": f"sqlite:///{folder}/state.db",
        "MIPGATE_ADMIN_KEY": "",
        "MIPGATE_REQUIRE_KEYS": "auto",
    }


def _load(url: str, model: str, seconds: int) -> None:
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
    command += ["--samples", str(Catalog().card_file(model, SAMPLES_FILE))]  # invented rows would be drift
    command += ["--users", "8", "--spawn-rate", "8", "--run-time", f"{seconds}s", "--only-summary"]
    done = subprocess.run(command, capture_output=True, text=True)
    if "Aggregated" not in done.stderr + done.stdout:
        sys.exit(f"Locust sent nothing. It said: {done.stderr[-2000:]}")


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
