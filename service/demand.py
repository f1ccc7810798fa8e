"""When to degrade: what the offered load would cost at each step down in quality.

Requests that allow it step down their ladder of variants together, no further than the device's time asks
for. The load is what was offered, refused requests too, so that refusing does not look like relief; a step
back up needs room to spare for a while, so that the answers do not flap (after Proteus, Ahmad et al. 2024).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

# Shares of the device's time: more than the first is too much, less than the second is room for a step up.
FULL, ROOMY = 0.85, 0.7
CALM_S = 1.0
_MEMORY_S = 0.5
STEPS = 8  # the longest ladder that is told apart


@dataclass(frozen=True, slots=True)
class Level:
    """How many steps down requests go that allow it.

    Attributes:
        step: 0 on a gateway that keeps up.
        calm_since: Since when a step up would leave room, or None.
    """

    step: int = 0
    calm_since: float | None = None


def adjust(level: Level, loads: Sequence[float], now: float) -> Level:
    """The level after a look at the load.

    Args:
        level: The level now.
        loads: Share of the device's time that the offered requests would take, by step.
        now: In seconds.
    """
    if loads[level.step] > FULL:
        deeper = range(level.step + 1, len(loads))
        enough = next((step for step in deeper if loads[step] <= FULL), None)
        lightest = min(range(level.step, len(loads)), key=loads.__getitem__)
        return Level(lightest if enough is None else enough)
    if level.step == 0 or loads[level.step - 1] > ROOMY:
        return Level(level.step)
    if level.calm_since is None:
        return Level(level.step, now)
    if now - level.calm_since < CALM_S:
        return level
    return Level(level.step - 1, now)


class Demand:
    """The offered load of one device at each step, as a share of its time, over about half a second."""

    def __init__(self, now: float) -> None:
        self._loads = [0.0] * STEPS
        self._since = now
        self._offered: dict[tuple[float, ...], int] = {}
        self.level = Level()

    @property
    def share(self) -> float:
        """Share of the device's time that what was offered takes, by the cheapest of full quality."""
        return self._loads[0]

    @property
    def is_scarce(self) -> bool:
        """Whether more was offered, at full quality, than the device can do."""
        return self._loads[0] > FULL

    def offer(self, costs_ms: tuple[float, ...], rows: int) -> None:
        """Counts a request.

        Args:
            costs_ms: Device time per row on each step of its ladder, at least one; the last holds for all
                further steps.
            rows: Its rows.
        """
        self._offered[costs_ms] = self._offered.get(costs_ms, 0) + rows

    def look(self, now: float) -> Level:
        """Brings the level up to date; call it a few times in `_MEMORY_S`."""
        passed = now - self._since
        if passed <= 0:
            return self.level
        weight = min(1.0, passed / _MEMORY_S)
        for step in range(STEPS):
            busy_ms = sum(costs[min(step, len(costs) - 1)] * rows for costs, rows in self._offered.items())
            share = busy_ms / 1e3 / passed
            self._loads[step] += weight * (share - self._loads[step])
        self._since = now
        self._offered.clear()
        self.level = adjust(self.level, self._loads, now)
        return self.level
