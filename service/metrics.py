"""Every metric of the gateway, in one place. Created where the service is constructed, not at import.

Label values come from closed sets: registered models, their variants and tiers, and the enumerations
below. In BentoML's multiprocess mode counters and histograms add up over workers; each gauge says how.
"""

from __future__ import annotations

import os
import time
from collections.abc import Iterable
from pathlib import Path

import psutil
from prometheus_client import REGISTRY, CollectorRegistry, Counter, Gauge, Histogram
from prometheus_client.multiprocess import mark_process_dead

from service.tally import Tallies

NO_ARM = ""  # until a rollout assigns one
NO_VARIANT = ""
OUTCOMES = ("ok", "client_error", "rejected", "late", "failed")
REASONS = ("capacity", "deadline", "breaker", "refused", "rate_limit")

_FROM_HALF_A_MS = (
    0.0005, 0.001, 0.002, 0.003, 0.005, 0.0075, 0.01, 0.015, 0.02, 0.03, 0.05,
    0.075, 0.1, 0.15, 0.2, 0.3, 0.5, 1.0, 2.0, 5.0, 10.0,
)  # fmt: skip
_FROM_TEN_US = (0.00001, 0.000025, 0.00005, 0.0001, 0.00025, *_FROM_HALF_A_MS)
_BATCHES = (1, 2, 4, 8, 16, 32, 64, 128)


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
        self.worker_start = gauge(
            "mipgate_worker_start_time_seconds", "When a worker started, in Unix time.",
            "worker",
        )  # fmt: skip

        self.tallies = Tallies()

    def started(self, worker: str) -> None:
        """Notes this worker's start, and forgets the gauges of workers that died."""
        forget_dead_workers()
        self.worker_start.labels(worker).set(time.time())


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
