"""`mipgate compare`."""

from __future__ import annotations

import importlib.util
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import click
import httpx

from variants.assessment import assess_model, describe
from variants.catalog import SAMPLES_FILE, Catalog
from variants.cli.output import json_option, print_json, print_table
from variants.cli.remote import key_option
from variants.host import this_host
from variants.store import human_bytes

_FILES = ("report.html", "report.md", "report.png", "report.csv", "report.json")
_NEEDED = ("locust", "matplotlib", "jinja2")
_ATTENTION_S = 5.0
_USAGE = 2
_SHAPES = ("steady", "poisson", "step", "spike", "diurnal", "replay")
_SCENARIOS = ("SingleStream", "Server", "Offline")
_POSITIVE = click.FloatRange(min=0, min_open=True)


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
    metavar="N",
    help="Length of the load on each target.  [default: 5; of a replay: its own]",
)
@click.option(
    "--users",
    type=click.IntRange(min=1),
    default=8,
    show_default=True,
    metavar="N",
    help="Requests in flight at a time, without --shape.",
)
@click.option("--binary", is_flag=True, help="Send binary tensors instead of JSON.")
@click.option(
    "--target",
    "targets",
    multiple=True,
    metavar="TARGET",
    help="Only this, such as mix, tier:fast or variant:int8-static. Repeat for more.",
)
@click.option(
    "--samples",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Labelled rows.  [default: the published test split]",
)
@click.option("--shape", type=click.Choice(_SHAPES), help="Draw the times of all requests beforehand.")
@click.option("--rate", type=_POSITIVE, metavar="R", help="Base rate in requests/s.  [default: 100]")
@click.option(
    "--peak", type=click.FloatRange(min=1), metavar="X", help="Highest rate over the base rate.  [default: 4]"
)
@click.option("--seed", type=int, metavar="N", help="Of all that is drawn.  [default: 0]")
@click.option(
    "--trace",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="Record to replay: a CSV of timestamp,model,tier.",
)
@click.option("--speed", type=_POSITIVE, metavar="X", help="Replay X times faster than recorded.")
@click.option("--allow-degrade", is_flag=True, help="Let a loaded gateway answer below a tier's floor.")
@click.option("--slo", metavar="TERMS", help='Search the highest rate at which this holds: "p99<=20ms".')
@click.option("--most-rate", type=_POSITIVE, metavar="R", help="Highest rate to try.  [default: 5000]")
@click.option("--fail-on", metavar="TERMS", help='End with 1 when one is true: "p99>20ms,fast:errors>0.1%".')
@click.option(
    "--baseline",
    type=click.Path(exists=True, dir_okay=False, path_type=Path),
    metavar="FILE",
    help="The report.json of an earlier run to compare with.",
)
@click.option("--price", type=click.FloatRange(min=0), metavar="P", help="Of a processor hour.")
@click.option(
    "--loadgen",
    multiple=True,
    type=click.Choice(_SCENARIOS),
    help="Run MLPerf's LoadGen too. Repeat for more scenarios.",
)
@click.option(
    "--processes",
    type=click.IntRange(min=1),
    metavar="N",
    help="Load generators.  [default: half the processors, 2 to 16]",
)
@click.option(
    "--expect-workers",
    type=click.IntRange(min=1),
    metavar="N",
    help="Be a master: wait for N workers from elsewhere instead.",
)
@click.option("--worker", is_flag=True, help="Be a worker of a master elsewhere; needs no gateway option.")
@click.option("--master-host", metavar="HOST", help="Where the master is, or listens.  [default: 127.0.0.1]")
@click.option("--master-port", type=int, metavar="PORT", help="Its port.  [default: 5557]")
@key_option
@json_option
def command(
    model: str,
    url: str,
    out: Path | None,
    samples: Path | None,
    worker: bool,
    targets: tuple[str, ...],
    loadgen: tuple[str, ...],
    key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Load-test every tier and variant of MODEL on a running gateway.

    Sends the published test split to each, then random rows of it from Locust users, each of whom waits for
    its answer; with --shape at times drawn beforehand, whatever the answers do. Ends with status 1 when a
    tier is below its floor or requests failed; with --fail-on when one of its conditions is true instead.

    Example: mipgate compare digits --shape spike --rate 200 --fail-on "p99>20ms,errors>0.1%"
    """
    _check_installed()
    if not worker:
        _check_gateway(url)
    samples = samples or Catalog().card_file(model, SAMPLES_FILE)
    arguments = ["--samples", str(samples), *_passed_on(options)]
    if worker:
        sys.exit(_start([*arguments, "--worker"], key))
    out = out or Path(f"compare-{model}")
    host = this_host()
    document = describe(*assess_model(Catalog(), model, host), host)
    arguments += ["--url", url, "--model", model, "--out", str(out)]
    arguments += ["--targets", *targets] if targets else []
    arguments += ["--loadgen", *loadgen] if loadgen else []
    status = _run(arguments, document, out, key)
    if status == _USAGE:
        sys.exit(status)  # it said what was wrong
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


def _passed_on(options: dict[str, Any]) -> list[str]:
    """The options that the load generator reads, as it reads them."""
    arguments = []
    for name, value in options.items():
        flag = f"--{name.replace('_', '-')}"
        if value is True:
            arguments.append(flag)
        elif value is not None and value is not False:
            arguments += [flag, str(value)]
    return arguments


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


def _run(arguments: list[str], document: dict[str, Any], out: Path, key: str | None) -> int:
    """Runs the load generator in a process of its own: Locust patches the process that imports it."""
    (out / "report.json").unlink(missing_ok=True)  # what is there afterwards is of this run
    with tempfile.TemporaryDirectory(prefix="mipgate-compare-") as folder:
        path = Path(folder) / "document.json"
        path.write_text(json.dumps(document))
        return _start([*arguments, "--document", str(path)], key)


def _start(arguments: list[str], key: str | None) -> int:
    # Its progress goes to our standard error, line by line; the key is on no command line.
    command = [sys.executable, "-m", "loadtests.compare", *arguments]
    environment = os.environ | ({"MIPGATE_KEY": key} if key else {})
    return subprocess.run(command, env=environment, stdout=sys.stderr, check=False).returncode


def _print_report(report: dict[str, Any], out: Path) -> None:
    columns = [
        "target", "answered by", "requests/s>", "p50>", "p95>", "p99>", "failures>",
        "accuracy on test>", "live>", "size>", "floor>", "ratio>", "",
    ]  # fmt: skip
    settings = report["settings"]
    load = (
        f"{settings['shape']}, {settings['rate']:g}/s"
        if settings.get("shape")
        else f"{settings['users']} users"
    )
    title = f"{report['model']} at {report['url']}, {load}, {settings['seconds']:g} s each"
    print_table(columns, [_row(target) for target in report["targets"]], title)
    click.echo()
    for winner in report["winners"]:
        tied = f" (too near to call: {', '.join(winner['tied'])})" if winner["tied"] else ""
        click.echo(f"{winner['title']}: {winner['target']}{tied}")
    click.echo()
    for target in report["targets"]:
        if found := target["capacity"]:
            limit = "" if found["limit"] == "gateway" else f" or more (limited by: {found['limit']})"
            click.echo(
                f"{target['target']}: {report['slo']} holds up to {found['rate']:.0f} requests/s{limit}"
            )
    if report["baseline"]:
        click.echo(f"Since {report['baseline']['taken']}: {report['baseline']['text']}")
    for entry in report["loadgen"]:
        valid = "valid" if entry["valid"] else "not valid"
        click.echo(f"LoadGen {entry['scenario']}: {valid}; logs in {entry['logs']}")
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
