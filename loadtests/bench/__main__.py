"""`python -m loadtests.bench small|real|overload ...`: Mipgate beside other servers, in one run.

Prints tables and writes JSON and Markdown. Ends with 1 when it cannot measure; with `--strict` also when a
required figure is not reached or void.
"""

from __future__ import annotations

import argparse
import json
import sys
import tempfile
from collections.abc import Callable, Mapping, Sequence
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from loadtests.bench import overload, real, small
from loadtests.bench.figures import figures
from loadtests.bench.real_model import ensure_real_model
from loadtests.bench.servers import chosen
from loadtests.bench.stage import Settings, Stage
from loadtests.bench.subject import Subject, SubjectError, read_subject
from loadtests.bench.tables import markdown
from loadtests.bench.wrk import WrkError, check_wrk

_PARTS: dict[str, Callable[[Settings, Subject, Stage], dict[str, Any]]] = {
    "small": small.measure,
    "real": real.measure,
    "overload": overload.measure,
}
_GOOD = ("reached", "does not apply")
_FORMAT = 3


def main(arguments: Sequence[str] | None = None) -> int:
    """Measures the parts that were asked for."""
    parser = _parser()
    options = parser.parse_args(arguments)
    try:
        peers = chosen(options.peers.split(",") if options.peers else None)
    except ValueError as error:
        parser.error(str(error))
    if unknown := set(options.parts) - set(_PARTS):
        parser.error(f"no part is called {', '.join(sorted(unknown))}. There are {', '.join(_PARTS)}.")
    settings = Settings(
        rounds=1 if options.quick else options.rounds,
        seconds=1 if options.quick else options.seconds,
        peers=peers,
        model=options.model,
        rows=64 if options.quick else options.rows,
        progress=lambda line: print(line, file=sys.stderr, flush=True),
    )
    try:
        check_wrk()
        record = _measure(options.parts or list(_PARTS), settings)
    except (WrkError, SubjectError, overload.OpenLoopError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    record["figures"] = figures(record)
    written = markdown(record, record["figures"])
    _write(options.out, json.dumps(record, indent=2) + "\n")
    _write(options.markdown, written)
    print(written)
    missed = [each for each in record["figures"] if each["verdict"] not in _GOOD]
    return 1 if options.strict and missed else 0


def _measure(parts: Sequence[str], settings: Settings) -> dict[str, Any]:
    measured: dict[str, Any] = {}
    host: Mapping[str, Any] = {}
    for part in parts:
        model = small.MODEL if part == "small" else settings.model or ensure_real_model(settings.progress)
        subject = read_subject(model)
        host = subject.document["host"]
        with (
            tempfile.TemporaryDirectory(prefix="mipgate-bench-") as folder,
            Stage(Path(folder), settings.progress) as stage,
        ):
            measured[part] = _PARTS[part](settings, subject, stage)
    return {
        "format": _FORMAT,
        "taken": datetime.now(UTC).isoformat(timespec="seconds"),
        "host": host,
        "settings": {
            "rounds": settings.rounds,
            "seconds": settings.seconds,
            "peers": settings.peers,
            "rows": settings.rows,
        },
        "parts": measured,
    }


def _write(path: Path | None, text: str) -> None:
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
        print(f"Written: {path}", file=sys.stderr)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.bench", description="Measure Mipgate beside other servers."
    )
    parser.add_argument("parts", nargs="*", metavar="PART", help=f"{', '.join(_PARTS)} (everything)")
    parser.add_argument("--rounds", type=int, default=3, help="rounds (3; fewer give no verdict)")
    parser.add_argument("--seconds", type=int, default=5, help="length of each closed loop (5)")
    parser.add_argument("--peers", help="who stands beside the gateway: triton,mosec (everyone)")
    parser.add_argument("--model", help="the real model (cifar10, else a random ResNet-50)")
    parser.add_argument("--rows", type=int, default=1000, help="rows that every server must answer (1000)")
    parser.add_argument(
        "--quick", action="store_true", help="one round of a second each: only whether it works"
    )
    parser.add_argument("--strict", action="store_true", help="end with 1 when a figure is not reached")
    parser.add_argument("--out", type=Path, help="file for everything that was measured, as JSON")
    parser.add_argument("--markdown", type=Path, help="file for the tables")
    return parser


if __name__ == "__main__":
    sys.exit(main())
