"""Series that only a rollout, feedback, builds or drift make, served as a gateway would.

They are made up, and say nothing about any model: they stand in for what takes minutes to happen, so that the
queries of those panels meet every name and label that they read. All else comes from a real gateway.
"""

from collections.abc import Iterator
from contextlib import contextmanager

from prometheus_client import CollectorRegistry, Metric, start_http_server

from service.metrics import Metrics

MODEL = "recorded"
_FIGURE = {
    "arm": "candidate", "statistic": "agreement", "verdict": "passes", "samples": 1200,
    "estimate": 0.995, "low": 0.991, "high": 0.999, "threshold": 0.99,
}  # fmt: skip
_ARMS = {"primary": 0.75, "candidate": 0.25}


class _Passing:
    """Counts on whenever somebody looks: rates need counters that move."""

    def __init__(self, metrics: Metrics) -> None:
        self._metrics = metrics

    def collect(self) -> list[Metric]:
        metrics = self._metrics
        for arm, weight in _ARMS.items():
            served = (MODEL, arm, "balanced", arm)
            metrics.requests.labels(*served, "ok").inc(100 * weight)
            metrics.requests.labels(*served, "late").inc(weight)
            metrics.request_duration.labels(*served).observe(0.004)
            metrics.feedback.labels(MODEL, arm, arm, "true").inc(9 * weight)
            metrics.feedback.labels(MODEL, arm, arm, "false").inc(weight)
        metrics.shadow_comparisons.labels(MODEL, "candidate", "true").inc(50)
        metrics.rollout_transitions.labels(MODEL, "progressing").inc()
        metrics.builds.labels(MODEL, "succeeded").inc()
        metrics.build_duration.labels(MODEL).observe(70.0)
        return []


@contextmanager
def serving_recorded() -> Iterator[int]:
    """The port that they are served on."""
    registry = CollectorRegistry()
    metrics = Metrics(registry)
    for arm, weight in _ARMS.items():
        metrics.rollout_weight.labels(MODEL, arm).set(weight)
    metrics.rollout_phase.labels(MODEL, "progressing").set(1)
    metrics.judged(MODEL, _FIGURE)
    metrics.drift_score.labels(MODEL, "input:image").set(0.03)
    metrics.breaker_open.labels(MODEL, "candidate").set(0)
    metrics.state_up.labels("sqlite").set(1)
    first = CollectorRegistry()
    first.register(_Passing(metrics))
    first.register(registry)  # it collects after the counters moved
    server, thread = start_http_server(0, "127.0.0.1", first)
    try:
        yield server.server_port
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
