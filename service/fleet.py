"""The models that this worker has loaded: sessions, readers of requests, and what the router may choose."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, MutableSet
from datetime import datetime
from math import inf
from threading import RLock
from time import monotonic

from service.breaker import Circuit
from service.errors import NotFoundError
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import Metrics
from service.pace import DevicePace
from service.residency import to_close
from variants.assessment import Standing, assess, verify_artifacts
from variants.card import Card
from variants.catalog import Catalog
from variants.document import DocumentError
from variants.host import Host
from variants.profile import Profile
from variants.profiler import misjudged, profile_model
from variants.progress import Lines
from variants.runtime import RuntimeUnavailableError
from variants.serving_spec import ServingSpec
from variants.store import CatalogError
from variants.transform import DeclarationError
from variants.transforms import Transforms, open_transforms
from variants.variant import Life, Status

log = logging.getLogger("mipgate.fleet")

_RETRY_S = 10.0
_LINGERS_S = 30.0  # longer than copies wait, and nearly all requests


class Fleet:
    """All models of one worker."""

    def __init__(
        self,
        catalog: Catalog,
        host: Host,
        metrics: Metrics,
        max_batch_rows: int,
        memory_budget_bytes: int = 0,
        unloaded: MutableSet[str] | None = None,
    ) -> None:
        """`unloaded` holds what operators unloaded; other workers may change it too."""
        self._memory_budget_bytes = memory_budget_bytes
        self._catalog = catalog
        self._host = host
        self._metrics = metrics
        self._max_batch_rows = max_batch_rows
        self._seen: dict[str, str] = {}
        self._unloaded: MutableSet[str] = set() if unloaded is None else unloaded
        self._measured_again: set[str] = set()
        self._failed: dict[str, float] = {}  # when, where the card was not at fault
        self._changing = RLock()
        self._former: list[tuple[LoadedModel, float]] = []  # and since when others serve in their place
        self.models: dict[str, LoadedModel] = {}
        self.generation = 0  # counts loads and unloads
        self.pace = DevicePace()

    @property
    def is_pinned(self) -> bool:
        """Whether it serves what a Bento packed, whatever is released later."""
        return self._catalog.is_pinned

    def registered(self) -> list[str]:
        """Names of all models of the catalog, loaded or not."""
        return self._catalog.models()

    def known(self) -> list[str]:
        """Names of all models of the catalog, and of those that are served although they were deleted."""
        return sorted({*self.registered(), *self.models})

    def load_all(self) -> None:
        """Loads every registered model whose newest card was not looked at yet; unloaded ones serve no more.

        One that cannot be loaded is logged and left out; whatever it serves already, it serves on. It is
        tried again when it has another card, or soon where the card was not at fault. One that was deleted
        is served until it is unloaded.
        """
        registered = self.registered()
        for name in self.known():
            with self._changing:  # others may have loaded or unloaded it meanwhile
                try:
                    if name in self._unloaded:
                        self._drop(name)
                    elif name in registered and self._is_outdated(name):
                        self._load_newest(name)
                except (CatalogError, DocumentError) as error:
                    log.error("model %s is not loaded: %s", name, error)
                except Exception:
                    if name not in self._failed:
                        log.exception("model %s is not loaded; it is tried every %g s", name, _RETRY_S)
                    self._failed[name] = monotonic()

    def _is_outdated(self, name: str) -> bool:
        if monotonic() - self._failed.get(name, -inf) < _RETRY_S:
            return False
        return self._catalog.card_tag(name) != self._seen.get(name)

    def load(self, name: str) -> LoadedModel:
        """Loads a model, or loads it anew; requests go to the new one once it is ready.

        A model without profiles of this host is profiled first; so is, once, a variant that answers the
        golden rows otherwise than when its quality was measured, or whose quality was held against another
        reference, other rows or by another metric. Waits for whatever else is loaded now.

        What was unloaded, here or by another worker, is loaded again.

        Raises:
            CatalogError: It is not registered, or its card is damaged.
            DocumentError: Its card cannot be read.
        """
        with self._changing:
            model = self._load_newest(name)
            self._unloaded.discard(name)
        return model

    def _load_newest(self, name: str) -> LoadedModel:
        """Loads a model unless its card is at fault; who unloads it meanwhile is heeded by the next look."""
        self._seen[name] = self._catalog.card_tag(name)
        try:
            model = self._prepared(name)
        except (CatalogError, DocumentError):
            raise  # until it has another card
        except Exception:
            del self._seen[name]
            raise
        self._failed.pop(name, None)
        self._metrics.expect(name, (tier.name for tier in model.card.spec.tiers))
        self._leave(name)
        self.models = self.models | {name: model}  # anew: the event loop may be at it
        self.generation += 1
        log.info("%s serves %s", name, ", ".join(model.versions) or "nothing")
        return model

    def _prepared(self, name: str) -> LoadedModel:
        """The model of the newest card, with profiles of this host that can be trusted."""
        card = self._catalog.card(name)
        if card.hosts.get(self._host.fingerprint) is None:
            log.warning("%s was not profiled on this host (%s); profiling", name, self._host.fingerprint)
            card = profile_model(self._catalog, name, self._host, Lines(), again=False)
        model = self._open(card)
        questioned = model.doubted | self._misjudged(card)
        doubted = {v: p for v, p in questioned.items() if f"{name}/{v}" not in self._measured_again}
        if doubted:
            log.warning("quality of %s of %s is measured again", ", ".join(doubted), name)
            self._measured_again |= {f"{name}/{version}" for version in doubted}
            model = self._open(
                profile_model(self._catalog, name, self._host, Lines(), again=False, doubted=doubted)
            )
        return model

    def _misjudged(self, card: Card) -> dict[str, list[Profile]]:
        try:
            return misjudged(self._catalog, card, self._host)
        except CatalogError as error:
            log.error(
                "whether the qualities of %s are about its reference is not known: %s", card.spec.model, error
            )
            return {}

    def _open(self, card: Card) -> LoadedModel:
        """The model with a session for every variant that can serve."""
        model = LoadedModel.without_variants(card, self._open_transforms(card.spec))
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
        """Stops serving a model. Waits for what is loaded now: not for the event loop.

        Raises:
            NotFoundError: It is not loaded.
        """
        with self._changing:
            if name not in self.models:
                raise NotFoundError(
                    f'model "{name[:80]}" is not loaded. Loaded are {", ".join(self.models)}.'
                )
            self._unloaded.add(name)
            self._drop(name)

    def _drop(self, name: str) -> None:
        """Stops serving a model, if it does; it is looked at anew once it is no longer unloaded."""
        if name in self.models:
            self._leave(name)
            self.models = {known: model for known, model in self.models.items() if known != name}
            self._seen.pop(name, None)
            self.generation += 1

    def _leave(self, name: str) -> None:
        if name in self.models:
            self._former.append((self.models[name], monotonic()))

    def let_go(self, lingers_s: float = _LINGERS_S) -> None:
        """Closes the variants of what serves no more, once its last requests have long been answered."""
        now = monotonic()
        for each in list(self._former):
            model, since = each
            if model.inflight or now - since < lingers_s:
                continue
            self._former.remove(each)
            used = [*self._serving(), *(v for other, _ in self._former for v in other.variants.values())]
            for variant in set(model.variants.values()) - set(used):
                if variant.is_open:
                    log.info("%s is closed: nothing routes to it any more", variant.key)
                    variant.close()

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
                loaded = self._kept(standing) or LoadedVariant(
                    standing, model.card.spec, self._metrics, self._max_batch_rows, self.pace
                )
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
            model.refused |= dict.fromkeys(names, reason)
            if entry.failure is not None:  # the build said so; nobody can mend it here
                log.info("%s is not built: %s", entry.id, reason)
            else:
                log.error("%s is refused: %s", entry.id, reason)
            return
        model.variants |= dict.fromkeys(names, loaded)
        serving = {each.key for each in self._serving()}  # theirs may wait: the event loop closes them
        self.trim(lambda key: key in serving, model.variants.values())
        if standing.routable:
            model.candidates.append(loaded.candidate)

    def _kept(self, standing: Standing) -> LoadedVariant | None:
        """The variant as it is loaded already, if a newer card says the same of it."""
        before = self.models.get(standing.entry.id.model)
        variant = None if before is None else before.variants.get(standing.entry.id.version)
        if (
            variant is None
            or variant.profile != standing.profile
            or variant.candidate.ratio != standing.ratio
        ):
            return None
        return variant

    def _serving(self) -> list[LoadedVariant]:
        return [variant for model in self.models.values() for variant in model.variants.values()]

    def trim(self, depth: Callable[[str], int], more: Iterable[LoadedVariant] = ()) -> None:
        """Closes what the memory budget has no room for; `depth` tells a queue by its variant."""
        for variant in to_close([*self._serving(), *more], self._memory_budget_bytes):
            if not depth(variant.key):
                log.info("%s is closed: it was not used for longest, and memory is short", variant.key)
                variant.close()

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
                is_open = variant.breaker.circuit is not Circuit.CLOSED
                self._metrics.breaker_open.labels(model.name, variant.name).set(is_open)
                self._metrics.queue_depth.labels(model.name, variant.name).set(depth(variant.key))
                age = now - datetime.fromisoformat(variant.profile.taken)
                self._metrics.profile_age.labels(model.name, variant.name).set(age.total_seconds())
