"""The command line of `loadtests.compare`, and what is wrong with it."""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import Any

from loadtests.authorization import KEY_HELP
from loadtests.plan import Search, Traffic
from loadtests.schedule import MOST_ROWS
from loadtests.shapes import SHAPES
from loadtests.terms import Term, TermError, read_terms
from loadtests.trace import TraceError, read_trace

REPLAY = "replay"
DEFAULT_RATE = 100.0
DEFAULT_PEAK = 4.0
DEFAULT_SECONDS = 5.0
MOST_PROCESSES = 16
# What each of these means nothing without.
_NEEDS_SHAPE = ("rate", "peak", "seed", "processes", "expect_workers", "slo", "allow_degrade")
_NOT_PROBED = ("quality", "capacity")


def default_processes() -> int:
    """As many load generators as half the processors, two at least: one sends some thousand requests/s."""
    return max(2, min(MOST_PROCESSES, (os.cpu_count() or 1) // 2))


def make_parser() -> argparse.ArgumentParser:
    """The parser."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.compare",
        description="Load every tier and variant of a gateway with Locust, and report who wins at what.",
    )
    add = parser.add_argument
    add("--url", help="base address of the gateway")
    add("--key", help=KEY_HELP)
    add("--model", help="the model's name")
    add("--samples", required=True, type=Path, help="labelled rows: the model's samples.npz")
    add("--document", type=Path, help="what `mipgate show MODEL --json` prints")
    add("--out", type=Path, help="folder for the report")
    add("--seconds", type=positive(float), help=f"length of each load ({DEFAULT_SECONDS:g})")
    add("--users", type=positive(int), default=8, help="requests in flight at a time, closed loop (8)")
    add("--binary", action="store_true", help="send binary tensors instead of JSON")
    add("--targets", nargs="+", metavar="TARGET", help="only these: mix, tier:fast, variant:int8-static")
    load = parser.add_argument_group("open loop", f"all but --shape need --shape; {MOST_ROWS} rows at most")
    add = load.add_argument
    add("--shape", choices=[*SHAPES, REPLAY], help="draw the times of all requests beforehand")
    add("--rate", type=positive(float), help=f"base rate, requests per second ({DEFAULT_RATE:g})")
    add("--peak", type=positive(float), help=f"highest rate, in multiples of --rate ({DEFAULT_PEAK:g})")
    add("--seed", type=int, help="of all that is drawn (0)")
    add("--trace", type=Path, help="record to replay: a CSV of timestamp,model,tier")
    add("--speed", type=positive(float), help="replay so many times faster than recorded (1)")
    add("--allow-degrade", action="store_true", help="let a loaded gateway answer below a tier's floor")
    add("--slo", type=_terms, help='search the highest rate at which this holds, such as "p99<=20ms"')
    add("--most-rate", type=positive(float), default=5000.0, help="highest rate to try (5000)")
    crew = parser.add_argument_group("load generators")
    add = crew.add_argument
    add("--processes", type=positive(int), help=f"worker processes here ({default_processes()})")
    add("--expect-workers", type=positive(int), help="wait for so many workers from elsewhere instead")
    add("--worker", action="store_true", help="be a worker of a master elsewhere")
    add("--master-host", default="127.0.0.1", help="where the master is, or listens (127.0.0.1)")
    add("--master-port", type=positive(int), default=5557, help="its port (5557)")
    judge = parser.add_argument_group("verdict")
    add = judge.add_argument
    add("--fail-on", type=_terms, help='end with 1 when one is true: "p99>20ms,fast:errors>0.1%%"')
    add("--baseline", type=Path, help="an earlier report.json to compare with")
    add("--price", type=float, default=0.0, help="of a processor hour, in any currency (0)")
    add("--loadgen", nargs="+", help="MLPerf scenarios to run too: SingleStream Server Offline")
    return parser


def check(options: argparse.Namespace) -> None:
    """Refuses what does not go together.

    Raises:
        ValueError: With what is wrong, and what to give instead.
    """
    needed = [name for name in ("url", "model", "document", "out") if getattr(options, name) is None]
    if needed:
        raise ValueError(f"--{needed[0]} is missing")
    if options.shape is None:
        given = [name for name in _NEEDS_SHAPE if getattr(options, name)]
        if given:
            raise ValueError(f"--{given[0].replace('_', '-')} needs --shape: {', '.join([*SHAPES, REPLAY])}")
    if (options.shape == REPLAY) != (options.trace is not None):
        raise ValueError("--shape replay needs --trace FILE, and --trace needs --shape replay")
    if options.speed and options.shape != REPLAY:
        raise ValueError("--speed needs --shape replay")
    if options.peak is not None and options.peak < 1:
        raise ValueError("--peak is a multiple of --rate, 1 at least")
    for term in options.slo or ():
        if term.scope or term.figure in _NOT_PROBED:
            raise ValueError(
                f'"{term.text}" cannot be searched for: give figures of every target, such as p99'
            )


def traffic_of(options: argparse.Namespace) -> Traffic:
    """What to send.

    Raises:
        ValueError: The trace is none.
    """
    seconds = options.seconds or (None if options.shape == REPLAY else DEFAULT_SECONDS)
    try:
        trace = (options.trace, read_trace(options.trace, options.model)) if options.trace else None
    except TraceError as error:
        raise ValueError(str(error)) from error
    return Traffic(
        options.shape,
        options.rate or DEFAULT_RATE,
        DEFAULT_PEAK if options.peak is None else options.peak,
        seconds,
        options.seed or 0,
        trace,
        options.speed or 1.0,
    )


def search_of(options: argparse.Namespace) -> Search | None:
    """What to search for, if anything."""
    return Search(options.slo, options.most_rate, options.price) if options.slo else None


def positive(kind: type[int] | type[float]) -> Any:
    """An argument type: a finite number above 0."""

    def read(text: str) -> float:
        value = kind(text)
        if not 0 < value < float("inf"):
            raise argparse.ArgumentTypeError(f"{text} is not more than 0")
        return value

    return read


def _terms(text: str) -> tuple[Term, ...]:
    try:
        return read_terms(text)
    except TermError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
