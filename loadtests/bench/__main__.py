"""`python -m loadtests.bench`: throughput and tail of the data plane beside plain BentoML and bare uvicorn.

One worker, 16 connections, JSON, `fp32` of `digits` pinned; at least three rounds in alternating order,
medians and ratios paired by round. Ends with 1 when a requirement is missed or void.
"""

from __future__ import annotations

import argparse
import json
import random
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import asdict
from datetime import UTC, datetime
from pathlib import Path
from statistics import median
from typing import Any

import psutil
from rich.console import Console
from rich.table import Table

from loadtests.bench.arithmetic import GATEWAY, MIN_ROUNDS, PEERS, Round, Sample, Summary, summarize
from loadtests.bench.peers import Peer, PeerError, ask, peers, started
from loadtests.bench.wrk import WrkError, check_wrk, run_wrk

_MODEL, _VARIANT = "digits", "fp32"
_PIXELS = 64
_WARM_UP_S = 1
_LOOK_S = 0.5
_BUSY = 0.1


def main(arguments: Sequence[str] | None = None) -> int:
    """Starts the peers, measures them in turn, prints a table, and writes JSON."""
    options = _parser().parse_args(arguments)
    try:
        check_wrk()
        document = _document()
        rounds, holes, busy = _measure(document, options.rounds, options.seconds, options.connections)
    except (WrkError, PeerError) as error:
        print(f"error: {error}", file=sys.stderr)
        return 1
    summary = summarize(rounds)
    _print(summary, holes, document["host"])
    if max(busy, default=0.0) > _BUSY:
        print(
            f"Warning: other work took up to {max(busy):.0%} of this machine between the rounds. "
            "These figures are indicative only: run the bench alone."
        )
    if options.out:
        record = {
            "format": 1,
            "taken": datetime.now(UTC).isoformat(timespec="seconds"),
            "host": document["host"],
            "busy_with_other_work": busy,
            "settings": {
                "rounds": options.rounds,
                "seconds": options.seconds,
                "connections": options.connections,
            },
            "rounds": [{name: s and asdict(s) for name, s in each.items()} for each in rounds],
            "holes": holes,
            "summary": summary,
        }
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text(json.dumps(record, indent=2) + "\n")
        print(f"Written: {options.out}")
    return 0 if all(each["verdict"] == "met" for each in summary["requirements"]) else 1


def _measure(
    document: dict[str, Any], rounds: int, seconds: float, connections: int
) -> tuple[list[Round], dict[str, str], list[float]]:
    """Recorded rounds, why a peer is missing from them, and how busy the machine was before each."""
    entry = next(each for each in document["variants"] if each["name"] == _VARIANT)
    threads = next(p["threads"] for p in entry["profiles"] if p["runtime"] == entry["runtime"])
    # Like the data: sixteenths. Numbers with more digits would measure the parsing of digits.
    row = [random.Random(0).randrange(17) / 16 for _ in range(_PIXELS)]
    with tempfile.TemporaryDirectory(prefix="mipgate-bench-") as name, ExitStack() as stack:
        folder = Path(name)
        urls: dict[str, str] = {}
        holes: dict[str, str] = {}
        everyone = peers(Path(entry["artifact"]["path"]), threads, row, folder)
        for place, peer in enumerate(everyone):
            try:
                urls[peer.name] = stack.enter_context(started(peer, folder / f"{place}.log"))
            except PeerError as error:
                holes[peer.name] = str(error)
        _check_same_answer([peer for peer in everyone if peer.name in urls], urls)
        for peer in everyone:
            if peer.name in urls:
                run_wrk(urls[peer.name], peer.body, connections, _WARM_UP_S)
        recorded: list[Round] = []
        busy: list[float] = []
        for number in range(rounds):
            busy.append(psutil.cpu_percent(_LOOK_S) / 100)
            turn = number % len(everyone)
            # Another order each round, so that a drift of the machine favours nobody.
            order = everyone[turn:] + everyone[:turn]
            recorded.append({peer.name: _run(peer, urls, connections, seconds) for peer in order})
            print(f"round {number + 1} of {rounds}: {_told(recorded[-1])}", file=sys.stderr)
    return recorded, holes, busy


def _run(peer: Peer, urls: dict[str, str], connections: int, seconds: float) -> Sample | None:
    return run_wrk(urls[peer.name], peer.body, connections, seconds) if peer.name in urls else None


def _check_same_answer(running: list[Peer], urls: dict[str, str]) -> None:
    choices = {peer.name: peer.choice(ask(peer, urls[peer.name])) for peer in running}
    if len({choice for choice in choices.values() if choice is not None}) > 1:
        raise PeerError(f"the peers do not compute the same: {choices}. Serve the same model with both.")


def _told(each: Round) -> str:
    told = {
        name: "-" if sample is None else f"{sample.requests_per_s:.0f}/s" for name, sample in each.items()
    }
    return ", ".join(f"{name} {rate}" for name, rate in told.items())


def _document() -> dict[str, Any]:
    """What `mipgate show` prints of the model."""
    command = [str(Path(sys.executable).with_name("mipgate")), "show", _MODEL, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise PeerError(f"{_MODEL} is not there: {done.stderr.strip()} Run `mipgate build {_MODEL}`.")
    document: dict[str, Any] = json.loads(done.stdout)
    return document


def _print(summary: Summary, holes: dict[str, str], host: dict[str, Any]) -> None:
    table = Table(box=None, pad_edge=False, header_style="bold", title_justify="left")
    table.title = f"{host['cpu']}, {host.get('cores', '?')} cores ({', '.join(host['features'])})"
    table.add_column("peer")
    for column in ("requests/s", "p50 ms", "p99 ms", "p99/p50", f"{GATEWAY} is"):
        table.add_column(column, justify="right")
    for name in PEERS:
        figures = summary["peers"][name]
        if figures["void"]:
            table.add_row(name, "void", "-", "-", "-", "-")
            continue
        ratio = summary["ratios"].get(name)
        table.add_row(
            name,
            f"{figures['requests_per_s']:.0f}",
            f"{figures['p50_ms']:.3f}",
            f"{figures['p99_ms']:.3f}",
            f"{figures['tail']:.2f}",
            _spread(ratio["rounds"]) if ratio and ratio["rounds"] else "-",
        )
    Console(width=None if sys.stdout.isatty() else 200).print(table)
    for name in PEERS:
        if why := summary["peers"][name]["void"]:
            print(f"{name}: {holes.get(name, why)}")
    for each in summary["requirements"]:
        measured = "-" if each["measured"] is None else f"{each['measured']:.2f}x"
        why = f" ({each['why']})" if each["why"] else ""
        print(f"{each['name']}: {measured}, required {each['required']}: {each['verdict']}{why}")


def _spread(ratios: list[float]) -> str:
    return f"{median(ratios):.2f}x ({min(ratios):.2f} to {max(ratios):.2f})"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m loadtests.bench", description=__doc__)
    parser.add_argument(
        "--rounds", type=int, default=MIN_ROUNDS, help=f"rounds ({MIN_ROUNDS}; fewer are void)"
    )
    parser.add_argument("--seconds", type=int, default=5, help="length of each run (5)")
    parser.add_argument("--connections", type=int, default=16, help="connections (16)")
    parser.add_argument("--out", type=Path, help="file for the figures, as JSON")
    return parser


if __name__ == "__main__":
    sys.exit(main())
