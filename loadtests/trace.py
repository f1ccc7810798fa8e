"""Recorded arrivals, `timestamp,model,tier` as CSV, to replay; and a generator of bursts.

python -m loadtests.trace --model digits --out trace.csv --seconds 60 --rate 50
"""

from __future__ import annotations

import argparse
import csv
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from loadtests.shapes import Times
from loadtests.targets import OTHER_TIER, TIER_MIX

COLUMNS = ("timestamp", "model", "tier")
_CALLERS = 40
_TIMERS = 0.3
_BURST_GAP_S = 0.02


class TraceError(Exception):
    """The file is no trace, or holds nothing of the model; the message says which line."""


@dataclass(frozen=True, slots=True, eq=False)
class Trace:
    """What arrived when.

    Attributes:
        times: Seconds from the first arrival, in order `(arrivals,)`.
        tiers: The tier of each; empty where the record names none.
        skipped: Arrivals of other models that were left out.
    """

    times: Times
    tiers: tuple[str, ...]
    skipped: int = 0


def read_trace(path: Path, model: str) -> Trace:
    """Reads a record; timestamps are seconds or ISO 8601.

    Raises:
        TraceError: It is not readable, or holds no arrival of the model.
    """
    found: list[tuple[float, str]] = []
    skipped = 0
    try:
        with path.open(newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := set(COLUMNS) - set(reader.fieldnames or ()):
                raise TraceError(
                    f"{path} has no column {', '.join(sorted(missing))}. "
                    f"A trace begins with the line {','.join(COLUMNS)}."
                )
            for line in reader:
                if line["model"] != model:
                    skipped += 1
                    continue
                found.append((_seconds(path, reader.line_num, line["timestamp"]), line["tier"] or ""))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise TraceError(f"{path} cannot be read: {error}. Give a CSV of {','.join(COLUMNS)}.") from error
    if not found:
        raise TraceError(
            f"{path} holds no arrival of {model} ({skipped} of other models). Record or write one: "
            f"`python -m loadtests.trace --model {model} --out FILE`."
        )
    found.sort(key=lambda arrival: arrival[0])
    times = np.array([time for time, _ in found])
    return Trace(times - times[0], tuple(tier for _, tier in found), skipped)


def write_trace(path: Path, model: str, trace: Trace) -> None:
    """Writes a record that `read_trace` reads."""
    with path.open("w", newline="") as stream:
        writer = csv.writer(stream)
        writer.writerow(COLUMNS)
        writer.writerows(
            (f"{time:.6f}", model, tier) for time, tier in zip(trace.times, trace.tiers, strict=True)
        )


def bursts(seconds: float, rate: float, tiers: Mapping[str, int], generator: np.random.Generator) -> Trace:
    """Arrivals like those of a platform of functions: few callers make most calls, and calls come in bursts.

    After Shahrad et al. 2020, "Serverless in the Wild": popularity spans orders of magnitude (here a Pareto
    law), some three in ten callers are timers with a fixed period, the others are silent for long and then
    call many times within a moment.

    Args:
        seconds: Length of the record.
        rate: Mean requests per second.
        tiers: Tiers by their share of the callers.
        generator: Draws everything.
    """
    popularity = generator.pareto(1.1, _CALLERS) + 0.05
    counts = generator.poisson(rate * seconds * popularity / popularity.sum())
    names = list(tiers)
    shares = np.array(list(tiers.values()), float)
    assigned = generator.choice(len(names), _CALLERS, p=shares / shares.sum())
    found: list[tuple[float, str]] = []
    for count, tier, timer in zip(counts, assigned, generator.random(_CALLERS) < _TIMERS, strict=True):
        draw = _timer if timer else _in_bursts
        found += [(float(time), names[tier]) for time in draw(int(count), seconds, generator)]
    found.sort()
    return Trace(np.array([time for time, _ in found]), tuple(tier for _, tier in found))


def _timer(count: int, seconds: float, generator: np.random.Generator) -> Times:
    period = seconds / max(count, 1)
    times: Times = generator.uniform(0, period) + period * np.arange(count, dtype=np.float64)
    return times


def _in_bursts(count: int, seconds: float, generator: np.random.Generator) -> Times:
    groups = max(1, round(float(np.sqrt(count)) / 2))
    starts = generator.uniform(0, seconds, groups)
    places = generator.integers(0, groups, count)
    gaps = generator.lognormal(np.log(_BURST_GAP_S), 1.0, count)
    times = np.empty(count)
    for group in range(groups):
        mine = places == group
        times[mine] = starts[group] + np.cumsum(gaps[mine])
    return times[times < seconds]


def _seconds(path: Path, line: int, text: str) -> float:
    try:
        return float(text)
    except ValueError:
        pass  # then it is a date
    try:
        moment = datetime.fromisoformat(text)
    except ValueError as error:
        raise TraceError(
            f'{path}, line {line}: "{text}" is no time. Give seconds or ISO 8601, such as 12.5 or '
            "2026-11-23T08:00:00Z."
        ) from error
    return (moment if moment.tzinfo else moment.replace(tzinfo=UTC)).timestamp()


def main(arguments: Sequence[str] | None = None) -> int:
    """Writes a record of bursts."""
    parser = argparse.ArgumentParser(
        prog="python -m loadtests.trace",
        description="Write a trace of bursts as a platform of functions sees them, for --shape replay.",
    )
    parser.add_argument("--model", required=True, help="the model that is called")
    parser.add_argument("--out", required=True, type=Path, help="the CSV to write")
    parser.add_argument("--seconds", type=float, default=60.0, help="length of the record (60)")
    parser.add_argument("--rate", type=float, default=50.0, help="mean requests per second (50)")
    parser.add_argument("--tiers", nargs="+", default=list(TIER_MIX), help=f"tiers ({' '.join(TIER_MIX)})")
    parser.add_argument("--seed", type=int, default=0, help="of everything that is drawn (0)")
    options = parser.parse_args(arguments)
    if options.seconds <= 0 or options.rate <= 0:
        parser.error("--seconds and --rate are more than 0")
    tiers = {name: TIER_MIX.get(name, OTHER_TIER) for name in options.tiers}
    trace = bursts(options.seconds, options.rate, tiers, np.random.default_rng(options.seed))
    write_trace(options.out, options.model, trace)
    per_second = np.bincount(trace.times.astype(int), minlength=max(1, int(options.seconds)))
    print(
        f"{options.out}: {len(trace.times)} arrivals in {options.seconds:g} s; the busiest second has "
        f"{per_second.max()}, half of all seconds have {np.median(per_second):g} or fewer."
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
