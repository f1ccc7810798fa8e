"""What a worker does beside its requests, again and again: no step waits for another, or fails with it."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Awaitable, Callable, Mapping

log = logging.getLogger("mipgate.ticking")

Step = Callable[[], Awaitable[None] | None]


class Ticking:
    """Repeats steps, each in a task of its own.

    Args:
        steps: By what they do, as the log calls it; what is not awaited runs on the event loop.
        every_s: How long each pauses after it was done.
    """

    def __init__(self, steps: Mapping[str, Step], every_s: float) -> None:
        self._every_s = every_s
        self._tasks = [asyncio.create_task(self._repeat(what, step)) for what, step in steps.items()]

    async def stop(self) -> None:
        """Ends all steps; what runs in a thread runs to its end."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _repeat(self, what: str, step: Step) -> None:
        is_failing = False
        while True:
            try:
                waiting = step()
                if waiting is not None:
                    await waiting
            except Exception:  # a full disk, say: requests go on, and so must this
                if not is_failing:
                    log.exception("%s failed; it is tried again every %g s", what, self._every_s)
                is_failing = True
            else:
                if is_failing:
                    log.warning("%s works again", what)
                is_failing = False
            await asyncio.sleep(self._every_s)
