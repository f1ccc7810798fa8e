"""Drift without labels: sampled inputs and answers against the calibration split.

Requests leave a few thinned rows behind; everything else happens in `evaluate`, off the event loop. Windows
decay by rows, not by time, so that a score always rests on about as many rows, however busy the gateway is.
"""

from __future__ import annotations

import logging
import random
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from compression.signature import Array
from service.course import Course
from service.metrics import Metrics
from variants import document
from variants.card import Card
from variants.catalog import DISTRIBUTIONS_FILE
from variants.distributions import (
    Distribution,
    Distributions,
    Floats,
    Summary,
    judged_output,
    of_answers,
    of_inputs,
    thinned,
)
from variants.store import CatalogError

log = logging.getLogger("mipgate.drift")

FEWEST_ROWS = 200  # fewer raise false alarms: docs/observing.md has the measurement
_WINDOW_ROWS = 1000
_MOST_ROWS = 16  # of one request: rows that came together resemble each other
_MOST_BYTES = 1024**2  # of the answers that one request leaves behind

FindFile = Callable[[str, str], Path]


@dataclass(frozen=True, slots=True)
class _Sample:
    """Some rows of an answered request."""

    card: Card
    version: str
    inputs: dict[str, Array]
    outputs: dict[str, Array]
    rows: int


class _Window:
    """The newest rows of one signal, older ones counting less and less."""

    def __init__(self, expected: Distribution) -> None:
        self.expected = expected
        self._counts: Floats = np.zeros(len(expected.shares))
        self._weight = 0.0
        self._squares = 0.0

    @property
    def rows(self) -> float:
        """How many rows of equal weight the window is worth (Kish 1965, Survey Sampling)."""
        return self._weight**2 / self._squares if self._squares else 0.0

    def add(self, summary: Summary, rows: int) -> None:
        """Takes rows in, and lets those before them fade."""
        counts = self.expected.count(summary, rows)
        kept = (1 - 1 / _WINDOW_ROWS) ** rows
        self._counts = self._counts * kept + counts
        self._weight = self._weight * kept + float(counts.sum())
        self._squares = self._squares * kept**2 + float(counts.sum())

    def score(self) -> float:
        """The population stability index."""
        return self.expected.stability_index(self._counts, self.rows)

    def distance(self) -> float | None:
        """The Kolmogorov-Smirnov distance; classes have no order and none."""
        return None if self.expected.is_classes else self.expected.distance(self._counts)


@dataclass(slots=True)
class _Watched:
    """A model's windows, and the distributions that they are held against."""

    card: Card
    known: Distributions
    windows: dict[tuple[str, str], _Window] = field(default_factory=dict)

    def add(
        self, version: str, expected: Iterable[Distribution], found: dict[str, Summary], rows: int
    ) -> None:
        for distribution in expected:
            summary = found.get(distribution.signal)  # rows of one value have no mean, and no spread
            if summary is not None and len(summary[0]):
                key = (version, distribution.signal)
                self.windows.setdefault(key, _Window(distribution)).add(summary, rows)

    def largest(self, measure: Callable[[_Window], float | None]) -> dict[str, float]:
        """By signal, the largest of all variants that have enough rows."""
        found: dict[str, float] = {}
        for (_, signal), window in self.windows.items():
            if window.rows >= FEWEST_ROWS and (value := measure(window)) is not None:
                found[signal] = max(value, found.get(signal, value))
        return found


class Drift:
    """Samples requests and tells how far they are from the calibration split.

    Args:
        find: Path of a file beside a model's card.
        metrics: Has the gauges.
        share: Share of the requests that are looked at, 0 to 1.
        rows_per_s: Most rows that are looked at in a second.
        draw: Numbers from 0 to 1.
    """

    def __init__(
        self,
        find: FindFile,
        metrics: Metrics,
        share: float,
        rows_per_s: float,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._find = find
        self._metrics = metrics
        self._share = share
        self._seconds_per_row = 1.0 / rows_per_s
        self._draw = draw
        self._next = 0.0
        self._samples: list[_Sample] = []
        self._watched: dict[str, _Watched] = {}

    def served(self, course: Course) -> None:
        """Keeps some rows of a request, when it is its turn."""
        if course.arrived < self._next or course.outputs is None or self._draw() >= self._share:
            return
        card = course.model.card
        spec = card.spec
        judged = course.outputs[judged_output(spec)]
        bytes_per_row = max(1, judged.nbytes // course.request.rows)
        rows = max(1, min(course.request.rows, _MOST_ROWS, _MOST_BYTES // bytes_per_row))
        self._next = course.arrived + rows * self._seconds_per_row
        inputs = {
            tensor.name: thinned(tensor, course.request.inputs[tensor.name][:rows]).copy()
            for tensor in spec.signature.inputs
        }
        outputs = {judged_output(spec): judged[:rows].copy()}
        self._samples.append(_Sample(card, course.variant.version, inputs, outputs, rows))

    def take(self) -> list[_Sample]:
        """The samples since the last call."""
        samples, self._samples = self._samples, []
        return samples

    def evaluate(self, samples: Iterable[_Sample]) -> None:
        """Moves the windows on and sets the gauges; meant for a thread, one call at a time."""
        seen = set()
        for sample in samples:
            self._add(self._watch(sample.card), sample)
            seen.add(sample.card.spec.model)
        for model in seen:
            self._tell(model, self._watched[model])

    def _add(self, watched: _Watched, sample: _Sample) -> None:
        known, spec, rows = watched.known, sample.card.spec, sample.rows
        watched.add("", known.inputs, of_inputs(spec, sample.inputs, known.unknown), rows)
        if answers := known.answers.get(sample.version):
            watched.add(sample.version, answers, of_answers(spec, sample.outputs), rows)

    def _tell(self, model: str, watched: _Watched) -> None:
        rows = max((window.rows for window in watched.windows.values()), default=0.0)
        self._metrics.drift_rows.labels(model).set(rows)
        # A gauge that is not there says that too little is known.
        for signal, score in watched.largest(_Window.score).items():
            self._metrics.drift_score.labels(model, signal).set(score)
        for signal, distance in watched.largest(_Window.distance).items():
            self._metrics.drift_distance.labels(model, signal).set(distance)

    def _watch(self, card: Card) -> _Watched:
        """The model's windows; they stay when it was loaded anew and its distributions are the same."""
        model = card.spec.model
        watched = self._watched.get(model)
        if watched is None or watched.card is not card:
            known = self._read(model)
            if watched is None or watched.known != known:
                watched = self._watched[model] = _Watched(card, known)
            watched.card = card
        return watched

    def _read(self, model: str) -> Distributions:
        try:
            return document.read(Distributions, self._find(model, DISTRIBUTIONS_FILE))
        except (CatalogError, document.DocumentError) as error:
            log.warning("drift of %s is not watched: %s. Run `mipgate build %s`.", model, error, model)
            return Distributions("")
