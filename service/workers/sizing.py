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
MOST_WORKERS = 4


def choose_workers(settings: Config, catalog: Catalog, host: Host) -> int:
    """As many as there are cores, up to `MOST_WORKERS`, where requests cost more than their models.

    That is so where every released variant answers a row on the event loop, with one thread: the interpreter
    has one core of each worker then, and the device is no bottleneck. A heavier model gets one worker with
    all cores, since halves of a device cannot share a batch.

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
    if all(_is_small(card, host, settings.inline_ms) for card in cards):
        return max(1, min(MOST_WORKERS, host.cores))
    return 1


def _is_small(card: Card, host: Host, inline_ms: float) -> bool:
    """Whether it was profiled on this host, and each released variant takes less for a row on one thread."""
    measured = card.hosts.get(host.fingerprint)
    known = measured.profiles if measured else {}
    released = [entry.id.version for entry in card.entries if entry.life is Life.RELEASED]
    served = [known[version] for version in released if known.get(version)]
    return bool(served) and all(_single_ms(profiles) <= inline_ms for profiles in served)


def _single_ms(profiles: Iterable[Profile]) -> float:
    """Time of a row on one thread, on the fastest runtime."""
    return min((p.predict_ms(1) for p in profiles if p.threads == 1), default=inf)
