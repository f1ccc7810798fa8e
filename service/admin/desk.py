"""What the admin API speaks for: the rooms that its handlers call."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import orjson
from starlette.requests import Request
from starlette.responses import Response

from service.access.access import Access
from service.access.follower import Follower
from service.access.principal import Principal
from service.access.store import AccessStore
from service.admin.live import Sampler
from service.errors import ConflictError, NotFoundError
from service.state.database import Database, StateAwayError
from service.state.evidence import EvidenceStore
from service.state.jobs import JobStore
from service.state.leases import Leases
from service.state.rollouts import RolloutStore
from variants.assessment import assess_model, describe
from variants.card import Card
from variants.catalog import Catalog, ModelNotFoundError
from variants.host import Host

log = logging.getLogger("mipgate.admin")


@dataclass(frozen=True)
class Desk:
    """The rooms behind the API. Their calls block: handlers make them in threads."""

    database: Database
    access: Access
    follower: Follower
    keys: AccessStore
    catalog: Catalog
    host: Host
    rollouts: RolloutStore
    evidence: EvidenceStore
    jobs: JobStore
    leases: Leases
    sampler: Sampler
    judge: Callable[[Mapping[str, Any]], Awaitable[None]]  # labels by request id: all of them, or none
    hurry: Callable[[], None]  # has this worker look at the shared state at once
    session_s: float
    takes_labels: bool = True
    ended: dict[tuple[str, int], dict[str, Any]] = field(default_factory=dict)  # rollouts, as they were told
    _described: dict[str, tuple[str, Card, dict[str, Any]]] = field(default_factory=dict)

    def described(self, model: str) -> tuple[Card, dict[str, Any]]:
        """A model's card, and its document of `mipgate show --json`. Blocks when the card is new.

        Raises:
            NotFoundError: It is not registered.
            CatalogError: Its card is damaged.
        """
        try:
            tag = self.catalog.card_tag(model)
        except ModelNotFoundError as error:
            raise NotFoundError(str(error)) from error
        known = self._described.get(model)
        if known is None or known[0] != tag:
            card, standings = assess_model(self.catalog, model, self.host)
            known = self._described[model] = tag, card, describe(card, standings, self.host)
        return known[1], known[2]

    def now(self) -> float:
        """Unix time by the clock that all gateways share. Blocks."""
        with self.database.reading() as connection:
            return self.database.now(connection)

    def require_changeable(self) -> None:
        """Refuses changes of variants where a Bento is served.

        Raises:
            ConflictError: It is.
        """
        if self.catalog.is_pinned:
            raise ConflictError(
                "this gateway serves a Bento, whose variants are fixed. Serve a new one: `mipgate bento`."
            )

    async def audit(self, who: Principal, what: str, target: str, before: Any, after: Any) -> None:
        """Writes down a change that was made; the log has it in any case."""
        try:
            await asyncio.to_thread(self.keys.record, who, what, target, before, after, time.time())
        except StateAwayError as error:
            log.error("the audit of %s %s is in the log alone: %s", what, target, error)


Handler = Callable[[Desk, Request, Principal], Awaitable[Response]]


def answer(document: Any, status: int = 200) -> Response:
    """A JSON answer, which nobody may keep."""
    headers = {"cache-control": "no-store", "x-content-type-options": "nosniff"}
    return Response(orjson.dumps(document), status, headers, "application/json")
