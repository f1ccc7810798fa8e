"""How many workers a gateway has when nobody says."""

from __future__ import annotations

import logging
from collections.abc import Iterable
from math import inf

from service.config import Config
from variants.card import Card
from variants.catalog import Catalog
from variants.document import DocumentError
from variants.host import Host
from variants.profile import Profile
from variants.store import CatalogError
from variants.variant import Life

log = logging.getLogger("mipgate.sizing")

# Each takes memory of its own, a few hundred megabytes with its libraries.
_MOST = 4

# Of the shortest deadline, for a row alone.
_SHARE = 0.1


def choose_workers(settings: Config, catalog: Catalog, host: Host) -> int:
    """As many as there are cores, up to 4, where one thread is fast enough for every model.

    Each worker reads, routes and writes requests on a core of its own then, and two batches on a thread each
    take less of the device than one after the other on two. A model whose deadlines need more threads gets
    one worker with all cores.

    Args:
        settings: What `workers` says, if not 0, is done.
        catalog: The models.
        host: This host, with all of its cores.
    """
    if settings.workers:
        return settings.workers
    try:
        cards = [catalog.card(name) for name in catalog.models()]
    except (CatalogError, DocumentError) as error:
        log.warning("one worker: a model cannot be read, so nobody knows whether it is small: %s", error)
        return 1
    if all(_is_small(card, host) for card in cards):
        return max(1, min(_MOST, host.cores))
    return 1


def _is_small(card: Card, host: Host) -> bool:
    """Whether, by profiles of this host, each released variant leaves time to wait on one thread."""
    measured = card.hosts.get(host.fingerprint)
    known = measured.profiles if measured else {}
    released = [entry.id.version for entry in card.entries if entry.life is Life.RELEASED]
    served = [known[version] for version in released if known.get(version)]
    most_ms = _SHARE * min(tier.deadline_ms for tier in card.spec.tiers)
    return bool(served) and all(_single_ms(profiles) <= most_ms for profiles in served)


def _single_ms(profiles: Iterable[Profile]) -> float:
    """Time of a row on one thread, on the fastest runtime."""
    return min((p.predict_ms(1) for p in profiles if p.threads == 1), default=inf)
