"""A real gateway: its spans in a collector, its logs on standard error, its drift among the metrics."""

from __future__ import annotations

import json
import re
import time
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import Homes
from tests.gateway import Gateway, request, running
from tests.service.observing.collector import Collector, collecting
from variants.catalog import VALIDATION_FILE, Catalog
from variants.samples import read_split

SIGNALS = {"input:image", "input:image:mean", "input:image:spread", "prediction", "confidence"}
TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"


@pytest.fixture(scope="module")
def collector() -> Iterator[Collector]:
    with collecting() as collector:
        yield collector


@pytest.fixture
def gateway(homes: Homes, collector: Collector) -> Iterator[Gateway]:
    settings = {
        "OTEL_EXPORTER_OTLP_ENDPOINT": collector.url,
        "OTEL_BSP_SCHEDULE_DELAY": "100",
        "OTEL_TRACES_SAMPLER": "parentbased_always_off",
        "MIPGATE_LOG_REQUESTS": "1",
        "MIPGATE_LOG_REQUESTS_PER_S": "1e9",
        "MIPGATE_DRIFT_ROWS_PER_S": "100000",
    }
    with running(homes, **settings) as gateway:
        yield gateway


def lines(gateway: Gateway) -> list[dict[str, Any]]:
    return [json.loads(line) for line in gateway.log.read_text().splitlines() if line.startswith("{")]


def drift(gateway: Gateway) -> dict[str, float]:
    text = httpx.get(f"{gateway.url}/metrics").text
    found = re.findall(r'^mipgate_drift_score\{model="digits",signal="([^"]+)"\} (\S+)', text, re.MULTILINE)
    return {signal: float(value) for signal, value in found}


def test_a_request_can_be_followed_through_traces_logs_and_drift(
    gateway: Gateway, collector: Collector, digits: Catalog
) -> None:
    rows = read_split(digits.card_file("digits", VALIDATION_FILE)).inputs["image"]
    headers = {"traceparent": f"00-{TRACE}-{CALLER}-01", "authorization": "Bearer S3CRET"}
    url = f"{gateway.url}/v2/models/digits/infer"
    answer = httpx.post(url, json=request(rows[0], tier="fast"), headers=headers)
    assert answer.is_success
    collector.wait_for(5)
    spans = collector.of(TRACE)
    root = spans["POST /v2/models/{model}/infer"]
    assert answer.headers["traceparent"] == f"00-{TRACE}-{root.id}-01"
    assert {"route", "queue", "batch", "infer"} < spans.keys()
    assert spans["infer"].attributes["variant"] == answer.headers["x-mipgate-variant"]
    assert root.start <= spans["route"].start <= spans["infer"].start <= spans["infer"].end <= root.end

    told = next(line for line in lines(gateway) if line["event"] == "request")
    assert told["trace_id"] == TRACE
    assert told["request_id"] == answer.headers["x-mipgate-request-id"]
    assert any("digits serves" in line["event"] for line in lines(gateway))

    pinned = f"{gateway.url}/v2/models/digits/versions/fp32/infer"
    with httpx.Client() as client:
        for row in rows[1:320]:
            client.post(pinned, json=request(row))
        wait_for(gateway, lambda scores: scores.keys() >= SIGNALS)
        assert max(drift(gateway).values()) < 0.2
        for row in rows:
            client.post(pinned, json=request(row * np.float32(0.3)))
        wait_for(gateway, lambda scores: scores["input:image:mean"] > 0.2)
    assert {span.trace for span in collector.spans} == {TRACE}  # others had no sampled caller
    log = gateway.log.read_text()
    assert "S3CRET" not in log


def wait_for(gateway: Gateway, condition: Callable[[dict[str, float]], bool]) -> None:
    end = time.monotonic() + 20
    while not condition(drift(gateway)):
        assert time.monotonic() < end, drift(gateway)
        time.sleep(0.1)
