"""Profiles variants on this host: each on every runtime, one at a time, each in a process of its own.

A measurement takes minutes and is kept until it is published, for a day at most: what was measured by a build
that was cut off is not measured again.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path

from filelock import FileLock

from variants import document
from variants.card import Card
from variants.catalog import SAMPLES_FILE, VALIDATION_FILE, Catalog, StoredVariant
from variants.home import subfolder
from variants.host import Host
from variants.profile import Profile
from variants.profiling import ProfilingJob
from variants.progress import Reporter
from variants.runtime import Runtime, available_runtimes, reference_runtime
from variants.store import CatalogError, sha256
from variants.variant import Life
from variants.worker import WorkerError, run

log = logging.getLogger("mipgate.profiler")
# A runtime that hangs on one artifact would keep all others from being measured, as one measures at a time.
_TIMEOUT_S = 7200.0

MEASURED = "measured"
KEPT_S = 24 * 3600.0


@dataclass
class Measurements:
    """Profiles by `recipe@build`, and why runtimes refused one, by `recipe@build` and runtime.

    `kept` are the files that hold the profiles until they are published.
    """

    profiles: dict[str, list[Profile]] = field(default_factory=dict)
    refusals: dict[str, dict[str, str]] = field(default_factory=dict)
    kept: list[Path] = field(default_factory=list)

    def published(self) -> None:
        """Deletes what was kept for the case that this would not come."""
        for path in self.kept:
            path.unlink(missing_ok=True)


@dataclass(frozen=True)
class Bench:
    """What variants of one model are judged with.

    Attributes:
        metric: Name of the quality metric.
        reference: The reference's artifact.
        validation: File of the rows that selection reads.
        test: File of the rows that are only reported.
    """

    metric: str
    reference: StoredVariant
    validation: Path
    test: Path

    @cached_property
    def digest(self) -> str:
        """Tells what a quality is about from what another is."""
        facts = self.metric, self.reference.variant.id.tag, sha256(self.validation), sha256(self.test)
        return hashlib.sha256(repr(facts).encode()).hexdigest()[:24]

    def has_judged(self, profiles: Sequence[Profile]) -> bool:
        """Whether these profiles' qualities are about the same as its own."""
        return bool(profiles) and all(each.judged_with == self.digest for each in profiles)


def profile_variants(
    bench: Bench, stored: Sequence[StoredVariant], host: Host, progress: Reporter, *, again: bool = False
) -> Measurements:
    """Measures each variant on each runtime of this host.

    One measurement runs at a time on the whole host, whatever else builds: it would measure its neighbours.

    Args:
        bench: What they are judged with.
        stored: The variants.
        host: This host.
        progress: Receives the progress.
        again: Whether to measure what was measured not long ago.
    """
    with tempfile.TemporaryDirectory(dir=subfolder("work")) as shared:
        return _profile_all(bench, stored, host, progress, Path(shared), again)


def _profile_all(
    bench: Bench,
    stored: Sequence[StoredVariant],
    host: Host,
    progress: Reporter,
    shared: Path,
    again: bool,
) -> Measurements:
    measurements = Measurements()
    runtimes = available_runtimes(host)
    for item in stored:
        version = item.variant.id.version
        allowed = [r for r in runtimes if _is_allowed(r, item, bench.reference)]
        for number, runtime in enumerate(allowed):
            progress.update(item.variant.id.recipe, f"profiling on {runtime}", number / len(allowed))
            try:
                path = _kept_at(bench, item, runtime, host)
                profile = None if again else _kept(path)
                if profile is None:
                    measured = _measure(bench, item, runtime, host, shared)
                    profile = replace(measured, judged_with=bench.digest)
                    _keep(path, profile)
                measurements.kept.append(path)
            except WorkerError as error:
                log.warning("%s does not run on %s: %s", item.variant.id, runtime, error)
                measurements.refusals.setdefault(version, {})[str(runtime)] = str(error)
            else:
                measurements.profiles.setdefault(version, []).append(profile)
        profiles = measurements.profiles.get(version, [])
        progress.finish(item.variant.id.recipe, f"profiled on {len(profiles)} of {len(allowed)} runtimes")
    return measurements


def _kept_at(bench: Bench, item: StoredVariant, runtime: Runtime, host: Host) -> Path:
    """Where a measurement is kept, by all that it depends on."""
    facts = host.fingerprint, str(runtime), bench.digest, item.variant.id.tag
    return subfolder(MEASURED) / f"{hashlib.sha256(repr(facts).encode()).hexdigest()[:24]}.json"


def _kept(path: Path) -> Profile | None:
    """A measurement of today, if it can be read."""
    try:
        return document.read(Profile, path) if time.time() - path.stat().st_mtime < KEPT_S else None
    except (FileNotFoundError, document.DocumentError):
        return None


def _keep(path: Path, profile: Profile) -> None:
    fresh = path.with_suffix(f".{os.getpid()}")
    try:
        document.write(fresh, profile)
        fresh.replace(path)
    except OSError as error:  # it is published all the same, when all are measured
        log.warning("a measurement is kept in memory only: %s", error)


def profile_model(
    catalog: Catalog,
    model: str,
    host: Host,
    progress: Reporter,
    *,
    again: bool,
    doubted: Mapping[str, Sequence[Profile]] | None = None,
) -> Card:
    """Profiles a registered model's variants on this host and publishes the result.

    Args:
        catalog: Where the model is.
        model: Its name.
        host: This host.
        progress: Receives the progress.
        again: Whether variants that have profiles of this host are measured once more. Those that were held
            against another reference, other rows or by another metric are in any case; retired ones are not.
        doubted: Profiles by `recipe@build` that are to be replaced, unless someone did so meanwhile.

    Returns:
        The card with the profiles, even where the store cannot be written.

    Raises:
        CatalogError: The model is not registered, or its reference cannot be read.
    """
    with FileLock(subfolder("locks") / f"profiling-{model}.lock"):
        card = catalog.card(model)  # another worker may have profiled while this one waited for the lock
        known = card.measured_on(host).profiles
        replaced = {v for v, profiles in (doubted or {}).items() if list(profiles) == known.get(v)}
        trusted = set() if again else known.keys() - replaced
        doubt = again or bool(replaced)
        named = {e.id.version for e in card.entries if e.life is not Life.RETIRED} | replaced
        return _profile_missing(catalog, card, named - trusted, host, progress, again=doubt)


def misjudged(catalog: Catalog, card: Card, host: Host) -> dict[str, list[Profile]]:
    """Profiles of a host, by `recipe@build`, that are about another reference, other rows or another metric.

    Raises:
        CatalogError: The reference cannot be read.
    """
    bench, known = _bench(catalog, card), card.measured_on(host).profiles
    wanted = {entry.id.version for entry in card.entries if entry.life is not Life.RETIRED}
    return {
        version: profiles
        for version, profiles in known.items()
        if version in wanted and not bench.has_judged(profiles)
    }


def _profile_missing(
    catalog: Catalog, card: Card, missing: Set[str], host: Host, progress: Reporter, *, again: bool
) -> Card:
    bench = _bench(catalog, card)
    missing |= misjudged(catalog, card, host).keys()
    wanted = [entry for entry in card.entries if entry.failure is None and entry.id.version in missing]
    stored = []
    for entry in wanted:
        try:
            stored.append(catalog.open(entry.id))
        except CatalogError as error:
            log.error("%s is not profiled: %s", entry.id, error)
    if not stored:
        return card
    measured = profile_variants(bench, stored, host, progress, again=again)
    try:
        catalog.change(card.spec.model, lambda c: c.with_profiles(host, measured.profiles, measured.refusals))
    except OSError as error:
        log.warning("the profiles of %s are kept in memory only: %s", card.spec.model, error)
    else:
        measured.published()
    return card.with_profiles(host, measured.profiles, measured.refusals)


def _bench(catalog: Catalog, card: Card) -> Bench:
    model = card.spec.model
    return Bench(
        metric=card.spec.metric,
        reference=catalog.open(card.find(card.spec.reference).id),
        validation=catalog.card_file(model, VALIDATION_FILE),
        test=catalog.card_file(model, SAMPLES_FILE),
    )


def _is_allowed(runtime: Runtime, item: StoredVariant, reference: StoredVariant) -> bool:
    """The reference runs at true f32 only, or every comparison with it would be false."""
    return runtime.precision == "f32" or item.variant.id != reference.variant.id


def _measure(bench: Bench, item: StoredVariant, runtime: Runtime, host: Host, shared: Path) -> Profile:
    job = ProfilingJob(
        artifact=item.model_path,
        runtime=runtime,
        metric=bench.metric,
        reference=bench.reference.model_path,
        reference_runtime=reference_runtime(host),
        validation=bench.validation,
        test=bench.test,
        golden=item.golden_path,
        folder=shared,
    )
    lock = FileLock(subfolder("locks") / "profile.lock")
    with lock, tempfile.TemporaryDirectory(dir=subfolder("work")) as folder:
        return run("variants.profiling", job, Profile, Path(folder), _silent, timeout_s=_TIMEOUT_S)


def _silent(what: str, fraction: float) -> None:
    """A measurement of one runtime is one step; it tells nothing of its own parts."""
