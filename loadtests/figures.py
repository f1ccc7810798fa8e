"""Figures of a load with their intervals: pure arithmetic over the rows of requests.

Answers that follow each other are not independent: a pause of the machine delays all that came in it. So
the run is cut into blocks of time, and intervals come from drawing whole blocks with replacement (Kunsch
1989, "The Jackknife and the Bootstrap for General Stationary Observations").
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.schema import Block, Figures, Interval, Moment
from loadtests.tally import Load, Rows

Array = NDArray[Any]

BLOCKS = 20
_DRAWS = 500
_SEED = 0
# Latencies are counted in bins that are one per cent wide: 1 microsecond to some 1,000 seconds.
_FIRST_MS = 0.001
_GROWTH = np.log(1.01)
_BINS = 2100
_QUANTILES = {"p50": 0.5, "p90": 0.9, "p95": 0.95, "p99": 0.99, "p99.9": 0.999}
# An interval of a percentile needs some answers beyond it.
_BEYOND = 5
_Z = 1.96
_REJECTED = (429, 503)
_LATE = 504
_PER = 1000
_MOMENTS = 12, 60
_PER_MOMENT = 15
_CURVE = 81


@dataclass(frozen=True, slots=True)
class Kind:
    """What sort of figure it is.

    Attributes:
        unit: Of its value: `ms`, `share`, `per_s`, `s`, `bytes`, `money`.
        says: What it is, for people.
        better: Whether `less` or `more` is better.
    """

    unit: str
    says: str
    better: str = "less"


FIGURES: dict[str, Kind] = {
    "p50": Kind("ms", "half of all good answers took at most this, from their intended start"),
    "p90": Kind("ms", "nine in ten took at most this"),
    "p95": Kind("ms", "95 in 100 took at most this"),
    "p99": Kind("ms", "99 in 100 took at most this"),
    "p99.9": Kind("ms", "999 in 1,000 took at most this"),
    "mean": Kind("ms", "mean of all good answers"),
    "max": Kind("ms", "the slowest good answer"),
    "accuracy": Kind("share", "labelled rows under load whose answer was right", "more"),
    "quality": Kind("share", "a tier's accuracy over the reference's, on the test split", "more"),
    "errors": Kind("share", "requests without a good answer, rejected and late ones included"),
    "rejected": Kind("share", "requests that the gateway refused for want of capacity (429, 503)"),
    "late": Kind("share", "requests that were accepted and missed their deadline (504)"),
    "degraded": Kind("share", "good answers of a quality below their tier's, as allowed"),
    "offered": Kind("per_s", "requests per second that were sent", "more"),
    "rate": Kind("per_s", "good answers per second", "more"),
    "capacity": Kind("per_s", "highest rate at which --slo holds", "more"),
    "cpu": Kind("s", "processor seconds of the gateway per 1,000 good answers"),
    "cost": Kind("money", "what these cost at --price per processor hour"),
    "memory": Kind("bytes", "most memory that the gateway's processes held"),
}


def figures(rows: Rows, load: Load, price: float, *, whole: bool) -> Figures:
    """The figures of some requests of a load; `capacity` and `quality` are known elsewhere.

    Args:
        rows: The requests.
        load: The load that they are part of.
        price: Of a processor hour.
        whole: Whether these are all requests of the load: only then its processor time is theirs.
    """
    good = rows[rows["good"]]
    judged = good[good["right"] >= 0]
    times = np.sort(good["latency_ms"])
    cpu = None
    if whole and load.server is not None and len(good):
        cpu = load.server.cpu_s / len(good) * _PER
    found: Figures = {name: None for name in FIGURES}
    if len(good):
        found |= {name: _rank(times, share) for name, share in _QUANTILES.items()}
        found |= {"mean": float(times.mean()), "max": float(times[-1])}
        found["degraded"] = float(good["degraded"].mean())
    if len(rows):
        found["errors"] = 1 - len(good) / len(rows)
        found["rejected"] = float((~rows["good"] & np.isin(rows["status"], _REJECTED)).mean())
        found["late"] = float((~rows["good"] & (rows["status"] == _LATE)).mean())
    found["accuracy"] = float((judged["right"] == 1).mean()) if len(judged) else None
    found["offered"], found["rate"] = len(rows) / load.seconds, len(good) / load.seconds
    found["cpu"], found["cost"] = cpu, None if cpu is None else cpu * price / 3600
    found["memory"] = float(load.server.rss_bytes) if whole and load.server else None
    return found


def blocks(rows: Rows, seconds: float) -> list[Block]:
    """The run in blocks of equal time: requests, good answers, and the latter by latency bin."""
    if not len(rows):
        return []
    place = np.minimum((rows["at_s"] / seconds * BLOCKS).astype(int), BLOCKS - 1)
    found: list[Block] = []
    for block in range(BLOCKS):
        mine = rows[place == block]
        good = mine[mine["good"]]
        bins, counts = np.unique(_bin(good["latency_ms"]), return_counts=True)
        found.append(
            {"requests": len(mine), "good": len(good), "bins": bins.tolist(), "counts": counts.tolist()}
        )
    return found


def histogram(parts: list[Block]) -> Array:
    """Good answers by block and latency bin `(blocks, bins)`."""
    found = np.zeros((len(parts), _BINS))
    for place, part in enumerate(parts):
        found[place, part["bins"]] = part["counts"]
    return found


def binned_quantile(counts: Array, share: float) -> Array:
    """A quantile in milliseconds of each row of counts `(draws, bins)`; NaN of nothing."""
    sums = counts.cumsum(axis=1)
    total = sums[:, -1:]
    bins = (sums >= share * total - 1e-9).argmax(axis=1)
    return np.where(total[:, 0] > 0, bin_ms(bins), np.nan)


def bin_ms(bins: Array) -> Array:
    """The middle of latency bins, in milliseconds."""
    found: Array = _FIRST_MS * np.exp((bins + 0.5) * _GROWTH)
    return found


def intervals(rows: Rows, parts: list[Block]) -> dict[str, Interval]:
    """95% intervals of what can have one: percentiles, errors, accuracy."""
    found: dict[str, Interval] = {}
    if not parts:
        return found
    generator = np.random.default_rng(_SEED)
    weights = generator.multinomial(len(parts), np.full(len(parts), 1 / len(parts)), _DRAWS)
    counts = weights @ histogram(parts)
    times = np.sort(rows["latency_ms"][rows["good"]])
    for name, share in _QUANTILES.items():
        drawn = binned_quantile(counts, share)
        if len(times) * (1 - share) >= _BEYOND and not np.isnan(drawn).any():
            low, high = _middle(drawn)  # of bins: the figure itself is exact
            exact = _rank(times, share)
            found[name] = [min(low, exact), max(high, exact)]
    requests = weights @ np.array([part["requests"] for part in parts])
    failed = weights @ np.array([part["requests"] - part["good"] for part in parts])
    if (requests > 0).all():
        found["errors"] = _middle(failed / requests)
    if (accuracy := _accuracy_interval(rows)) is not None:
        found["accuracy"] = accuracy
    return found


def answers_by_row(rows: Rows, there: int) -> str:
    """One character per row of the samples: `1` always right, `0` wrong at least once, `-` not judged."""
    marks = np.full(there, "-")
    judged = rows[rows["good"] & (rows["right"] >= 0)]
    marks[judged["row"]] = "1"
    marks[judged["row"][judged["right"] == 0]] = "0"
    return "".join(marks)


def timeline(rows: Rows, seconds: float) -> list[Moment]:
    """What was sent and what came of it, by time of sending."""
    count = min(max(len(rows) // _PER_MOMENT, _MOMENTS[0]), _MOMENTS[1])
    width = seconds / count
    place = np.minimum((rows["at_s"] / width).astype(int), count - 1)
    found: list[Moment] = []
    for moment in range(count if len(rows) else 0):
        mine = rows[place == moment]
        times = np.sort(mine["latency_ms"][mine["good"]])
        found.append(
            {
                "at_s": (moment + 0.5) * width,
                "offered": len(mine) / width,
                "good": len(times) / width,
                "p50": _rank(times, 0.5) if len(times) else None,
                "p99": _rank(times, 0.99) if len(times) else None,
            }
        )
    return found


def curve(rows: Rows) -> list[list[float]]:
    """Latency by percentile: pairs of a share and the milliseconds that it took at most."""
    times = np.sort(rows["latency_ms"][rows["good"]])
    beyond = 10.0 ** -np.linspace(0, 4, _CURVE)
    shares = [float(1 - rest) for rest in beyond if rest * len(times) >= 1]
    return [[share, _rank(times, share)] for share in shares]


def lateness(rows: Rows) -> float | None:
    """99 in 100 requests were sent at most this many milliseconds later than intended."""
    return _rank(np.sort(rows["late_ms"]), 0.99) if len(rows) else None


def _accuracy_interval(rows: Rows) -> Interval | None:
    """Wilson's interval (1927) over the distinct rows: a row that is asked again tells nothing new."""
    judged = rows[rows["good"] & (rows["right"] >= 0)]
    if not len(judged):
        return None
    count, share = len(np.unique(judged["row"])), float((judged["right"] == 1).mean())
    middle = (share + _Z**2 / (2 * count)) / (1 + _Z**2 / count)
    half = _Z * np.sqrt(share * (1 - share) / count + _Z**2 / (4 * count**2)) / (1 + _Z**2 / count)
    return [float(max(0.0, middle - half)), float(min(1.0, middle + half))]


def _bin(latency_ms: Array) -> Array:
    found = np.log(np.maximum(latency_ms, _FIRST_MS) / _FIRST_MS) / _GROWTH
    bins: Array = np.clip(found.astype(int), 0, _BINS - 1)
    return bins


def _middle(drawn: Array) -> Interval:
    low, high = np.percentile(drawn, [2.5, 97.5])
    return [float(low), float(high)]


def _rank(ordered: Array, share: float) -> float:
    return float(ordered[max(0, int(np.ceil(share * len(ordered) - 1e-9)) - 1)])
