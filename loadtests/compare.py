"""`python -m loadtests.compare`: Locust, headless, against every tier and variant of a gateway in turn.

Writes `report.json` (its shape: `loadtests.report.Report`), `report.md` and `report.png`. Ends with 1 when a
tier is below its floor or requests failed, with 2 when it was called wrongly.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import locust  # noqa: F401  # first of all: it patches the process for gevent

from loadtests.markdown import markdown
from loadtests.measure import Settings, measure
from loadtests.picture import draw
from loadtests.report import make_report
from loadtests.samples import SamplesError, read_samples
from loadtests.schema import Report
from loadtests.selection import choose_targets, with_reference
from loadtests.targets import GatewayError, offer


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures, writes the three files, and says in one sentence each what is not well."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        document = _read_document(options.document, options.model)
        samples = read_samples(options.samples)
        offered = offer(options.url, options.model)
        targets, not_measured = choose_targets(offered, document, options.targets)
    except (GatewayError, SamplesError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    except ValueError as error:
        parser.error(str(error))
    settings = Settings(options.url.rstrip("/"), options.seconds, options.users, options.binary)
    passes = with_reference(targets, offered, document["reference"])
    measurements = measure(settings, targets, passes, samples, lambda line: print(line, file=sys.stderr))
    report = make_report(
        measurements,
        document,
        rows=samples.rows,
        url=settings.url,
        settings={key: value for key, value in asdict(settings).items() if key != "url"},
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        not_measured=not_measured,
    )
    write(report, options.out)
    for reason in report["verdict"]["reasons"]:
        print(f"error: {reason}", file=sys.stderr)
    return 0 if report["verdict"]["ok"] else 1


def write(report: Report, folder: Path) -> None:
    """Writes `report.md`, `report.png`, and at last `report.json`."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "report.md").write_text(markdown(report))
    draw(report, folder / "report.png")
    (folder / "report.json").write_text(json.dumps(report, indent=2) + "\n")


def _read_document(path: Path, model: str) -> dict[str, Any]:
    try:
        document: dict[str, Any] = json.loads(path.read_text())
        named = document["model"]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} is no output of `mipgate show {model} --json`: {error!r}") from error
    if named != model:
        raise ValueError(f"{path} describes {named}, and --model is {model}")
    return document


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare",
        description="Load every tier and variant of a gateway with Locust, and report who wins at what.",
    )
    parser.add_argument("--url", required=True, help="base address of the gateway")
    parser.add_argument("--model", required=True, help="the model's name")
    parser.add_argument("--samples", required=True, type=Path, help="labelled rows: the model's samples.npz")
    parser.add_argument(
        "--document", required=True, type=Path, help="what `mipgate show MODEL --json` prints"
    )
    parser.add_argument(
        "--out", required=True, type=Path, help="folder for report.md, report.json, report.png"
    )
    parser.add_argument("--seconds", type=_positive(float), default=5.0, help="length of each load (5)")
    parser.add_argument("--users", type=_positive(int), default=8, help="requests in flight at a time (8)")
    parser.add_argument("--binary", action="store_true", help="send binary tensors instead of JSON")
    parser.add_argument(
        "--targets", nargs="+", metavar="TARGET", help="only these, such as tier:fast variant:int8-static"
    )
    return parser


def _positive(kind: type[int] | type[float]) -> Any:
    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return read


if __name__ == "__main__":
    sys.exit(main())
