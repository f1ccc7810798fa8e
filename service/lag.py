"""How far the event loop is behind: what it reads now has waited as long in the kernel, unseen."""

from __future__ import annotations

import asyncio
from time import perf_counter

_EVERY_S = 0.01
_NOTICEABLE_S = 0.005  # timers are that inexact, and single batches run on the loop


class LoopLag:
    """Measures how late a timer is.

    Without it a gateway that cannot keep up with reading would take requests for fresh that have waited for
    seconds, admit them, and answer all of them late.

    Attributes:
        seconds: How late the last one was, or 0 where that is not worth telling.
    """

    def __init__(self) -> None:
        self.seconds = 0.0
        self._due = 0.0
        self._timer: asyncio.TimerHandle | None = None

    def start(self) -> None:
        """Measures from now on, on the running loop."""
        self._plan(asyncio.get_running_loop())

    def stop(self) -> None:
        """Measures no more."""
        if self._timer is not None:
            self._timer.cancel()
            self._timer = None
        self.seconds = 0.0

    def _plan(self, loop: asyncio.AbstractEventLoop) -> None:
        self._due = perf_counter() + _EVERY_S
        self._timer = loop.call_later(_EVERY_S, self._beat, loop)

    def _beat(self, loop: asyncio.AbstractEventLoop) -> None:
        behind = perf_counter() - self._due
        self.seconds = behind if behind > _NOTICEABLE_S else 0.0
        self._plan(loop)
