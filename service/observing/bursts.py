"""Keeps a decision that is made thousands of times a second from filling the log."""

from __future__ import annotations

import time
from collections.abc import Callable, Hashable
from dataclasses import dataclass

_MOST_KEYS = 1000
_OTHERS = "others"


@dataclass(slots=True)
class _Window:
    ends: float
    told: int = 0
    left_out: int = 0


class Bursts:
    """Lets a few lines of each kind through per window, and counts the rest.

    Args:
        most: Lines of one kind in a window.
        window_s: Length of a window, in seconds.
        clock: Seconds that only grow.
    """

    def __init__(
        self, most: int = 5, window_s: float = 10.0, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._most = most
        self._window_s = window_s
        self._clock = clock
        self._windows: dict[Hashable, _Window] = {}

    def admit(self, kind: Hashable) -> int | None:
        """How many lines of this kind were left out before this one, or None to leave it out too."""
        now = self._clock()
        window = self._windows.get(kind)
        if window is None and len(self._windows) >= _MOST_KEYS:
            kind, window = _OTHERS, self._windows.get(_OTHERS)
        left_out = 0
        if window is None or now >= window.ends:
            left_out = window.left_out if window else 0
            window = self._windows[kind] = _Window(now + self._window_s)
        if window.told >= self._most:
            window.left_out += 1
            return None
        window.told += 1
        return left_out

    def ended(self) -> list[tuple[Hashable, int]]:
        """Kinds whose window is over and that had lines left out, with their number; told once."""
        now = self._clock()
        over = [(kind, window.left_out) for kind, window in self._windows.items() if now >= window.ends]
        for kind, _ in over:
            del self._windows[kind]
        return [(kind, count) for kind, count in over if count]
