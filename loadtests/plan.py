"""What an open loop is to send, and what is searched for. Pure."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from loadtests.schedule import Schedule, draw, replay
from loadtests.targets import OTHER_TIER, TIER_MIX, USUAL_TIER, Target
from loadtests.terms import Term
from loadtests.trace import Trace


@dataclass(frozen=True, slots=True)
class Traffic:
    """What to send.

    Attributes:
        shape: A name in `loadtests.shapes.SHAPES`, or `replay`.
        rate: The base rate, requests per second.
        peak: The highest rate as a multiple of the base rate.
        seconds: Length of each load; None plays a whole record.
        seed: Of all that is drawn.
        trace: The record to replay, and its file.
        speed: How many times faster than recorded it is replayed.
    """

    shape: str
    rate: float
    peak: float
    seconds: float | None
    seed: int
    trace: tuple[Path, Trace] | None = None
    speed: float = 1.0

    def schedule(self, asked: Sequence[Target], rows: int) -> Schedule:
        """When to send what to which of these targets."""
        if self.trace is not None:
            places = {target.name: place for place, target in enumerate(asked)}
            if len(asked) == 1:  # one target alone takes all arrivals, whatever they asked for
                places = dict.fromkeys(self.trace[1].tiers, 0)
            usual = places.get(USUAL_TIER, 0)
            return replay(self.trace[1], places, usual, self.speed, self.seconds, rows, self.seed)
        shares = [TIER_MIX.get(target.name, OTHER_TIER) for target in asked]
        return draw(self.shape, self.rate, self.seconds or 0.0, self.peak, shares, rows, self.seed)


@dataclass(frozen=True, slots=True)
class Search:
    """How to search for the highest rate.

    Attributes:
        objective: Conditions that must be true.
        most: The highest rate to try.
        price: Of a processor hour.
    """

    objective: tuple[Term, ...]
    most: float
    price: float
