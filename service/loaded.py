"""A model as this worker serves it: its variants with open sessions, and what reads its requests."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Hashable, Mapping
from dataclasses import dataclass, field
from threading import Lock
from time import perf_counter

from compression.signature import Array, Signature
from service.breaker import Breaker
from service.errors import InferenceError, NotFoundError, UnavailableError
from service.isolation import check_rows
from service.metrics import Metrics
from service.pace import TELLING_MS, DevicePace, Pace
from service.protocol import RequestDecoder
from service.routing import Candidate, SloReader
from service.statistics import Statistics
from service.tally import CounterTally, HistogramTally
from variants.assessment import Standing
from variants.card import Card
from variants.catalog import StoredVariant
from variants.golden import deviation, is_trusted, tolerance
from variants.profile import Profile
from variants.runtime import ENGINES, Runtime, RuntimeUnavailableError, Session, open_session
from variants.samples import read_golden
from variants.serving_spec import ServingSpec
from variants.transforms import Transforms

log = logging.getLogger("mipgate.fleet")

_WARM_UP_ROWS = (1, 1, 8)
_REMEMBERED_SHAPES = 4096
_TABLE_ROWS = 256
_HANGS = 4.0  # times the predicted time


class LoadedVariant:
    """A variant with an open session: what the scheduler runs."""

    def __init__(
        self,
        standing: Standing,
        spec: ServingSpec,
        metrics: Metrics,
        max_batch_rows: int,
        device: DevicePace,
    ) -> None:
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
        self.profile: Profile = standing.profile
        self.max_batch_rows = max_batch_rows
        self.statistics = Statistics()
        self.breaker = Breaker()
        self.last_used = 0.0
        self._stored: StoredVariant = standing.stored
        self._outputs = [output.name for output in spec.signature.outputs]
        self._session: Session | None = None
        self._opening = Lock()
        self._reorder: list[int] | None = None
        inputs = spec.signature.inputs
        self._prepares_shapes = ENGINES[self.profile.runtime].prepares_shapes
        self._free_inputs = [s.name for s in inputs if any(isinstance(axis, str) for axis in s.shape[1:])]
        self._pace = Pace(device)
        self._prepared: set[Hashable] = set()
        self._was_prepared = True
        self._profiled = [self.profile.predict_ms(rows) for rows in range(1, _TABLE_ROWS + 1)]
        labels = (self.id.model, self.name)
        self._metrics = metrics
        self._inference_duration = metrics.tallies.histogram(metrics.inference_duration, *labels)
        self._batch_size = metrics.tallies.histogram(metrics.batch_size, *labels)
        self._queue_duration = metrics.tallies.histogram(metrics.queue_duration, *labels)
        self._answers: dict[tuple[str, str], tuple[CounterTally, HistogramTally]] = {}
        self.candidate = Candidate(self.version, self.name, standing.ratio, self.predict_ms, self.profiled_ms)
        self.deviation = self._replay()

    @property
    def is_open(self) -> bool:
        """Whether it has a session now; without one its next request waits until it has."""
        return self._session is not None

    def open(self) -> Session:
        """The session, opened if there is none; from any thread.

        Raises:
            RuntimeUnavailableError: The runtime that serves it refuses it now.
        """
        with self._opening:
            if self._session is None:
                runtime = Runtime(self.profile.runtime, self.profile.precision, self.profile.threads)
                session = open_session(self._stored.model_path, runtime)
                names = session.output_names
                self._reorder = (
                    None if names == self._outputs else [names.index(name) for name in self._outputs]
                )
                self._session = session
            return self._session

    async def ensure_open(self) -> None:
        """Opens the session if there is none, beside the event loop.

        Raises:
            InferenceError: It cannot be opened; that counts as a failure of its own.
        """
        if self._session is not None:
            return
        try:
            await asyncio.to_thread(self.open)
        except RuntimeUnavailableError as error:
            log.error("%s cannot be opened again: %s", self.key, error)
            self.blame()
            raise InferenceError(
                f"{self.key} cannot be opened now. Try again, or pin another variant."
            ) from error

    def close(self) -> None:
        """Gives the session's memory back; a batch that runs ends first."""
        self._session = None

    def _replay(self) -> float:
        """Runs the golden rows; the first request does not pay for lazy initialization then.

        Returns:
            The deviation from what the artifact answered where it was built.
        """
        inputs, golden = read_golden(self._stored.golden_path)
        self._known_good = {name: array[:1].copy() for name, array in inputs.items()}
        for rows in _WARM_UP_ROWS:
            self.run({name: array[:rows] for name, array in inputs.items()})
        answered = self.run(inputs)
        self.last_used = 0.0  # by nobody yet
        return deviation(dict(zip(self._outputs, answered, strict=True)), golden)

    @property
    def is_trusted(self) -> bool:
        """Whether it answers the golden rows as it did where its quality was measured."""
        allowed = tolerance(self.profile.precision, self._stored.scorecard.weights)
        return is_trusted(self.deviation, self.profile.golden_deviation, allowed)

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        """Runs one batch; outputs `(rows, ...)` in the order of the signature."""
        self.last_used = perf_counter()  # what runs now is not closed for what ran before
        session = self._session or self.open()
        if self._prepares_shapes:
            self._note_shapes(inputs)
        outputs = session.run(inputs)
        return outputs if self._reorder is None else [outputs[position] for position in self._reorder]

    def _note_shapes(self, inputs: Mapping[str, Array]) -> None:
        """Notes whether the runtime is prepared for these shapes: a first call says nothing of the next."""
        shapes = tuple([array.shape for array in inputs.values()])
        self._was_prepared = shapes in self._prepared
        if not self._was_prepared:
            if len(self._prepared) == _REMEMBERED_SHAPES:
                self._prepared.clear()
            self._prepared.add(shapes)

    def cancel(self) -> None:
        """Ends the batch that runs, if any, without answers; from another thread."""
        if (session := self._session) is not None:
            session.cancel()

    def predict_ms(self, rows: int) -> float:
        """Predicted time of a batch, as this host runs now."""
        profiled_ms = self.profiled_ms(rows)
        return profiled_ms if profiled_ms < TELLING_MS else self._pace.corrected_ms(profiled_ms)

    def profiled_ms(self, rows: int) -> float:
        """Time of a batch by the profile."""
        return self._profiled[rows - 1] if rows <= _TABLE_ROWS else self.profile.predict_ms(rows)

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        """Requests share a batch when all axes but the first have the same lengths."""
        return tuple(inputs[name].shape[1:] for name in self._free_inputs) if self._free_inputs else None

    def executed(self, rows: int, requests: int, seconds: float, held_s: float, ok: bool) -> None:
        """Counts a batch that ran, learns the host's pace from it, and whether the variant still answers."""
        self.last_used = perf_counter()
        self.statistics.executed(rows, seconds)
        self._inference_duration.observe(seconds)
        self._batch_size.observe(rows)
        if not ok:
            self.blame()
            return
        if self._was_prepared:
            self._pace.ran(self.profiled_ms(rows), held_s * 1e3)
        if self.breaker.failures and self.breaker.answered():
            log.warning("%s answers again", self.key)

    def answered(self, tier: str, arm: str, rows: int, queue_s: float, total_s: float) -> None:
        """Counts a request that was answered in time."""
        tallies = self._answers.get((tier, arm))
        if tallies is None:
            metrics, labels = self._metrics, (self.id.model, self.name, tier, arm)
            tallies = self._answers[tier, arm] = (
                metrics.tallies.counter(metrics.requests, *labels, "ok"),
                metrics.tallies.histogram(metrics.request_duration, *labels),
            )
        answers, duration = tallies
        answers.inc()
        duration.observe(total_s)
        self._queue_duration.observe(queue_s)
        self.statistics.answered(rows, queue_s, total_s)

    def cut_off(self, rows: int, held_s: float) -> None:
        """Learns that a batch took longer than predicted; one that took many times as long hangs."""
        held_ms, predicted_ms = held_s * 1e3, self.predict_ms(rows)
        if held_ms > predicted_ms and self._was_prepared:
            self._pace.ran(self.profiled_ms(rows), held_ms)
        if held_ms > _HANGS * predicted_ms:
            self.blame()

    def is_well(self) -> bool:
        """Whether it answers its first golden row; from any thread."""
        try:
            check_rows(self.run(self._known_good), 1)
        except Exception:  # the runtime's errors have no common base but this
            return False
        return True

    def blame(self) -> None:
        """Counts a failure that is its own; after some in a row it gets no traffic for a while."""
        now = perf_counter()
        if self.breaker.failed(now):
            log.error(
                "%s gets no traffic after %d failures in a row; it is probed in %.0f s",
                self.key, self.breaker.failures, self.breaker.until - now,
            )  # fmt: skip


@dataclass(eq=False)
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
        own_outputs: Names of the model's own outputs, in order.
        has_transforms: Whether anything is done before or after it.
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
    own_outputs: tuple[str, ...] = field(init=False)
    has_transforms: bool = field(init=False)

    def __post_init__(self) -> None:
        self.own_outputs = tuple(spec.name for spec in self.card.spec.signature.outputs)
        self.has_transforms = self.transforms != Transforms()

    @classmethod
    def without_variants(cls, card: Card, transforms: Transforms) -> LoadedModel:
        """The model ready to read requests."""
        spec = card.spec
        signature = Signature(spec.signature.inputs, (*spec.signature.outputs, *transforms.outputs))
        decoder = RequestDecoder(signature, spec.allow_non_finite, transforms.raw)
        return cls(card, decoder, SloReader(spec), signature, transforms)

    @property
    def name(self) -> str:
        """The registered name."""
        return self.card.spec.model

    @property
    def versions(self) -> list[str]:
        """Names that variants answer to: recipes in the card's order, without repetition.

        A recipe of which only another build is loaded than the one that its name stands for is none of them.
        """
        names = dict.fromkeys(variant.name for variant in self.variants.values())
        return [name for name in names if name in self.variants]

    def allowed(self, now: float) -> list[Candidate]:
        """What the router may choose from without the variants whose circuit is open."""
        variants = self.variants
        return [each for each in self.candidates if variants[each.version].breaker.allows(now)]

    def pinned(self, version: str) -> LoadedVariant:
        """The variant of a recipe or exact build.

        Raises:
            NotFoundError: There is none.
            UnavailableError: There is, but it is refused on this host.
        """
        variant = self.variants.get(version)
        if variant is not None:
            return variant
        if reason := self.refused.get(version, "").rstrip("."):
            recipe, _, build = version.partition("@")
            if self.card.find(recipe, build or None).failure is not None:
                raise NotFoundError(
                    f"{self.name}/{version} is not built: {reason}. Use another variant or a tier."
                )
            raise UnavailableError(
                f"{self.name}/{version} is refused: {reason}. Use another variant or a tier.", "refused", 30.0
            )
        raise NotFoundError(
            f'{self.name} has no variant "{version[:80]}". It has {", ".join(self.versions)}.'
        )
