"""Keeps a worker's keys as they are in the database: asked twice a second, and for a key that is new."""

from __future__ import annotations

import asyncio
import logging
import time

from service.access.access import Access
from service.access.store import AccessStore
from service.state.database import StateAwayError

log = logging.getLogger("mipgate.access")

_AT_MOST_EVERY_S = 0.2


class Follower:
    """Follows the keys in the database; while it is away, what is known stays in force."""

    def __init__(self, access: Access, store: AccessStore) -> None:
        self._access = access
        self._store = store
        self._asking = asyncio.Lock()
        self._asked = float("-inf")
        self._is_away = False
        self._had_keys = False

    def start(self) -> None:
        """Asks before the first request is taken. Blocks."""
        self._ask()

    async def follow(self) -> None:
        """Asks now; called twice a second."""
        async with self._asking:
            await asyncio.to_thread(self._ask)

    async def follow_soon(self) -> None:
        """Asks once more, with whoever else wants it: an unknown key may be new; a guess may wait."""
        asked = self._asked
        async with self._asking:
            if self._asked == asked:
                await asyncio.sleep(max(0.0, asked + _AT_MOST_EVERY_S - time.monotonic()))
                await asyncio.to_thread(self._ask)

    def _ask(self) -> None:
        self._asked = time.monotonic()
        self._access.refresh()
        try:
            keys = self._store.keys(time.time())
            self._had_keys = self._had_keys or self._store.had_keys()
            self._access.follow(keys, self._had_keys)
        except StateAwayError as error:
            if not self._is_away:
                log.error("keys stay as they were: %s", error)
            self._is_away = True
            return
        if self._is_away:
            log.warning("keys are followed again")
        self._is_away = False
