"""`mipgate compare`."""

from __future__ import annotations

import importlib.util
import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import httpx

from variants.assessment import assess_model, describe
from variants.catalog import SAMPLES_FILE, Catalog
from variants.cli.output import human_bytes, json_option, print_json, print_table
from variants.host import this_host

_FILES = ("report.md", "report.png", "report.json")
_NEEDED = ("locust", "matplotlib")
_ATTENTION_S = 5.0


@click.command(name="compare")
@click.argument("model")
@click.option(
    "--url", envvar="MIPGATE_URL", default="http://127.0.0.1:3000", show_default=True, help="The gateway."
)
@click.option(
    "--out",
    type=click.Path(file_okay=False, path_type=Path),
    metavar="DIR",
    help="Folder of the report.  [default: compare-MODEL]",
)
@click.option(
    "--seconds",
    type=click.FloatRange(min=0, min_open=True),
    default=5.0,
    show_default=True,
    metavar="N",
    help="Length of the load on each target.",
)
@click.option(
    "--users",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests in flight at a time.",
)
@json_option
def command(model: str, url: str, out: Path | None, seconds: float, users: int, as_json: bool) -> None:
    """Load-test every tier and variant of MODEL on a running gateway.

    Sends the published test split to each, then random rows of it from Locust users, each of whom waits for
    its answer. Ends with status 1 when a tier is below its floor, or when requests failed.

    Example: mipgate compare digits --out report --seconds 10
    """
    _check_installed()
    _check_gateway(url)
    out = out or Path(f"compare-{model}")
    catalog, host = Catalog(), this_host()
    document = describe(*assess_model(catalog, model, host), host)
    samples = catalog.card_file(model, SAMPLES_FILE)
    arguments = ["--url", url, "--model", model, "--samples", str(samples)]
    arguments += ["--seconds", str(seconds), "--users", str(users), "--out", str(out)]
    status = _run(arguments, document, out)
    try:
        report = json.loads((out / "report.json").read_text())
    except FileNotFoundError as error:
        raise click.ClickException(
            f"the load test ended with status {status} and wrote no report. Read what it printed above."
        ) from error
    if as_json:
        print_json(report)
    else:
        _print_report(report, out)
    if status:
        raise click.ClickException(" ".join(report["verdict"]["reasons"]) or f"status {status}.")


def _check_installed() -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise click.ClickException(f"{missing[0]} is not installed. Run `pip install 'mipgate[loadtest]'`.")


def _check_gateway(url: str) -> None:
    remedy = "start one with `mipgate serve`, or give its address with --url or MIPGATE_URL."
    try:
        response = httpx.get(f"{url.rstrip('/')}/v2/health/live", timeout=_ATTENTION_S)
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        raise click.ClickException(f"no gateway answers at {url}; {remedy}") from error
    if response.status_code != httpx.codes.OK:
        raise click.ClickException(
            f"what answers at {url} is no gateway (status {response.status_code}); {remedy}"
        )


def _run(arguments: list[str], document: dict[str, Any], out: Path) -> int:
    """Runs the load generator in a process of its own: Locust patches the process that imports it."""
    (out / "report.json").unlink(missing_ok=True)  # what is there afterwards is of this run
    with tempfile.TemporaryDirectory(prefix="mipgate-compare-") as folder:
        path = Path(folder) / "document.json"
        path.write_text(json.dumps(document))
        # Its progress goes to our standard error, line by line.
        command = [sys.executable, "-m", "loadtests.compare", *arguments, "--document", str(path)]
        return subprocess.run(command, stdout=sys.stderr, check=False).returncode


def _print_report(report: dict[str, Any], out: Path) -> None:
    columns = [
        "target", "answered by", "requests/s>", "p50>", "p95>", "p99>", "failures>",
        "accuracy on test>", "live>", "size>", "floor>", "ratio>", "",
    ]  # fmt: skip
    settings = report["settings"]
    title = f"{report['model']} at {report['url']}, {settings['users']} users, {settings['seconds']:g} s each"
    print_table(columns, [_row(target) for target in report["targets"]], title)
    click.echo()
    for winner in report["winners"]:
        tied = f" (too near to call: {', '.join(winner['tied'])})" if winner["tied"] else ""
        click.echo(f"{winner['title']}: {winner['target']}{tied}")
    click.echo()
    for warning in report["warnings"]:
        click.echo(f"Warning: {warning}")
    click.echo(report["pacing"])
    click.echo("Written: " + ", ".join(str(out / name) for name in _FILES))


def _row(target: dict[str, Any]) -> list[str]:
    latency, tier = target["latency_ms"], target["tier"]
    times = [f"{latency[key]:.2f} ms" if latency else "-" for key in ("p50", "p95", "p99")]
    shares = ", ".join(f"{name} {share:.0%}" for name, share in target["answered_by"].items())
    accuracy = _share(target["accuracy"])
    if target["accuracy"] is not None:
        accuracy += f" ({target['accuracy_rows']} rows)"
    return [
        target["target"],
        shares or "nobody",
        f"{target['requests_per_s']:.0f}",
        *times,
        str(target["failures"]),
        accuracy,
        _share(target["live_accuracy"]),
        "-" if target["artifact_bytes"] is None else human_bytes(target["artifact_bytes"]),
        f"{tier['floor']:g}" if tier else "-",
        _share(tier["quality_ratio"]) if tier else "-",
        tier["verdict"] if tier else "",
    ]


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.4f}"
