"""Drift: a shift of the input is seen, rows like those of calibration raise no alarm, sampling is bounded."""

from __future__ import annotations

from itertools import count
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from prometheus_client import CollectorRegistry

from compression.signature import Array, Signature, TensorSpec
from service.metrics import Metrics
from service.observing.drift import Drift
from tests.service.observing.courses import course
from variants import document
from variants.assessment import verify_artifacts
from variants.card import Card
from variants.catalog import DISTRIBUTIONS_FILE, SAMPLES_FILE, VALIDATION_FILE, Catalog, StoredVariant
from variants.distributions import Distributions, distributions, of_inputs
from variants.host import this_host
from variants.runtime import Session, open_session, reference_runtime
from variants.samples import read_split
from variants.serving_spec import ServingSpec
from variants.store import CatalogError

ALERT = 0.2  # deploy/prometheus/alerts.yml
SIGNALS = {"input:image", "input:image:mean", "input:image:spread", "prediction", "confidence"}


class Traffic:
    """Answers rows of digits with a real variant and tells the drift of each."""

    def __init__(self, catalog: Catalog, drift: Drift, recipe: str = "fp32") -> None:
        card: Card = catalog.card("digits")
        entry = card.find(recipe)
        stored = verify_artifacts(catalog, card)[entry.id.version]
        assert isinstance(stored, StoredVariant)
        self.session: Session = open_session(stored.model_path, reference_runtime(this_host()))
        self.model = SimpleNamespace(name="digits", card=card)
        self.variant = SimpleNamespace(name=recipe, version=entry.id.version, key=entry.id.version)
        self.drift = drift
        self.clock = count()

    def send(self, rows: Array, at_once: int = 1) -> None:
        for start in range(0, len(rows), at_once):
            part = {"image": rows[start : start + at_once]}
            request = SimpleNamespace(rows=len(part["image"]), inputs=part)
            facts: dict[str, Any] = {"arrived": float(next(self.clock)), "request": request}
            outputs = self.session.run_named(part)
            self.drift.served(course(**facts, model=self.model, variant=self.variant, outputs=outputs))
        self.drift.evaluate(self.drift.take())


@pytest.fixture
def metrics() -> Metrics:
    return Metrics(CollectorRegistry())


def watching(catalog: Catalog, metrics: Metrics, rows_per_s: float = 100.0) -> Drift:
    return Drift(catalog.card_file, metrics, 1.0, rows_per_s, lambda: 0.0)


def scores(metrics: Metrics) -> dict[str, float]:
    samples = next(iter(metrics.drift_score.collect())).samples
    return {sample.labels["signal"]: sample.value for sample in samples}


def rows_of(catalog: Catalog, *files: str) -> Array:
    return np.concatenate([read_split(catalog.card_file("digits", name)).inputs["image"] for name in files])


@pytest.mark.parametrize("recipe", ["fp32", "pruned", "int8-dynamic"])
def test_rows_like_those_of_calibration_raise_no_alarm(
    digits: Catalog, metrics: Metrics, recipe: str
) -> None:
    traffic = Traffic(digits, watching(digits, metrics), recipe)
    rows = rows_of(digits, VALIDATION_FILE, SAMPLES_FILE)
    for part in np.array_split(np.random.default_rng(0).permutation(rows), 6):
        traffic.send(part)
        assert all(score < ALERT for score in scores(metrics).values())
    assert scores(metrics).keys() == SIGNALS


@pytest.mark.parametrize(
    ("shift", "signals"),
    [
        (lambda x: x * 0.5, {"input:image", "input:image:mean", "input:image:spread"}),
        (lambda x: x.max() - x, {"input:image", "input:image:mean", "prediction", "confidence"}),
        (lambda x: np.roll(x.reshape(-1, 8, 8), 3, axis=2).reshape(-1, 64), {"prediction", "confidence"}),
    ],
    ids=["half as bright", "inverted", "moved aside"],
)
def test_a_shift_of_the_input_is_seen(
    digits: Catalog, metrics: Metrics, shift: Any, signals: set[str]
) -> None:
    traffic = Traffic(digits, watching(digits, metrics))
    rows = rows_of(digits, VALIDATION_FILE)
    traffic.send(rows)
    assert all(score < ALERT for score in scores(metrics).values())
    for _ in range(4):
        traffic.send(shift(rows).astype(rows.dtype))
    assert {signal for signal, score in scores(metrics).items() if score > ALERT} >= signals
    distances = next(iter(metrics.drift_distance.collect())).samples
    assert {sample.labels["signal"] for sample in distances} == SIGNALS - {"prediction"}
    assert max(sample.value for sample in distances) > 0.2


def test_a_mix_of_few_classes_is_seen(digits: Catalog, metrics: Metrics) -> None:
    traffic = Traffic(digits, watching(digits, metrics))
    split = read_split(digits.card_file("digits", VALIDATION_FILE))
    assert split.labels is not None
    few = split.inputs["image"][split.labels < 4]
    for _ in range(3):
        traffic.send(few)
    assert scores(metrics)["prediction"] > ALERT


def test_of_few_rows_nothing_is_said(digits: Catalog, metrics: Metrics) -> None:
    traffic = Traffic(digits, watching(digits, metrics))
    rows = rows_of(digits, VALIDATION_FILE)
    traffic.send(rows[:150])
    assert scores(metrics) == {}
    assert metrics.drift_rows.labels("digits")._value.get() == pytest.approx(150, rel=0.02)
    traffic.send(rows[150:300])
    assert scores(metrics).keys() == SIGNALS


def test_old_rows_fade(digits: Catalog, metrics: Metrics) -> None:
    traffic = Traffic(digits, watching(digits, metrics))
    rows = rows_of(digits, VALIDATION_FILE, SAMPLES_FILE)
    traffic.send(rows[:300] * np.float32(0.5))
    assert scores(metrics)["input:image:mean"] > ALERT
    for _ in range(6):
        traffic.send(rows)
    assert scores(metrics)["input:image:mean"] < ALERT


def test_a_large_request_counts_for_some_rows_only(digits: Catalog, metrics: Metrics) -> None:
    drift = watching(digits, metrics)
    traffic = Traffic(digits, drift)
    traffic.send(rows_of(digits, VALIDATION_FILE)[:200], at_once=100)
    assert metrics.drift_rows.labels("digits")._value.get() == pytest.approx(32, rel=0.05)


def test_no_more_rows_a_second_than_allowed_are_looked_at(digits: Catalog, metrics: Metrics) -> None:
    drift = watching(digits, metrics, rows_per_s=0.25)  # a request a second comes
    Traffic(digits, drift).send(rows_of(digits, VALIDATION_FILE)[:40])
    assert metrics.drift_rows.labels("digits")._value.get() == pytest.approx(10, rel=0.05)


def test_a_request_of_one_value_per_row_has_fewer_signals_and_does_no_harm(
    metrics: Metrics, tmp_path: Path
) -> None:
    axes = Signature((TensorSpec("x", "float32", ("batch", "n")),), (TensorSpec("y", "float32", ("batch",)),))
    spec = ServingSpec("m", axes, "mse", "fp32", ())
    rows = np.random.default_rng(0).normal(size=(400, 4)).astype(np.float32)
    known = Distributions("0", distributions(of_inputs(spec, {"x": rows}, {}), len(rows)))
    document.write(tmp_path / DISTRIBUTIONS_FILE, known)
    drift = Drift(lambda model, name: tmp_path / name, metrics, 1.0, 1e9, lambda: 0.0)
    model, variant = SimpleNamespace(name="m", card=Card(spec)), SimpleNamespace(version="fp32@0")
    for number, part in enumerate([*rows, *rows[:, :1]]):
        request = SimpleNamespace(rows=1, inputs={"x": part[None]})
        facts: dict[str, Any] = {"arrived": float(number), "request": request, "outputs": {"y": part[:1]}}
        drift.served(course(**facts, model=model, variant=variant))
    drift.evaluate(drift.take())
    assert scores(metrics).keys() == {"input:x", "input:x:mean", "input:x:spread"}


def test_a_share_of_the_requests_is_looked_at(digits: Catalog, metrics: Metrics) -> None:
    draws = iter([0.2, 0.6] * 20)
    drift = Drift(digits.card_file, metrics, 0.5, 100.0, lambda: next(draws))
    Traffic(digits, drift).send(rows_of(digits, VALIDATION_FILE)[:40])
    assert metrics.drift_rows.labels("digits")._value.get() == pytest.approx(20, rel=0.05)


def test_what_is_kept_of_a_request_does_not_keep_its_body(digits: Catalog, metrics: Metrics) -> None:
    drift = watching(digits, metrics)
    rows = rows_of(digits, VALIDATION_FILE)[:20]
    traffic = Traffic(digits, drift)
    facts: dict[str, Any] = {"request": SimpleNamespace(rows=20, inputs={"image": rows})}
    outputs = traffic.session.run_named({"image": rows})
    drift.served(course(**facts, model=traffic.model, variant=traffic.variant, outputs=outputs))
    (sample,) = drift.take()
    assert sample.inputs["image"].base is None
    assert all(array.base is None for array in sample.outputs.values())
    assert drift.take() == []


def test_a_model_without_distributions_is_served_and_told_once(
    digits: Catalog, metrics: Metrics, caplog: pytest.LogCaptureFixture
) -> None:
    def nothing(model: str, name: str) -> Any:
        raise CatalogError("no card is intact")

    traffic = Traffic(digits, Drift(nothing, metrics, 1.0, 100.0, lambda: 0.0))
    for _ in range(2):
        traffic.send(rows_of(digits, VALIDATION_FILE))
    assert scores(metrics) == {}
    assert len(caplog.records) == 1
    assert "mipgate build digits" in caplog.text


def test_a_build_publishes_distributions_of_every_variant(digits: Catalog) -> None:
    assert digits.card_file("digits", DISTRIBUTIONS_FILE).is_file()
