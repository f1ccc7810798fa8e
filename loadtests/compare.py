"""`python -m loadtests.compare`: Locust, headless, against every tier and variant of a gateway in turn.

Closed loop: a number of users, each of whom waits for its answer. Open loop (`--shape`): the times of all
requests are drawn beforehand. Writes `report.html`, `.md`, `.png`, `.csv` and `.json` (its shape:
`loadtests.schema.Report`). Ends with 1 when a tier is below its floor or requests failed, or with `--fail-on`
when one of its conditions is true; with 2 when it was called wrongly.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Sequence
from contextlib import AbstractContextManager, closing
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import locust  # noqa: F401  # first of all: it patches the process for gevent

from loadtests.authorization import take_key
from loadtests.baseline import BaselineError, compare_runs
from loadtests.crew import Crew, CrewError, Sending, local_crew, worker_command, worker_environment
from loadtests.markdown import markdown
from loadtests.measure import Settings, measure, measure_passes
from loadtests.options import (
    DEFAULT_SECONDS,
    REPLAY,
    check,
    default_processes,
    make_parser,
    search_of,
    traffic_of,
)
from loadtests.page import render
from loadtests.picture import draw
from loadtests.report import make_report
from loadtests.samples import Samples, SamplesError, read_samples
from loadtests.schema import LoadGen, Report
from loadtests.selection import choose_targets, with_reference
from loadtests.table import write_csv
from loadtests.tally import Measurement, Tally
from loadtests.targets import MIX, GatewayError, Offer, Target, offer
from loadtests.terms import check_scopes
from loadtests.traffic import load_in_turn

_LOADGEN_FOLDER = "loadgen"
_LOADGEN_RESULT = "result.json"


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the report, and says in one sentence each what is not well."""
    parser = make_parser()
    options = parser.parse_args(arguments)
    take_key(options.key)
    if options.worker:
        command = worker_command(options.master_host, options.master_port, options.samples)
        return subprocess.run(command, env=worker_environment(), check=False).returncode
    try:
        check(options)
        document = _read_document(options.document, options.model)
        before = _read_baseline(options.baseline) if options.baseline else None
        samples = read_samples(options.samples)
        offered = offer(options.url, options.model)
        wanted = options.targets or ([MIX] if options.shape == REPLAY else None)
        targets, not_measured = choose_targets(offered, document, wanted, mix=options.shape is not None)
        check_scopes(options.fail_on or (), _scopes(targets, offered))
        report = _report(options, document, samples, offered, targets, not_measured)
        if before is not None:
            report["baseline"] = compare_runs(report, before)
    except (GatewayError, SamplesError, CrewError, BaselineError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    if options.loadgen:
        report["loadgen"] = _run_loadgen(options, targets)
    write(report, options.out)
    for reason in report["verdict"]["reasons"]:
        print(f"error: {reason}", file=sys.stderr)
    return 0 if report["verdict"]["ok"] else 1


def _report(
    options: argparse.Namespace,
    document: dict[str, Any],
    samples: Samples,
    offered: Offer,
    targets: list[Target],
    not_measured: dict[str, str],
) -> Report:
    settings = Settings(
        options.url.rstrip("/"), options.seconds or DEFAULT_SECONDS, options.users, options.binary
    )
    passes = with_reference([t for t in targets if t.kind != "mix"], offered, document["reference"])
    if options.shape is None:
        used = {key: value for key, value in asdict(settings).items() if key != "url"}
        measurements = measure(settings, targets, passes, samples, _tell)
    else:
        used, measurements = _open_loop(options, settings, samples, offered, targets, passes, document)
    return make_report(
        measurements,
        document,
        rows=samples.rows,
        url=settings.url,
        settings=used,
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        not_measured=not_measured,
        price=options.price,
        gate=options.fail_on or (),
        slo=", ".join(term.text for term in options.slo) if options.slo else None,
    )


def _open_loop(
    options: argparse.Namespace,
    settings: Settings,
    samples: Samples,
    offered: Offer,
    targets: list[Target],
    passes: list[Target],
    document: dict[str, Any],
) -> tuple[dict[str, Any], list[Measurement]]:
    """The settings for the report, and the measurements: passes over the test split, then the loads."""
    traffic = traffic_of(options)
    if traffic.trace and traffic.trace[1].skipped:
        _tell(f"{traffic.trace[1].skipped} arrivals of other models are left out")
    tiers = [t for t in choose_targets(offered, document, None)[0] if t.kind == "tier"]
    tallies = measure_passes(settings, passes, samples, _tell)
    measured = [Measurement(target, tallies.get(target, Tally()), None) for target in targets]
    sending = Sending(settings.url, options.binary, options.allow_degrade)
    with _crew(options, samples) as crew:
        loaded = load_in_turn(crew, traffic, measured, tiers, samples, sending, search_of(options), _tell)
        workers = crew.workers
    only_passed = [Measurement(target, tallies[target], None) for target in passes if target not in targets]
    seconds = max(load.seconds for one in loaded if (load := one.load) is not None)
    used = {
        "seconds": traffic.seconds or round(seconds, 3),
        "users": None,
        "binary": options.binary,
        "shape": traffic.shape,
        "rate": traffic.rate,
        "peak": traffic.peak,
        "seed": traffic.seed,
        "trace": options.trace.name if options.trace else None,
        "speed": traffic.speed,
        "allow_degrade": options.allow_degrade,
        "processes": workers,
        "price": options.price,
    }
    return used, [*loaded, *only_passed]


def _crew(options: argparse.Namespace, samples: Samples) -> AbstractContextManager[Crew]:
    if options.expect_workers is None:
        return local_crew(options.processes or default_processes(), samples, options.samples)
    crew = Crew(options.expect_workers, samples, options.master_host, options.master_port)
    _tell(
        f"waiting for {options.expect_workers} workers at {options.master_host}:{options.master_port}: start "
        "each with --worker --master-host and --master-port"
    )
    crew.wait(None)
    return closing(crew)


def _run_loadgen(options: argparse.Namespace, targets: list[Target]) -> list[LoadGen]:
    """MLPerf's LoadGen in a process of its own: its threads and gevent's do not go together."""
    folder = options.out / _LOADGEN_FOLDER
    target = next((t.label for t in targets if t.kind != "mix"), None)
    command = [sys.executable, "-m", "loadtests.mlperf", "--url", options.url, "--model", options.model]
    command += ["--samples", str(options.samples), "--out", str(folder), "--scenario", *options.loadgen]
    command += ["--seconds", str(options.seconds or DEFAULT_SECONDS)]
    command += ["--rate", str(options.rate)] if options.rate else []
    command += ["--target", target] if target else []
    command += ["--binary"] if options.binary else []
    (folder / _LOADGEN_RESULT).unlink(missing_ok=True)
    status = subprocess.run(command, env=os.environ, check=False).returncode
    try:
        found: list[LoadGen] = json.loads((folder / _LOADGEN_RESULT).read_text())
    except OSError:
        _tell(f"error: LoadGen ended with status {status} and wrote no result")
        return []
    return found


def write(report: Report, folder: Path) -> None:
    """Writes the report's files, `report.json` at last."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.html").write_text(render(report))
    (folder / "report.md").write_text(markdown(report))
    write_csv(report, folder / "report.csv")
    draw(report, folder / "report.png")
    (folder / "report.json").write_text(json.dumps(report, indent=1) + "\n")


def _scopes(targets: Sequence[Target], offered: Offer) -> list[str]:
    """What a condition may be of: what is loaded, with and without its kind."""
    known = [name for target in targets for name in (target.label, target.name)]
    if any(target.kind != "variant" for target in targets):
        known += [name for variant in offered.variants for name in (f"variant:{variant}", variant)]
    if any(target.kind == "mix" for target in targets):
        known += [name for tier in offered.tiers for name in (f"tier:{tier}", tier)]
    return list(dict.fromkeys(known))


def _read_baseline(path: Path) -> Any:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError) as error:
        raise ValueError(f"{path} is no earlier report.json: {error}") from error


def _read_document(path: Path, model: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        named = document["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no output of `mipgate show {model} --json`: {error!r}") from error
    if named != model:
        raise ValueError(f"{path} describes {named}, and --model is {model}")
    return document


def _tell(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
