"""Live figures, from the counters of a minute."""

import math

import pytest
from prometheus_client import CollectorRegistry

from service.admin.live import Sampler, quantile_ms
from service.metrics import Metrics


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def answered(metrics: Metrics, count: int, seconds: float, variant: str = "fp32", tier: str = "fast") -> None:
    metrics.requests.labels("m", variant, tier, "", "ok").inc(count)
    for _ in range(count):
        metrics.request_duration.labels("m", variant, tier, "").observe(seconds)


def test_what_was_there_before_does_not_count(registry: CollectorRegistry, metrics: Metrics) -> None:
    clock = Clock()
    sampler = Sampler(lambda: list(registry.collect()), clock)
    answered(metrics, 1000, 0.001)
    sampler.sample()
    clock.now += 10
    answered(metrics, 30, 0.0015)
    answered(metrics, 10, 0.004, "int8", "accurate")
    metrics.requests.labels("m", "int8", "accurate", "", "late").inc(2)
    metrics.degraded.labels("m", "fp32", "int8").inc(4)
    metrics.batch_size.labels("m", "int8").observe(3)
    metrics.batch_size.labels("m", "int8").observe(5)
    metrics.queue_depth.labels("m", "int8").set(7)
    live = sampler.live("m")
    assert (live["window_s"], live["requests_per_s"]) == (10.0, 4.2)
    assert live["tiers"]["fast"]["ok"] == 30
    assert live["tiers"]["accurate"]["late"] == 2
    assert live["tiers"]["accurate"]["variants"] == {"int8": 10}
    assert live["variants"]["fp32"]["share"] == 0.75
    assert 1 <= live["variants"]["fp32"]["p50_ms"] <= 2
    int8 = live["variants"]["int8"]
    assert (int8["rps"], int8["queue_depth"], int8["batch_mean"], int8["degraded"]) == (1.0, 7, 4.0, 4)


def test_the_window_slides(registry: CollectorRegistry, metrics: Metrics) -> None:
    clock = Clock()
    sampler = Sampler(lambda: list(registry.collect()), clock)
    for _ in range(40):
        answered(metrics, 10, 0.001)
        sampler.sample()
        clock.now += 5
    live = sampler.live("m")
    assert 55 <= live["window_s"] <= 66
    assert live["requests_per_s"] == pytest.approx(2, rel=0.1)
    assert len(sampler._samples) <= 15


def test_whoever_asks_often_does_not_shorten_the_window(
    registry: CollectorRegistry, metrics: Metrics
) -> None:
    clock = Clock()
    sampler = Sampler(lambda: list(registry.collect()), clock)
    for _ in range(300):
        clock.now += 0.6
        sampler.live("m")
    assert sampler.live("m")["window_s"] >= 55
    assert len(sampler._samples) <= 15


def test_a_model_without_traffic_has_none(registry: CollectorRegistry, metrics: Metrics) -> None:
    live = Sampler(lambda: list(registry.collect())).live("quiet")
    assert (live["requests_per_s"], live["tiers"], live["variants"]) == (0.0, {}, {})


def test_a_counter_that_began_anew_is_not_negative(registry: CollectorRegistry) -> None:
    old, clock = CollectorRegistry(), Clock()
    sampler = Sampler(lambda: list(old.collect()), clock)
    answered(Metrics(old), 10, 0.001)
    sampler.sample()
    sampler._read = lambda: list(registry.collect())
    answered(Metrics(registry), 3, 0.001)
    clock.now += 10
    assert sampler.live("m")["requests_per_s"] == 0.0


@pytest.mark.parametrize(
    ("buckets", "share", "expected"),
    [
        ({}, 0.5, None),
        ({0.001: 0.0, math.inf: 0.0}, 0.5, None),
        ({0.001: 10.0, math.inf: 10.0}, 0.5, 0.5),
        ({0.001: 5.0, 0.002: 10.0, math.inf: 10.0}, 0.75, 1.5),
        ({0.001: 0.0, 10.0: 0.0, math.inf: 4.0}, 0.99, 10_000.0),
    ],
)
def test_quantiles_lie_inside_their_bucket(
    buckets: dict[float, float], share: float, expected: float | None
) -> None:
    assert quantile_ms(buckets, share) == expected
