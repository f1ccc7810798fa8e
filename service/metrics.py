"""Every metric of the gateway, in one place. Created where the service is constructed, not at import.

Label values come from closed sets: registered models, their variants and tiers, and the enumerations
below. In BentoML's multiprocess mode counters and histograms add up over workers; each gauge says how.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from service.tally import Tallies

NO_ARM = ""  # until a rollout assigns one
NO_VARIANT = ""
OUTCOMES = ("ok", "client_error", "rejected", "late", "failed")
REASONS = ("capacity", "deadline", "breaker", "refused", "rate_limit")
BUILD_OUTCOMES = ("succeeded", "failed", "cancelled")
GUARD_BOUNDS = ("estimate", "low", "high", "threshold")

_FROM_HALF_A_MS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_FROM_TEN_US = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *_FROM_HALF_A_MS)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)
_BUILDS = (5, 15, 30, 60, 120, 300, 600, 1200, 1800, 3600, 7200, 14400)


class Metrics:
    """The gateway's metrics, registered once per process."""

    def __init__(self, registry: CollectorRegistry = REGISTRY) -> None:
        def counter(name: str, text: str, *labels: str) -> Counter:
            return Counter(name, text, labels, registry=registry)

        def gauge(name: str, text: str, *labels: str, over_workers: str = "livemostrecent") -> Gauge:
            return Gauge(name, text, labels, registry=registry, multiprocess_mode=over_workers)  # type: ignore[arg-type]

        def histogram(name: str, text: str, buckets: Iterable[float], *labels: str) -> Histogram:
            return Histogram(name, text, labels, registry=registry, buckets=tuple(buckets))

        self.requests = counter(
            "mipgate_requests_total", "Inference requests by how they ended.",
            "model", "variant", "tier", "arm", "outcome",
        )  # fmt: skip
        self.request_duration = histogram(
            "mipgate_request_duration_seconds", "Time from arrival to answer of requests answered in time.",
            _FROM_HALF_A_MS, "model", "variant", "tier", "arm",
        )  # fmt: skip
        self.transform_duration = histogram(
            "mipgate_transform_duration_seconds", "Time that a text or picture took to become inputs.",
            _FROM_TEN_US, "model",
        )  # fmt: skip
        self.queue_duration = histogram(
            "mipgate_queue_duration_seconds", "Time that a request waited for its batch.",
            _FROM_TEN_US, "model", "variant",
        )  # fmt: skip
        self.inference_duration = histogram(
            "mipgate_inference_duration_seconds", "Time that a batch ran.", _FROM_TEN_US, "model", "variant"
        )
        self.batch_size = histogram(
            "mipgate_batch_size", "Rows in a batch that ran.", _BATCHES, "model", "variant"
        )
        self.queue_depth = gauge(
            "mipgate_queue_depth", "Requests that wait now.", "model", "variant", over_workers="livesum"
        )
        self.inflight = gauge(
            "mipgate_inflight_requests", "Requests that arrived and are not answered yet.",
            "model", over_workers="livesum",
        )  # fmt: skip
        self.degraded = counter(
            "mipgate_degraded_total", "Requests answered below their floor, which they had allowed.",
            "model", "from", "to",
        )  # fmt: skip
        self.rejected = counter(
            "mipgate_rejected_total", "Requests refused without being run.", "model", "reason"
        )
        self.deadline_missed = counter(
            "mipgate_deadline_missed_total", "Requests whose deadline passed after they were accepted.",
            "model", "tier",
        )  # fmt: skip
        self.variant_quality = gauge(
            "mipgate_variant_quality_ratio", "Validation quality over the reference's, where it runs.",
            "model", "variant",
        )  # fmt: skip
        self.variant_size = gauge("mipgate_variant_size_bytes", "Size of the model file.", "model", "variant")
        self.variant_latency = gauge(
            "mipgate_variant_latency_seconds", "Profiled time of one row on this host.",
            "model", "variant", "quantile",
        )  # fmt: skip
        self.variant_state = gauge(
            "mipgate_variant_state", "1 for the state that a variant is in, 0 for the others.",
            "model", "variant", "state",
        )  # fmt: skip
        self.profile_age = gauge(
            "mipgate_profile_age_seconds", "Age of the profile that routing trusts.", "model", "variant"
        )
        self.breaker_open = gauge(
            "mipgate_breaker_open", "Workers that keep requests from a variant because it fails.",
            "model", "variant", over_workers="livesum",
        )  # fmt: skip
        self.shadow_comparisons = counter(
            "mipgate_shadow_comparisons_total", "Answers compared with those of a variant in the shadow.",
            "model", "variant", "agree",
        )  # fmt: skip
        self.feedback = counter(
            "mipgate_feedback_total", "Delayed labels, by whether the answer was right.",
            "model", "variant", "arm", "correct",
        )  # fmt: skip
        self.rollout_weight = gauge(
            "mipgate_rollout_weight", "Share of the traffic, 0 to 1, that a rollout gives to an arm.",
            "model", "arm",
        )  # fmt: skip
        self.rollout_phase = gauge(
            "mipgate_rollout_phase", "1 for the phase that the newest rollout is in, 0 for the others.",
            "model", "phase",
        )  # fmt: skip
        self.rollout_transitions = counter(
            "mipgate_rollout_transitions_total", "Phases that rollouts entered.", "model", "phase"
        )
        self.rollout_guard = gauge(
            "mipgate_rollout_guard", "A guard's statistic: its estimate, confidence bounds and threshold.",
            "model", "arm", "statistic", "bound",
        )  # fmt: skip
        self.rollout_guard_samples = gauge(
            "mipgate_rollout_guard_samples", "Observations behind a guard's estimate.",
            "model", "arm", "statistic",
        )  # fmt: skip
        self.rollout_guard_breaches = counter(
            "mipgate_rollout_guard_breaches_total", "Candidates of rollouts that broke a guard.",
            "model", "arm", "statistic",
        )  # fmt: skip
        self.build_duration = histogram(
            "mipgate_build_duration_seconds", "Time that a build job took.", _BUILDS, "model"
        )
        self.builds = counter("mipgate_builds_total", "Build jobs by how they ended.", "model", "outcome")
        self.drift_score = gauge(
            "mipgate_drift_score",
            "Population stability index of sampled traffic against the calibration split.",
            "model", "signal",
        )  # fmt: skip
        self.drift_distance = gauge(
            "mipgate_drift_distance", "Kolmogorov-Smirnov distance of the same, 0 to 1; not of classes.",
            "model", "signal",
        )  # fmt: skip
        self.drift_rows = gauge(
            "mipgate_drift_sampled_rows", "Rows in the window that drift is computed on.", "model"
        )
        self.state_up = gauge(
            "mipgate_state_up", "1 while the state database answers, 0 while the last known state is served.",
            "database", over_workers="livemin",
        )  # fmt: skip
        self.queue_limit = gauge(
            "mipgate_queue_limit_requests", "Requests that may wait for one variant, over all workers.",
            over_workers="livesum",
        )  # fmt: skip
        self.worker_start = gauge(
            "mipgate_worker_start_time_seconds", "When a worker started, in Unix time; workers are numbered.",
            "worker",
        )  # fmt: skip

        self.tallies = Tallies()

    def started(self, worker: int, queue_limit: int) -> None:
        """Notes this worker's start, and forgets the gauges of workers that died."""
        forget_dead_workers()
        self.worker_start.labels(str(worker)).set(time.time())
        self.queue_limit.set(queue_limit)

    def expect(self, model: str, tiers: Iterable[str]) -> None:
        """Starts a model's rare counters at zero: a rate misses the count that makes a series."""
        for reason in REASONS:
            self.rejected.labels(model, reason)
        for tier in tiers:
            self.deadline_missed.labels(model, tier)
        self.watched(model, "candidate", ())  # a first candidate may break its budget before the next scrape

    def watched(self, model: str, arm: str, guards: Iterable[str]) -> None:
        """Makes the series of an arm's guards known at 0: a counter that begins at 1 never increased.

        The failure budget of errors guards every arm.
        """
        for statistic in ("errors", *guards):
            self.rollout_guard_breaches.labels(model, arm, statistic)

    def judged(self, model: str, figure: Mapping[str, Any]) -> None:
        """Notes what the evidence says of a guard, as a rollout's history keeps it."""
        labels = (model, figure["arm"], figure["statistic"])
        for bound in GUARD_BOUNDS:
            if figure[bound] is not None:
                self.rollout_guard.labels(*labels, bound).set(figure[bound])
        self.rollout_guard_samples.labels(*labels).set(figure["samples"])
        self.rollout_guard_breaches.labels(*labels).inc(figure["verdict"] == "fails")


def exposition() -> bytes:
    """The text that Prometheus scrapes, of all workers together."""
    if not os.environ.get("PROMETHEUS_MULTIPROC_DIR"):
        return generate_latest(REGISTRY)
    forget_dead_workers()
    registry = CollectorRegistry()
    MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
    return generate_latest(registry)


def forget_dead_workers() -> None:
    """Removes the live gauges of processes that are gone, so that no ghost stays in a sum.

    BentoML does this only for workers that end in good order.
    """
    folder = os.environ.get("PROMETHEUS_MULTIPROC_DIR")
    if not folder:
        return
    for path in Path(folder).glob("gauge_live*_*.db"):
        pid = path.stem.rpartition("_")[2]
        if pid.isdigit() and not psutil.pid_exists(int(pid)):
            mark_process_dead(int(pid))  # type: ignore[no-untyped-call]
