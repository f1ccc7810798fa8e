"""Opens the rooms behind the admin API."""

from __future__ import annotations

import logging
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

from service.access.access import Access, read_rules
from service.access.follower import Follower
from service.access.store import AccessStore
from service.admin.desk import Desk
from service.admin.live import Sampler
from service.config import Config
from service.state.database import Database
from service.state.evidence import EvidenceStore
from service.state.jobs import JobStore
from service.state.leases import Leases
from service.state.rollouts import RolloutStore
from variants.catalog import Catalog
from variants.home import mipgate_home
from variants.host import Host

log = logging.getLogger("mipgate.access")


def open_desk(
    settings: Config,
    database: Database,
    catalog: Catalog,
    host: Host,
    judge: Callable[[Mapping[str, Any]], Awaitable[None]],
    hurry: Callable[[], None],
) -> Desk:
    """The rooms behind the admin API, the keys read already.

    Args:
        settings: The configuration.
        database: The shared state, migrated.
        catalog: What this gateway serves.
        host: Where it serves.
        judge: Joins labels, by request id, with their answers.
        hurry: Has this worker look at the shared state at once.

    Raises:
        ConfigError: The settings of access contradict each other.
    """
    access = Access(read_rules(settings, time.time()), mipgate_home() / "limits")
    keys = AccessStore(database)
    follower = Follower(access, keys)
    follower.start()
    if not access.has_keys:
        log.warning(
            "no API key is set: inference is open to everybody who reaches this port, operation to this "
            "machine. `mipgate keys create NAME --role admin` closes both."
        )
    return Desk(
        database=database,
        access=access,
        follower=follower,
        keys=keys,
        catalog=catalog,
        host=host,
        rollouts=RolloutStore(database),
        evidence=EvidenceStore(database),
        jobs=JobStore(database),
        leases=Leases(database),
        sampler=Sampler(),
        judge=judge,
        hurry=hurry,
        session_s=settings.session_s,
        takes_labels=settings.feedback != "none",
    )
