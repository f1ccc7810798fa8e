"""What a gateway is operated by: the shared state, who may do what, rollouts, and the admin API over them."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import socket
from collections.abc import Mapping
from typing import Any

from starlette.applications import Starlette

from service.access.principal import Principal
from service.admin.app import PATHS, admin_app
from service.admin.events import Changes
from service.admin.opening import open_desk
from service.admin.streams import documents
from service.conducting import Ages, Conducting
from service.conductor import Conductor
from service.config import Config
from service.errors import UnavailableError
from service.experiments import Experiments
from service.inference import Inference
from service.state.database import Database, StateAwayError
from service.state.evidence import EvidenceStore
from variants.catalog import Catalog
from variants.host import Host
from variants.serving_spec import ServingSpec

log = logging.getLogger("mipgate.operation")

_HOST_CHARACTERS = 32  # of a worker's name, which has 64 in the database


def worker_name() -> str:
    """A name that no other worker has or had, and that the database has room for."""
    return f"{socket.gethostname()[:_HOST_CHARACTERS]}-{os.getpid()}-{secrets.token_hex(4)}"


class Operation:
    """One worker's side of it.

    Attributes:
        paths: What `app` answers: paths that begin so.
        app: The admin API.
        access: Who sends a request, and whether they may.

    Args:
        settings: The configuration.
        catalog: What is served.
        host: Where.
        core: What requests are answered by; it takes part in the rollouts from now on.
    """

    paths = PATHS

    def __init__(self, settings: Config, catalog: Catalog, host: Host, core: Inference) -> None:
        self._core = core
        self._feedback_age_s = settings.feedback_age_s
        self._database = Database(settings.state)
        try:
            self._database.migrate()
        except StateAwayError as error:
            log.error("%s. Requests are answered; rollouts and labels wait until it does", error)
        evidence = EvidenceStore(self._database)
        worker = worker_name()
        ages = Ages(settings.feedback_age_s, settings.history_age_s)
        conducting = Conducting(self._database, catalog, worker, self._is_loaded, ages)
        self._conductor = Conductor(conducting, evidence, core.metrics)
        self._experiments = core.experiments = Experiments(
            self._conductor, core.scheduler, core.metrics, settings.feedback, settings.shadow_copies_per_s
        )
        self._desk = open_desk(settings, self._database, catalog, host, self._judge, self._conductor.hurry)
        self._changes = Changes(lambda: documents(self._desk))
        self.access = self._desk.access
        self.app: Starlette = admin_app(self._desk, self._changes)

    async def audit(self, who: Principal, what: str, target: str) -> None:
        """Writes down a change that was made beside the admin API."""
        await self._desk.audit(who, what, target, None, None)

    async def start(self) -> None:
        """Learns which rollouts run, and follows from then on."""
        self._changes.close_on_signals()
        await self._conductor.start()

    async def follow_keys(self) -> None:
        """Learns which keys were made or revoked; called twice a second."""
        await self._desk.follower.follow()

    async def sample(self) -> None:
        """Notes what was served, and whether the database answers; called twice a second."""
        self._core.metrics.state_up.labels(self._database.kind).set(self._conductor.state == "ok")
        await asyncio.to_thread(self._desk.sampler.sample)

    async def stop(self) -> None:
        """Ends the streams, writes what is left, and lets another worker advance rollouts."""
        self._changes.close()
        await self._conductor.stop()
        self._database.close()

    def _is_loaded(self, model: str, version: str) -> bool:
        loaded = self._core.fleet.models.get(model)
        return loaded is not None and version in loaded.variants

    async def _judge(self, labels: Mapping[str, Any]) -> None:
        try:
            await self._experiments.judge(labels, self._spec_of, self._feedback_age_s)
        except StateAwayError as error:
            raise UnavailableError("the database does not answer, so that labels wait. Try again.") from error

    def _spec_of(self, model: str) -> ServingSpec:
        return self._core.fleet.find(model).card.spec
