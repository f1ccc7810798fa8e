"""The models that this worker has loaded: sessions, readers of requests, and what the router may choose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Hashable, Mapping
from dataclasses import dataclass, field
from datetime import datetime

from compression.signature import Array, Signature
from service.errors import NotFoundError, UnavailableError
from service.metrics import Metrics
from service.protocol import RequestDecoder
from service.routing import Candidate, SloReader
from service.statistics import Statistics
from variants.assessment import Standing, assess, verify_artifacts
from variants.card import Card
from variants.catalog import Catalog, StoredVariant
from variants.document import DocumentError
from variants.golden import deviation, is_trusted, tolerance
from variants.host import Host
from variants.profile import Profile
from variants.profiler import profile_model
from variants.progress import Lines
from variants.runtime import Runtime, RuntimeUnavailableError, open_session
from variants.samples import read_golden
from variants.serving_spec import ServingSpec
from variants.store import CatalogError
from variants.transform import DeclarationError
from variants.transforms import Transforms, open_transforms
from variants.variant import Life, Status

log = logging.getLogger("mipgate.fleet")

_WARM_UP_ROWS = (1, 1, 8)
_TABLE_ROWS = 256


class LoadedVariant:
    """A variant with an open session: what the scheduler runs."""

    def __init__(self, standing: Standing, spec: ServingSpec, metrics: Metrics, max_batch_rows: int) -> None:
        """Opens and warms the session.

        Raises:
            RuntimeUnavailableError: The runtime that serves it refuses it now.
        """
        if standing.profile is None or standing.stored is None:
            raise RuntimeUnavailableError(standing.reason)
        self.id = standing.entry.id
        self.key = str(self.id)
        self.version = self.id.version
        self.name = self.id.recipe
        self.standing = standing
        self.profile: Profile = standing.profile
        self.max_batch_rows = max_batch_rows
        self.statistics = Statistics()
        runtime = Runtime(self.profile.runtime, self.profile.precision, self.profile.threads)
        self._session = open_session(standing.stored.model_path, runtime)
        self._reorder = _positions(self._session.output_names, [spec.name for spec in spec.signature.outputs])
        inputs = spec.signature.inputs
        self._free_inputs = [s.name for s in inputs if any(isinstance(axis, str) for axis in s.shape[1:])]
        self._predictions = [self.profile.predict_ms(rows) for rows in range(1, _TABLE_ROWS + 1)]
        labels = (self.id.model, self.name)
        self._inference_duration = metrics.tallies.histogram(metrics.inference_duration, *labels)
        self._batch_size = metrics.tallies.histogram(metrics.batch_size, *labels)
        self.queue_duration = metrics.tallies.histogram(metrics.queue_duration, *labels)
        self.candidate = Candidate(self.version, self.name, standing.ratio, self.predict_ms)
        self.deviation = self._replay(standing.stored, [spec.name for spec in spec.signature.outputs])

    def _replay(self, stored: StoredVariant, names: list[str]) -> float:
        """Runs the golden rows; the first request does not pay for lazy initialization then.

        Returns:
            The deviation from what the artifact answered where it was built.
        """
        inputs, golden = read_golden(stored.golden_path)
        for rows in _WARM_UP_ROWS:
            self.run({name: array[:rows] for name, array in inputs.items()})
        return deviation(dict(zip(names, self.run(inputs), strict=True)), golden)

    @property
    def is_trusted(self) -> bool:
        """Whether it answers the golden rows as it did where its quality was measured."""
        stored = self.standing.stored
        allowed = tolerance(self.profile.precision, stored.scorecard.weights if stored else {})
        return is_trusted(self.deviation, self.profile.golden_deviation, allowed)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch; outputs `(rows, ...)` in the order of the signature."""
        outputs = self._session.run(inputs)
        return outputs if self._reorder is None else [outputs[position] for position in self._reorder]

    def predict_ms(self, rows: int) -> float:
        """Predicted time of a batch."""
        return self._predictions[rows - 1] if rows <= _TABLE_ROWS else self.profile.predict_ms(rows)

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        """Requests share a batch when all axes but the first have the same lengths."""
        return tuple(inputs[name].shape for name in self._free_inputs) if self._free_inputs else None

    def executed(self, rows: int, requests: int, seconds: float) -> None:
        """Counts a batch that ran."""
        self.statistics.executed(rows, seconds)
        self._inference_duration.observe(seconds)
        self._batch_size.observe(rows)


@dataclass
class LoadedModel:
    """A model as this worker serves it.

    Attributes:
        card: The card that it was loaded from.
        decoder: Reads its requests.
        signature: Its inputs and outputs, those that transforms add behind its own.
        transforms: What is done before and after it.
        slo: Reads what its requests ask for.
        variants: By `recipe@build`, and by recipe for the build that a bare name means.
        candidates: What the router may choose from.
        refused: Why a variant does not serve, by recipe and `recipe@build`.
        doubted: Profiles by `recipe@build` whose quality the golden rows call in question.
        inflight: Requests that arrived and are not answered yet.
    """

    card: Card
    decoder: RequestDecoder
    slo: SloReader
    signature: Signature
    transforms: Transforms
    variants: dict[str, LoadedVariant] = field(default_factory=dict)
    candidates: list[Candidate] = field(default_factory=list)
    refused: dict[str, str] = field(default_factory=dict)
    doubted: dict[str, list[Profile]] = field(default_factory=dict)
    inflight: int = 0

    @property
    def name(self) -> str:
        """The registered name."""
        return self.card.spec.model

    @property
    def versions(self) -> list[str]:
        """Names of the variants that answer: recipes in the card's order, without repetition."""
        return list(dict.fromkeys(variant.name for variant in self.variants.values()))

    def pinned(self, version: str) -> LoadedVariant:
        """The variant of a recipe or exact build.

        Raises:
            NotFoundError: There is none.
            UnavailableError: There is, but it is refused on this host.
        """
        variant = self.variants.get(version)
        if variant is not None:
            return variant
        if reason := self.refused.get(version):
            raise UnavailableError(
                f"{self.name}/{version} is refused: {reason}. Use another variant or a tier.", "refused", 30.0
            )
        raise NotFoundError(
            f'{self.name} has no variant "{version[:80]}". It has {", ".join(self.versions)}.'
        )


class Fleet:
    """All models of one worker."""

    def __init__(self, catalog: Catalog, host: Host, metrics: Metrics, max_batch_rows: int) -> None:
        self._catalog = catalog
        self._host = host
        self._metrics = metrics
        self._max_batch_rows = max_batch_rows
        self._seen: dict[str, str] = {}
        self._unloaded: set[str] = set()
        self._measured_again: set[str] = set()
        self.models: dict[str, LoadedModel] = {}
        self.generation = 0  # counts loads and unloads

    @property
    def is_pinned(self) -> bool:
        """Whether it serves what a Bento packed, whatever is released later."""
        return self._catalog.is_pinned

    def registered(self) -> list[str]:
        """Names of all models of the catalog, loaded or not."""
        return self._catalog.models()

    def load_all(self) -> None:
        """Loads every registered model that is not loaded from its newest card.

        One that cannot be loaded is logged and left out; whatever it serves already, it serves on.
        """
        for name in self.outdated():
            try:
                self.load(name)
            except (CatalogError, DocumentError) as error:
                log.error("model %s is not loaded: %s", name, error)

    def outdated(self) -> list[str]:
        """Models whose newest card was not looked at yet; unloaded ones stay unloaded."""
        wanted = [name for name in self._catalog.models() if name not in self._unloaded]
        return [name for name in wanted if self._catalog.card_tag(name) != self._seen.get(name)]

    def load(self, name: str) -> LoadedModel:
        """Loads a model, or loads it anew; requests go to the new one once it is ready.

        A model without profiles of this host is profiled first; so is, once, a variant that answers the
        golden rows otherwise than when its quality was measured.

        Raises:
            CatalogError: It is not registered, or its card is damaged.
        """
        self._seen[name] = self._catalog.card_tag(name)
        card = self._catalog.card(name)
        if card.hosts.get(self._host.fingerprint) is None:
            log.warning("%s was not profiled on this host (%s); profiling", name, self._host.fingerprint)
            card = profile_model(self._catalog, name, self._host, Lines(), again=False)
        model = self._open(card)
        doubted = {v: p for v, p in model.doubted.items() if f"{name}/{v}" not in self._measured_again}
        if doubted:
            log.warning("quality of %s of %s is measured again", ", ".join(doubted), name)
            self._measured_again |= {f"{name}/{version}" for version in doubted}
            model = self._open(
                profile_model(self._catalog, name, self._host, Lines(), again=False, doubted=doubted)
            )
        self.models[name] = model
        self._unloaded.discard(name)
        self.generation += 1
        log.info("%s serves %s", name, ", ".join(model.versions) or "nothing")
        return model

    def _open(self, card: Card) -> LoadedModel:
        """The model with a session for every variant that can serve."""
        model = _prepared(card, self._open_transforms(card.spec))
        for standing in assess(card, verify_artifacts(self._catalog, card), self._host):
            if standing.entry.life is not Life.RETIRED:
                self._add(model, standing)
            elif card.find(standing.entry.id.recipe) == standing.entry:
                self._tell(standing, None)
        return model

    def _open_transforms(self, spec: ServingSpec) -> Transforms:
        files = {name: self._catalog.card_file(spec.model, name) for name in spec.files}
        try:
            return open_transforms(spec.transforms, spec.signature, files)
        except DeclarationError as error:
            raise CatalogError(f"the transforms of {spec.model} cannot be opened: {error}") from error

    def unload(self, name: str) -> None:
        """Stops serving a model.

        Raises:
            NotFoundError: It is not loaded.
        """
        if self.models.pop(name, None) is None:
            raise NotFoundError(f'model "{name[:80]}" is not loaded. Loaded are {", ".join(self.models)}.')
        self._unloaded.add(name)
        self.generation += 1

    def find(self, name: str) -> LoadedModel:
        """The loaded model of this name.

        Raises:
            NotFoundError: There is none.
        """
        model = self.models.get(name)
        if model is None:
            known = ", ".join(self.models) or "none"
            raise NotFoundError(f'unknown model "{name[:80]}". This gateway serves {known}.')
        return model

    def _add(self, model: LoadedModel, standing: Standing) -> None:
        entry = standing.entry
        loaded = None
        reason = standing.reason
        if standing.status in (Status.SERVING, Status.DOMINATED):
            try:
                loaded = LoadedVariant(standing, model.card.spec, self._metrics, self._max_batch_rows)
            except RuntimeUnavailableError as error:
                reason = str(error)
            except Exception as error:  # whatever is wrong with one variant, the others serve
                log.exception("%s cannot be loaded", entry.id)
                reason = f"it cannot be loaded ({type(error).__name__}); the log has the details"
        if loaded is not None and not loaded.is_trusted:
            model.doubted[loaded.version] = list(
                model.card.hosts[self._host.fingerprint].profiles[loaded.version]
            )
            reason = (
                f"golden rows differ by {loaded.deviation:.3g} of the outputs' spread, and its quality was "
                f"measured with less; run `mipgate profile {model.name}`"
            )
            loaded = None
        names = [entry.id.version]
        if model.card.find(entry.id.recipe).id == entry.id:
            names.append(entry.id.recipe)
            lost = loaded is None and standing.stored is not None
            self._tell(standing, Status.REFUSED if lost else standing.status)
        if loaded is None:
            log.error("%s is refused: %s", entry.id, reason)
            model.refused |= dict.fromkeys(names, reason)
            return
        model.variants |= dict.fromkeys(names, loaded)
        if standing.routable:
            model.candidates.append(loaded.candidate)

    def _tell(self, standing: Standing, actual: Status | None) -> None:
        """Sets the gauges of the variant that a recipe's bare name means; no state for a retired one."""
        labels = (standing.entry.id.model, standing.entry.id.recipe)
        metrics = self._metrics
        for state in Status:
            metrics.variant_state.labels(*labels, state.value).set(float(state is actual))
        if standing.stored is not None:
            metrics.variant_size.labels(*labels).set(standing.stored.scorecard.bytes)
        if standing.profile is not None:
            metrics.variant_quality.labels(*labels).set(standing.ratio)
            latency = standing.profile.latency_ms[1]
            for quantile, value in (("0.5", latency.p50), ("0.95", latency.p95), ("0.99", latency.p99)):
                metrics.variant_latency.labels(*labels, quantile).set(value / 1e3)

    def refresh_metrics(self, now: datetime, depth: Callable[[str], int]) -> None:
        """Writes tallies and the gauges that change by themselves; `depth` tells a queue by its variant."""
        self._metrics.tallies.flush()
        for model in self.models.values():
            self._metrics.inflight.labels(model.name).set(model.inflight)
            for variant in model.variants.values():
                self._metrics.queue_depth.labels(model.name, variant.name).set(depth(variant.key))
                age = now - datetime.fromisoformat(variant.profile.taken)
                self._metrics.profile_age.labels(model.name, variant.name).set(age.total_seconds())


def _prepared(card: Card, transforms: Transforms) -> LoadedModel:
    """The model without its variants, ready to read requests."""
    spec = card.spec
    signature = Signature(spec.signature.inputs, (*spec.signature.outputs, *transforms.outputs))
    decoder = RequestDecoder(signature, spec.allow_non_finite, transforms.raw)
    return LoadedModel(card, decoder, SloReader(spec), signature, transforms)


def _positions(given: list[str], wanted: list[str]) -> list[int] | None:
    """Where each wanted output stands among the given, or None when nothing needs to move."""
    return None if given == wanted else [given.index(name) for name in wanted]
