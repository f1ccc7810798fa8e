"""What is sent when and to whom, drawn before the load starts. Pure."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.shapes import Times, arrivals
from loadtests.trace import Trace

# Ready-made bodies lie in memory: of a large test split a load sends this many rows.
MOST_ROWS = 1000


@dataclass(frozen=True, slots=True, eq=False)
class Schedule:
    """Requests by their intended times.

    Attributes:
        times: Seconds from the start, in order `(requests,)`.
        targets: Which target each goes to, as an index `(requests,)`.
        rows: Which row of the samples each sends `(requests,)`.
        seconds: Length of the run.
    """

    times: Times
    targets: NDArray[np.int16]
    rows: NDArray[np.int32]
    seconds: float

    def share(self, place: int, of: int) -> Schedule:
        """Every `of`-th request, from the `place`-th on: what one of several workers sends."""
        part = slice(place, None, of)
        return Schedule(self.times[part], self.targets[part], self.rows[part], self.seconds)

    @property
    def digest(self) -> str:
        """Two schedules of one digest send the same rows to the same targets at the same times."""
        parts = (self.times.round(9).tobytes(), self.targets.tobytes(), self.rows.tobytes())
        return hashlib.sha256(b"".join(parts)).hexdigest()[:16]

    def message(self) -> dict[str, Any]:
        """As a message between processes."""
        return {
            "times": self.times.astype("<f8").tobytes(),
            "targets": self.targets.astype("<i2").tobytes(),
            "rows": self.rows.astype("<i4").tobytes(),
            "seconds": self.seconds,
        }


def read_message(message: Mapping[str, Any]) -> Schedule:
    """The schedule of a message."""
    return Schedule(
        np.frombuffer(message["times"], "<f8"),
        np.frombuffer(message["targets"], "<i2"),
        np.frombuffer(message["rows"], "<i4"),
        message["seconds"],
    )


def draw(
    shape: str, rate: float, seconds: float, peak: float, shares: Sequence[float], rows: int, seed: int
) -> Schedule:
    """A schedule of a shape.

    Args:
        shape: A name in `loadtests.shapes.SHAPES`.
        rate: The base rate, requests per second.
        seconds: Length of the run.
        peak: The highest rate as a multiple of the base rate.
        shares: How often each target is chosen, in proportion.
        rows: How many rows there are to send.
        seed: Of everything that is drawn.
    """
    generator = np.random.default_rng(seed)
    times = arrivals(shape, rate, seconds, peak, generator)
    weights = np.array(shares, float)
    targets = generator.choice(len(weights), len(times), p=weights / weights.sum())
    return Schedule(times, targets.astype(np.int16), _rows(len(times), rows, generator), seconds)


def replay(
    trace: Trace,
    targets: Mapping[str, int],
    usual: int,
    speed: float,
    seconds: float | None,
    rows: int,
    seed: int,
) -> Schedule:
    """The schedule of a record.

    Args:
        trace: What arrived when.
        targets: Index of the target of each tier.
        usual: Index of the target of arrivals without a tier.
        speed: How many times faster than recorded.
        seconds: Where to stop; None plays the whole record.
        rows: How many rows there are to send.
        seed: Of the rows.

    Raises:
        ValueError: The record names a tier that is no target.
    """
    if unknown := sorted(set(trace.tiers) - targets.keys() - {""}):
        raise ValueError(
            f"the trace asks for the tiers {', '.join(unknown)}; the gateway offers {', '.join(targets)}"
        )
    times = trace.times / speed
    length = float(times[-1]) if seconds is None else seconds
    kept = times <= length
    chosen = np.array([targets.get(tier, usual) for tier in trace.tiers], np.int16)[kept]
    generator = np.random.default_rng(seed)
    return Schedule(times[kept], chosen, _rows(int(kept.sum()), rows, generator), max(length, 1e-3))


def _rows(count: int, rows: int, generator: np.random.Generator) -> NDArray[np.int32]:
    sent = generator.choice(rows, min(rows, MOST_ROWS), replace=False)
    return generator.choice(sent, count).astype(np.int32)
