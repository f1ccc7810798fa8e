"""Turns a spec into variants: prepare, compress, verify, score, publish, profile, and put on the card.

The parent stays small and imports no torch: each variant is compressed in a child process, so that a crash
or an out-of-memory costs that variant and says so. Artifacts are published as they are finished, which
makes an interrupted build resumable; the card that makes them visible is published once, at the end.
"""

from __future__ import annotations

import json
import logging
import shutil
import tempfile
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from pathlib import Path

from compression.recipe import Recipe
from variants import document
from variants.build_job import CALIBRATION_FILE, Job, Outcome, Planned, Prepared, Result
from variants.card import Card, Entry, Failure
from variants.catalog import (
    DISTRIBUTIONS_FILE,
    GOLDEN_FILE,
    SAMPLES_FILE,
    VALIDATION_FILE,
    Catalog,
    StoredVariant,
    card_files,
    model_file,
)
from variants.distributions import Distributions, distributions, of_answers, of_inputs
from variants.home import subfolder
from variants.host import Host
from variants.labels import NAME as LABELS
from variants.profiler import Bench, Measurements, profile_variants
from variants.profiling import predict
from variants.progress import Reporter, for_task
from variants.runtime import open_session, reference_runtime
from variants.samples import read_split
from variants.scorecard import Scorecard
from variants.serving_spec import ServingSpec
from variants.store import CatalogError, DamagedArtifactError, sha256
from variants.transforms import open_transforms
from variants.variant import Life, Status, Variant, VariantId
from variants.worker import WorkerError, run

log = logging.getLogger("mipgate.build")

_PREPARE = "prepare"
_WORKER = "variants.build_worker"


class BuildError(Exception):
    """The build as a whole failed; nothing was published."""


@dataclass(frozen=True)
class Built:
    """What a build did.

    Attributes:
        card: The model's card afterwards.
        ids: What each recipe is, whether it was built now or before; those that failed have no artifact.
        fresh: Recipes that were built now.
        cached: Recipes that were found in the store by their build key.
        failures: Why the others have no artifact, by recipe.
    """

    card: Card
    ids: dict[str, VariantId]
    fresh: list[str]
    cached: list[str]
    failures: dict[str, Failure]


def build(
    spec_name: str,
    catalog: Catalog,
    host: Host,
    progress: Reporter,
    *,
    recipes: Sequence[str] = (),
    added: Sequence[Recipe] = (),
    jobs: int = 1,
    timeout_s: float | None = None,
    profiled: bool = True,
    released: bool = True,
) -> Built:
    """Builds a model's recipes and publishes what came out.

    Args:
        spec_name: A model of the zoo, or `module:attribute`.
        catalog: Where variants are published.
        host: This host, which they are profiled on.
        progress: Receives the progress.
        recipes: Only these, and the reference; empty for the spec's defaults, unless recipes are added.
        added: Recipes to build beside the spec's own, or in the place of one of the same name.
        jobs: How many variants are compressed side by side.
        timeout_s: How long one variant may take; None for what its recipe or the spec says.
        profiled: Whether what has no profile of this host gets one now; else who serves it measures first.
        released: Whether a model's first build gets traffic; else only its reference does.

    Raises:
        BuildError: The spec is wrong, the reference could not be built, or the card not be written.
    """
    with tempfile.TemporaryDirectory(dir=subfolder("work")) as work:
        folder = Path(work)
        only = (*recipes, *(recipe.name for recipe in added))
        job = Job(spec_name, folder, only=only, added=tuple(added))
        prepared = _prepare(job, progress)
        builds = _Builds(job, prepared, catalog, folder, progress, timeout_s, released)
        with catalog.build_lock(prepared.spec.model):
            _require_same_requests(_card_in_force(catalog, prepared.spec.model), prepared.spec)
            builds.run(jobs, threads=max(1, host.cores // jobs))
            try:
                card = _publish_card(catalog, prepared, builds, host, folder, profiled)
            except OSError as error:
                raise BuildError(
                    f"the card was not written: {error}. What was built is kept; make space and build again."
                ) from error
    ids = {plan.recipe: builds.id(plan) for plan in prepared.plans}
    return Built(card, ids, builds.fresh, builds.cached, builds.failures)


@dataclass
class _Builds:
    """The variants of one build on their way into the store."""

    job: Job
    prepared: Prepared
    catalog: Catalog
    folder: Path
    progress: Reporter
    timeout_s: float | None
    released: bool = True
    stored: dict[str, StoredVariant] = field(default_factory=dict)
    failures: dict[str, Failure] = field(default_factory=dict)
    fresh: list[str] = field(default_factory=list)
    cached: list[str] = field(default_factory=list)

    def id(self, plan: Planned) -> VariantId:
        """The identity of what a plan builds."""
        return VariantId(self.prepared.spec.model, plan.recipe, plan.build)

    def run(self, jobs: int, threads: int) -> None:
        """Finds or builds every plan, `jobs` at a time with so many threads each."""
        with ThreadPoolExecutor(max_workers=jobs) as pool:
            try:
                for future in [pool.submit(self._one, plan, threads) for plan in self.prepared.plans]:
                    future.result()
            except BaseException:  # an interrupt reaches the running children by itself; start no others
                pool.shutdown(wait=False, cancel_futures=True)
                raise
        reference = self.prepared.spec.reference
        if failure := self.failures.get(reference):
            raise BuildError(f'the reference "{reference}" was not built: {failure.reason}')

    def _one(self, plan: Planned, threads: int) -> None:
        if plan.refused is not None:
            self._fail(plan, plan.refused)
            return
        try:
            self.stored[plan.recipe] = self.catalog.open(self.id(plan))
        except DamagedArtifactError:
            self._build(plan, threads)
        else:
            self.cached.append(plan.recipe)
            self.progress.finish(plan.recipe, f"cached {plan.build}")

    def _build(self, plan: Planned, threads: int) -> None:
        folder = self.folder / plan.recipe
        try:
            folder.mkdir()
            outcome = self._compress(plan, folder, threads)
            if outcome.scorecard is None:
                self._fail(plan, outcome)
            else:
                self._publish(plan, folder, outcome.scorecard)
        except OSError as error:  # a full disk, above all; what was staged is gone
            self._fail(plan, Outcome(failed=f"it could not be stored: {error}. Free space and build again."))
        finally:
            shutil.rmtree(folder, ignore_errors=True)  # the next variant needs the space

    def _compress(self, plan: Planned, folder: Path, threads: int) -> Outcome:
        job = replace(
            self.job, folder=folder, recipe=plan.recipe, data=plan.lineage.data, source=plan.lineage.source
        )
        report, limit = for_task(self.progress, plan.recipe), self.timeout_s or plan.timeout_s
        try:
            outcome = run(_WORKER, job, Result, folder, report, threads, limit).outcome
        except WorkerError as error:
            return Outcome(failed=str(error))
        return outcome or Outcome(failed="the build's process reported nothing")

    def _publish(self, plan: Planned, folder: Path, scorecard: Scorecard) -> None:
        created = datetime.now(UTC).isoformat(timespec="seconds")
        variant = Variant(self.id(plan), plan.steps, plan.lineage, created)
        files = {path.name: path for path in (model_file(folder), folder / GOLDEN_FILE)}
        self.stored[plan.recipe] = self.catalog.publish(variant, scorecard, files)
        self.fresh.append(plan.recipe)
        self.progress.finish(plan.recipe, f"built {plan.build}, {scorecard.bytes:,} bytes")

    def _fail(self, plan: Planned, outcome: Outcome) -> None:
        status = Status.SKIPPED if outcome.skipped else Status.FAILED
        reason = outcome.skipped or outcome.failed or "no reason was given"
        self.failures[plan.recipe] = Failure(status, reason)
        self.progress.finish(plan.recipe, f"{status.value}: {reason}")


def _prepare(job: Job, progress: Reporter) -> Prepared:
    try:
        prepared = run(_WORKER, job, Result, job.folder, for_task(progress, _PREPARE)).prepared
    except WorkerError as error:
        raise BuildError(f"{job.spec} cannot be prepared: {error}") from error
    if prepared is None:
        raise BuildError(f"{job.spec} cannot be prepared: its process reported nothing")
    progress.finish(_PREPARE, "reference and data are ready")
    return prepared


def _publish_card(
    catalog: Catalog, prepared: Prepared, builds: _Builds, host: Host, folder: Path, profiled: bool
) -> Card:
    """Profiles what has no profile of this host, then publishes the card if anything changed.

    Measuring takes minutes: the card is locked only when that is done, and may be another one by then.
    """
    model = prepared.spec.model
    card = _with_entries(_card_in_force(catalog, model) or Card(prepared.spec), prepared, builds)
    measured = _profile_missing(card, builds, host, folder) if profiled else Measurements()
    _write_distributions(catalog, prepared, builds, host, folder)
    with catalog.lock(model):
        before = _card_in_force(catalog, model)
        card = _with_entries(before or Card(prepared.spec), prepared, builds)
        card = card.with_profiles(host, measured.profiles, measured.refusals)
        # What was built in the place of a damaged artifact changes no word: gateways look again all the same.
        if before is None or card != before or builds.fresh or not _same_data(catalog, before, folder):
            catalog.register(card, folder)
    measured.published()
    return card


def _card_in_force(catalog: Catalog, model: str) -> Card | None:
    try:
        return catalog.card(model)
    except CatalogError:  # not registered, or no card of it is intact: start anew
        return None


def _require_same_requests(card: Card | None, spec: ServingSpec) -> None:
    """Refuses to build beside released variants what reads other requests: all of a model read the same.

    Raises:
        BuildError: They differ in signature, or in the transform before the model.
    """
    if card is None or not card.is_released:
        return
    ours, theirs = (
        [(t.name, json.dumps(t.settings, sort_keys=True)) for t in each.transforms if t.name != LABELS]
        for each in (spec, card.spec)
    )
    if spec.signature != card.spec.signature or ours != theirs:
        what = "the transform before them" if spec.signature == card.spec.signature else "their signature"
        raise BuildError(
            f"{what} is another than that of {spec.model}'s released variants, which could not answer any "
            "more. Give the model another name, or take those out of traffic first: `mipgate retire`."
        )


def _with_entries(card: Card, prepared: Prepared, builds: _Builds) -> Card:
    """The first build of a model releases its variants, if it may; later ones arrive as candidates."""
    is_first = not card.is_released
    card = Card(prepared.spec, card.entries, card.hosts)
    for plan in prepared.plans:
        failure = builds.failures.get(plan.recipe)
        known = next((entry for entry in card.entries if entry.id == builds.id(plan)), None)
        if known is None or known.failure != failure:
            gets_traffic = is_first and (builds.released or plan.recipe == prepared.spec.reference)
            life = Life.RELEASED if gets_traffic and not failure else Life.CANDIDATE
            card = card.with_entry(Entry(builds.id(plan), life, plan.steps, failure))
    return card


def _profile_missing(card: Card, builds: _Builds, host: Host, folder: Path) -> Measurements:
    known = card.measured_on(host).profiles
    reference = _baseline(card, builds)
    bench = Bench(
        card.spec.metric, reference, validation=folder / VALIDATION_FILE, test=folder / SAMPLES_FILE
    )
    fresh = {item.variant.id.version: item for item in builds.stored.values()}
    missing = [item for version, item in fresh.items() if not bench.has_judged(known.get(version, ()))]
    for entry in card.entries:  # those of earlier builds are compared with these: by the same measure
        profiles = known.get(entry.id.version, ())
        is_old = profiles and entry.id.version not in fresh and entry.life is not Life.RETIRED
        if is_old and entry.failure is None and not bench.has_judged(profiles):
            try:
                missing.append(builds.catalog.open(entry.id))
            except CatalogError as error:  # it is refused wherever it is loaded
                log.error("%s is not judged again: %s", entry.id, error)
    return profile_variants(bench, missing, host, builds.progress) if missing else Measurements()


def _baseline(card: Card, builds: _Builds) -> StoredVariant:
    """What qualities are ratios over: the reference that is released, so that all of a card compare."""
    released = card.find(builds.prepared.spec.reference).id
    own = builds.stored[builds.prepared.spec.reference]
    return own if released == own.variant.id else builds.catalog.open(released)


def _write_distributions(
    catalog: Catalog, prepared: Prepared, builds: _Builds, host: Host, folder: Path
) -> None:
    """What the calibration split and each variant's answers to it look like; what is known is kept."""
    spec, path = prepared.spec, folder / CALIBRATION_FILE
    split, digest = read_split(path), sha256(path)
    files = {name: folder / name for name in spec.files}
    unknown = open_transforms(spec.transforms, spec.signature, files).unknown_tokens
    known = _known_distributions(catalog, spec.model)
    answers = dict(known.answers) if known is not None and known.rows == digest else {}
    for stored in builds.stored.values():
        if stored.variant.id.version not in answers:
            outputs = predict(open_session(stored.model_path, reference_runtime(host)), split)
            answers[stored.variant.id.version] = distributions(of_answers(spec, outputs), len(split))
    inputs = distributions(of_inputs(spec, split.inputs, unknown), len(split))
    document.write(folder / DISTRIBUTIONS_FILE, Distributions(digest, inputs, answers, unknown))


def _known_distributions(catalog: Catalog, model: str) -> Distributions | None:
    try:
        return document.read(Distributions, catalog.card_file(model, DISTRIBUTIONS_FILE))
    except (CatalogError, document.DocumentError):  # none, or none that this version reads: made anew
        return None


def _same_data(catalog: Catalog, card: Card, folder: Path) -> bool:
    known = {name: catalog.card_file(card.spec.model, name) for name in card_files(card.spec)}
    return all(path.is_file() and sha256(path) == sha256(folder / name) for name, path in known.items())
