"""What nothing needs any more in the catalog and in the Mipgate home, and what gives way to a quota.

What is in use stays: what a released or candidate build, a Bento or the lock of a running build refers to,
and what was touched within the hour.
"""

from __future__ import annotations

import logging
import shutil
from collections import defaultdict
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path

from variants.catalog import Catalog
from variants.home import mipgate_home
from variants.profiler import MEASURED
from variants.store import CatalogError, bento_references, bytes_of
from variants.variant import Life

log = logging.getLogger("mipgate.collecting")

_HOUR_S = 3600.0
_DAY_S = 24 * _HOUR_S
# Kept to save work that can be done again.
_CHECKPOINTS, _REFERENCES, _TRIED = "checkpoints", "references", ("searches", "replicates")
# Of a process that ended without clearing up.
_WORK, _LEFT_OVER = "work", (".partial", ".lock")
_REGISTERED, _STAGED = "registered", ".*"


@dataclass(frozen=True)
class Item:
    """Something that can be deleted.

    Attributes:
        name: A tag of the store, a path below the Mipgate home, or one beside the store.
        why: Why it may go.
        bytes: What deleting it frees.
    """

    name: str
    why: str
    bytes: int


@dataclass(frozen=True)
class Collected:
    """What was deleted, or would be.

    Attributes:
        items: In the order of deletion.
        busy: Models that are being built: theirs was left alone.
        held_bytes: What the catalog and the Mipgate home hold afterwards.
        quota_bytes: What they may hold, or None.
    """

    items: list[Item]
    busy: list[str]
    held_bytes: int
    quota_bytes: int | None

    @property
    def freed_bytes(self) -> int:
        """What all of it freed."""
        return sum(item.bytes for item in self.items)

    @property
    def excess_bytes(self) -> int:
        """What is held beyond the quota, 0 when it is met."""
        return 0 if self.quota_bytes is None else max(0, self.held_bytes - self.quota_bytes)


@dataclass(frozen=True)
class _Victim:
    """An item with the time that it was used last, in seconds, and the way to delete it."""

    item: Item
    used: float
    delete: Callable[[], object]


def collect(
    catalog: Catalog,
    now: float,
    *,
    unused_s: float = 30 * _DAY_S,
    quota_bytes: int | None = None,
    dry_run: bool = False,
) -> Collected:
    """Deletes what nothing refers to, what was long not used, and for a quota the oldest of what may go.

    Args:
        catalog: The models.
        now: Seconds since the epoch.
        unused_s: Age from which checkpoints, searches and replicates count as not used.
        quota_bytes: What catalog and home may hold together; None for as much as they do.
        dry_run: Only says what would be deleted.
    """
    held = catalog.root, catalog.staging, mipgate_home()
    before = bytes_of(*held)
    unnamed, left_alone = catalog.collect(dry_run=dry_run)
    busy = sorted({*left_alone, *catalog.building()})
    items = [Item(tag, "nothing refers to it", size) for tag, size in unnamed.items()]
    cached = [] if busy else list(_cached(now))  # a build may go on from any of them
    doomed = [] if busy else list(_stale(now, catalog.staging))
    doomed += [each for each in cached if now - each.used > unused_s]
    if quota_bytes is not None:
        left = before - sum(item.bytes for item in items) - sum(each.item.bytes for each in doomed)
        givable = [each for each in (*_retired(catalog, busy), *cached) if each not in doomed]
        for victim in sorted(givable, key=lambda each: each.used):
            if left <= quota_bytes:
                break
            doomed.append(victim)
            left -= victim.item.bytes
    for victim in doomed:
        items.append(victim.item)
        if not dry_run:
            victim.delete()
    freed = sum(item.bytes for item in items)
    left = before - freed if dry_run else bytes_of(*held)
    return Collected(items, busy, left, quota_bytes)


def _stale(now: float, staging: Path) -> Iterator[_Victim]:
    """What processes left behind that ended a day ago or earlier."""
    home = mipgate_home()
    left = (
        path
        for folder in (_CHECKPOINTS, _REFERENCES)
        for ending in _LEFT_OVER
        for path in (home / folder).glob(f"*{ending}")
    )
    unfinished = (
        folder.glob(pattern)
        for folder, pattern in (
            (staging, "*"),
            (home / _WORK, "*"),
            (home / MEASURED, "*"),
            (home / _REGISTERED, _STAGED),
        )
    )
    for path in (*chain.from_iterable(unfinished), *left):
        victim = _of_home(path, now)
        if now - victim.used > _DAY_S:
            yield victim


def _cached(now: float) -> Iterator[_Victim]:
    """Trainings, searches, replicates and superseded references that nobody is at."""
    home = mipgate_home()
    tried = [path for name in _TRIED for path in (home / name).glob("*")]
    trained = [*(home / _CHECKPOINTS).glob("*.safetensors"), *(home / _REFERENCES).glob("*.checkpoint")]
    for path in (*trained, *_superseded(home), *tried):
        victim = _of_home(path, now)
        if now - victim.used > _HOUR_S:
            yield victim


def _superseded(home: Path) -> Iterator[Path]:
    """Trained references of each model, without the one that was used last."""
    of_model: defaultdict[str, list[Path]] = defaultdict(list)
    for path in (home / _REFERENCES).glob("*.safetensors"):
        of_model[path.stem.rpartition("-")[0]].append(path)
    for paths in of_model.values():
        yield from sorted(paths, key=_used)[:-1]


def _retired(catalog: Catalog, busy: list[str]) -> Iterator[_Victim]:
    """Artifacts of retired builds that no Bento packs and no other build is measured against."""
    packed = {tag for tags in bento_references().values() for tag in tags}
    for model in catalog.models():
        if model in busy:
            continue
        try:
            card = catalog.card(model)
        except CatalogError as error:
            log.error("retired builds of %s are kept: %s", model, error)
            continue
        reference = card.find(card.spec.reference).id if card.entries else None
        for entry in card.entries:
            may_go = entry.life is Life.RETIRED and entry.id != reference and entry.id.tag not in packed
            if may_go and (stored := catalog.find(entry.id)) is not None:
                item = Item(entry.id.tag, "retired", bytes_of(stored.folder))
                yield _Victim(item, _used(stored.folder), partial(catalog.forget, entry.id))


def _of_home(path: Path, now: float) -> _Victim:
    used = _used(path)
    why = f"last used {(now - used) / _DAY_S:.0f} days ago"
    home = mipgate_home()
    name = str(path.relative_to(home) if path.is_relative_to(home) else path)
    return _Victim(Item(name, why, bytes_of(path)), used, partial(_delete, path))


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)  # another collection may be at it
    else:
        path.unlink(missing_ok=True)


def _used(path: Path) -> float:
    """When a file, or any in a folder, was written or read last."""
    found = [each.stat() for each in (path, *path.rglob("*")) if each.is_file() or each == path]
    return max(max(stat.st_mtime, stat.st_atime if not path.is_dir() else 0.0) for stat in found)
