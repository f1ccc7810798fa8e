"""Metrics: the names and labels of the contract, and sums without ghosts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from prometheus_client.metrics import MetricWrapperBase

from service.errors import ServiceError
from service.metrics import OUTCOMES, REASONS, Metrics
from tests.conftest import ROOT

CONTRACT = """
    mipgate_requests_total{model,variant,tier,arm,outcome}
    mipgate_request_duration_seconds{model,variant,tier,arm}
    mipgate_queue_duration_seconds{model,variant}   mipgate_inference_duration_seconds{model,variant}
    mipgate_batch_size{model,variant}
    mipgate_queue_depth{model,variant}   mipgate_inflight_requests{model}
    mipgate_degraded_total{model,from,to}   mipgate_rejected_total{model,reason}
    mipgate_deadline_missed_total{model,tier}
    mipgate_variant_quality_ratio{model,variant}   mipgate_variant_size_bytes{model,variant}
    mipgate_variant_latency_seconds{model,variant,quantile}   mipgate_variant_state{model,variant,state}
    mipgate_profile_age_seconds{model,variant}
    mipgate_shadow_comparisons_total{model,variant,agree}   mipgate_feedback_total{model,variant,arm,correct}
    mipgate_rollout_weight{model,arm}   mipgate_rollout_phase{model,phase}
    mipgate_rollout_transitions_total{model,phase}
    mipgate_build_duration_seconds{model}   mipgate_builds_total{model,outcome}
    mipgate_worker_start_time_seconds{worker}
"""
NAMES = {name: tuple(labels.split(",")) for name, labels in re.findall(r"(mipgate_\w+)\{(.*?)\}", CONTRACT)}


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def metrics(registry: CollectorRegistry) -> Metrics:
    return Metrics(registry)


def made(metrics: Metrics) -> dict[str, MetricWrapperBase]:
    found = [value for value in vars(metrics).values() if isinstance(value, MetricWrapperBase)]
    return {metric._name + ("_total" if metric._type == "counter" else ""): metric for metric in found}


def test_names_and_labels_are_the_contracts(metrics: Metrics) -> None:
    there = {name: metric._labelnames for name, metric in made(metrics).items()}
    assert {name: there.get(name) for name in NAMES} == NAMES
    assert all(name.startswith("mipgate_") for name in there)


def test_every_metric_says_what_it_counts_and_none_is_a_summary(metrics: Metrics) -> None:
    for metric in made(metrics).values():
        assert metric._documentation.endswith(".")
        assert metric._type in {"counter", "gauge", "histogram"}


def test_a_scrape_shows_what_was_counted(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.requests.labels("digits", "fp16", "balanced", "", "ok").inc()
    metrics.request_duration.labels("digits", "fp16", "balanced", "").observe(0.0004)
    metrics.degraded.labels("digits", "fp32", "int8-static").inc(2)
    scraped = generate_latest(registry).decode()
    labels = 'arm="",model="digits",outcome="ok",tier="balanced",variant="fp16"'
    assert f"mipgate_requests_total{{{labels}}} 1.0" in scraped
    assert 'mipgate_degraded_total{from="fp32",model="digits",to="int8-static"} 2.0' in scraped
    assert 'le="0.0005"' in scraped  # buckets from half a millisecond
    assert 'le="0.00025"' not in scraped


def test_errors_end_in_outcomes_and_reasons_that_exist() -> None:
    assert OUTCOMES == ("ok", "client_error", "rejected", "late", "failed")
    assert REASONS == ("capacity", "deadline", "breaker", "refused", "rate_limit")
    kinds, found = [ServiceError], set()
    while kinds:
        kind = kinds.pop()
        found.add(kind.outcome)
        kinds += kind.__subclasses__()
    assert found <= set(OUTCOMES)


def _in_multiprocess(folder: Path, code: str) -> subprocess.CompletedProcess[str]:
    """prometheus_client decides for several processes when it is imported."""
    environment = os.environ | {"PROMETHEUS_MULTIPROC_DIR": str(folder)}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True, check=True)


def _worker(number: int) -> str:
    return f"import os; from service.metrics import Metrics; m = Metrics(); m.started({number}, 1024); "


SCRAPE = "from service.metrics import exposition; print(exposition().decode())"


def test_the_gauges_of_a_dead_worker_are_forgotten_and_its_counts_are_kept(tmp_path: Path) -> None:
    count = 'm.queue_depth.labels("m", "v").set(7); m.rejected.labels("m", "capacity").inc(3); '
    before = _in_multiprocess(
        tmp_path, _worker(1) + count + SCRAPE + "; import sys; sys.stdout.flush(); os._exit(0)"
    )
    assert 'mipgate_queue_depth{model="m",variant="v"} 7.0' in before.stdout
    assert list(tmp_path.glob("gauge_livesum_*.db"))  # it died without a word
    again = 'm.queue_depth.labels("m", "v").set(1); m.rejected.labels("m", "capacity").inc(1); '
    after = _in_multiprocess(tmp_path, _worker(2) + again + SCRAPE).stdout
    assert 'mipgate_queue_depth{model="m",variant="v"} 1.0' in after
    assert 'mipgate_rejected_total{model="m",reason="capacity"} 4.0' in after
    assert 'mipgate_worker_start_time_seconds{worker="2"}' in after
    assert 'mipgate_worker_start_time_seconds{worker="1"}' not in after
    assert "mipgate_queue_limit_requests 1024.0" in after


def test_a_scrape_forgets_a_dead_worker_that_nobody_replaced(tmp_path: Path) -> None:
    count = 'm.queue_depth.labels("m", "v").set(7); m.rejected.labels("m", "capacity").inc(3); '
    _in_multiprocess(tmp_path, _worker(1) + count + "os._exit(0)")
    after = _in_multiprocess(tmp_path, SCRAPE).stdout
    assert "mipgate_queue_depth{" not in after
    assert 'mipgate_rejected_total{model="m",reason="capacity"} 3.0' in after


def test_rare_counters_of_a_model_start_at_zero(metrics: Metrics, registry: CollectorRegistry) -> None:
    metrics.expect("digits", ["fast", "accurate"])
    scraped = generate_latest(registry).decode()
    for reason in REASONS:
        assert f'mipgate_rejected_total{{model="digits",reason="{reason}"}} 0.0' in scraped
    assert 'mipgate_deadline_missed_total{model="digits",tier="fast"} 0.0' in scraped
    metrics.watched("digits", "candidate 2", ["p99"])
    scraped = generate_latest(registry).decode()
    for arm, guard in (("candidate", "errors"), ("candidate 2", "errors"), ("candidate 2", "p99")):
        labels = f'{{arm="{arm}",model="digits",statistic="{guard}"}}'
        assert f"mipgate_rollout_guard_breaches_total{labels} 0.0" in scraped


def test_the_gauges_of_a_living_worker_stay(tmp_path: Path) -> None:
    mine = tmp_path / f"gauge_livesum_{os.getpid()}.db"
    mine.touch()
    strange = tmp_path / "gauge_livesum_strange.db"
    strange.touch()
    _in_multiprocess(tmp_path, "from service.metrics import forget_dead_workers; forget_dead_workers()")
    assert mine.exists()
    assert strange.exists()
