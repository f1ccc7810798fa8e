"""Traces: spans of each sampled request reach a collector, below the caller's span; off there is nothing."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterator
from typing import Any

import pytest

from service.config import ConfigError
from service.errors import DeadlineError, InferenceError, UnavailableError
from service.lag import LoopLag
from service.observing.tracing import (
    Receive,
    Scope,
    Send,
    TracedApp,
    Tracing,
    tracing_from_environment,
)
from tests.service.channel import channel
from tests.service.observing.collector import Collector, collecting
from tests.service.observing.courses import course

TRACE, CALLER = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
SAMPLED, UNSAMPLED = f"00-{TRACE}-{CALLER}-01", f"00-{TRACE}-{CALLER}-00"
STEPS = {"route", "queue", "batch", "infer"}
ROOT = "POST /v2/models/{model}/infer"


@pytest.fixture
def collector(monkeypatch: pytest.MonkeyPatch) -> Iterator[Collector]:
    with collecting() as collector:
        monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", collector.url)
        monkeypatch.setenv("OTEL_BSP_SCHEDULE_DELAY", "50")
        yield collector


@pytest.fixture
def tracing(collector: Collector) -> Iterator[Tracing]:
    tracing = tracing_from_environment("1")
    assert tracing is not None
    yield tracing
    tracing.close()


class App:
    """Stands for the data plane: answers, and tells how the request ended."""

    def __init__(self, tracing: Tracing, status: int = 200, **facts: Any) -> None:
        self.status, self.facts, self.tracing = status, facts, tracing
        self.together: asyncio.Barrier | None = None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.together is not None:
            await self.together.wait()
        now = time.perf_counter()
        self.tracing.served(course(**{"arrived": now, "started": now + 0.005} | self.facts))
        await send({"type": "http.response.start", "status": self.status, "headers": []})
        await send({"type": "http.response.body", "body": b""})


async def call(app: Any, *headers: tuple[str, str], path: str = "/v2/models/digits/infer") -> dict[str, str]:
    """The headers of the answer."""
    receive, send, sent = channel([{"type": "http.request", "body": b""}])
    scope = {
        "type": "http",
        "method": "POST",
        "path": path,
        "headers": [(name.encode(), value.encode()) for name, value in headers],
    }
    await app(scope, receive, send)
    return {name.decode(): value.decode() for name, value in sent[0]["headers"]}


def run(tracing: Tracing, *headers: tuple[str, str], lag_s: float = 0.0, **facts: Any) -> str:
    lag = LoopLag()
    lag.seconds = lag_s

    async def scenario() -> str:
        answer = await call(TracedApp(App(tracing, **facts), tracing, lag), *headers)
        await asyncio.sleep(0)
        return answer["traceparent"]

    return asyncio.run(scenario())


def test_the_steps_of_a_request_are_spans_below_the_callers(tracing: Tracing, collector: Collector) -> None:
    answer = run(tracing, ("traceparent", SAMPLED), ("tracestate", "vendor=1"), arm="candidate")
    collector.wait_for(5)
    spans = collector.of(TRACE)
    assert spans.keys() == {ROOT, *STEPS}
    root = spans[ROOT]
    assert answer == f"00-{TRACE}-{root.id}-01"
    assert root.parent == CALLER
    assert {spans[name].parent for name in STEPS - {"infer"}} == {root.id}
    assert spans["infer"].parent == spans["batch"].id
    said = {"model": "digits", "variant": "fp16", "tier": "balanced", "arm": "candidate"}
    assert all(said.items() <= span.attributes.items() for span in spans.values())
    assert spans["batch"].attributes["rows"] == 3
    assert root.attributes["http.response.status_code"] == 200
    assert root.resource["service.name"] == "mipgate"
    assert not any(span.failed for span in spans.values())


def test_the_steps_follow_each_other_in_real_time(tracing: Tracing, collector: Collector) -> None:
    before = time.time_ns()
    run(tracing, ("traceparent", SAMPLED))
    collector.wait_for(5)
    spans = collector.of(TRACE)
    assert spans["route"].end == spans["queue"].start
    assert spans["queue"].end == spans["batch"].start == spans["infer"].start
    assert abs(spans["route"].start - before) < 5e9
    lengths = {name: (span.end - span.start) / 1e6 for name, span in spans.items()}
    expected = {"route": 2, "queue": 3, "batch": 5, "infer": 4}
    assert {name: lengths[name] for name in STEPS} == pytest.approx(expected, abs=0.01)


@pytest.mark.parametrize(("lag_s", "began_s"), [(0.02, 0.02), (0.0, 0.0)])
def test_a_request_that_waited_unseen_began_before_the_loop_saw_it(
    tracing: Tracing, collector: Collector, lag_s: float, began_s: float
) -> None:
    seen = time.perf_counter()
    run(tracing, ("traceparent", SAMPLED), lag_s=lag_s, arrived=seen - 0.02, started=seen + 0.005)
    collector.wait_for(5)
    spans = collector.of(TRACE)
    assert spans[ROOT].start <= spans["route"].start
    assert (spans["batch"].start - spans[ROOT].start) / 1e9 == pytest.approx(began_s + 0.005, abs=0.004)


def test_an_unsampled_caller_is_heeded_and_still_told_of_the_trace(
    tracing: Tracing, collector: Collector
) -> None:
    answer = run(tracing, ("traceparent", UNSAMPLED))
    assert answer.startswith(f"00-{TRACE}-")
    assert answer.endswith("-00")
    run(tracing)  # without a caller a trace of its own begins
    spans = collector.wait_for(5)
    assert TRACE not in {span.trace for span in spans}


@pytest.mark.parametrize("parent", ["", "rubbish", f"00-{'0' * 32}-{CALLER}-01", SAMPLED + "," + SAMPLED])
def test_a_parent_that_is_none_begins_a_trace(tracing: Tracing, collector: Collector, parent: str) -> None:
    run(tracing, ("traceparent", parent))
    spans = collector.wait_for(5)
    assert {span.trace for span in spans} != {TRACE}
    assert [span.parent for span in spans if span.name == ROOT] == [""]


def test_a_batch_links_the_requests_that_shared_it(tracing: Tracing, collector: Collector) -> None:
    started = time.perf_counter()

    async def scenario() -> None:
        app = App(tracing, started=started)
        app.together = asyncio.Barrier(3)
        await asyncio.gather(*[call(TracedApp(app, tracing, LoopLag())) for _ in range(3)])
        await asyncio.sleep(0)

    asyncio.run(scenario())
    spans = collector.wait_for(15)
    roots = {span.trace: span.id for span in spans if span.name == ROOT}
    batches = [span for span in spans if span.name == "batch"]
    assert len(roots) == len(batches) == 3
    for batch in batches:
        assert batch.links == {root for trace, root in roots.items() if trace != batch.trace}


@pytest.mark.parametrize(
    ("error", "step"),
    [
        (UnavailableError("x. y."), "route"),
        (DeadlineError("x. y."), "queue"),
        (InferenceError("x. y."), "infer"),
    ],
)
def test_a_failure_shows_in_the_step_that_it_ended_in(
    tracing: Tracing, collector: Collector, error: Exception, step: str
) -> None:
    run(tracing, ("traceparent", SAMPLED), error=error, outputs=None, started=0.0, status=503)
    collector.wait_for(2)
    spans = collector.of(TRACE)
    assert spans.keys() == {ROOT, step}
    assert all(span.failed for span in spans.values())
    assert spans[step].attributes["error.type"] == type(error).__name__


def test_other_paths_have_no_spans(tracing: Tracing, collector: Collector) -> None:
    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})

    assert asyncio.run(call(TracedApp(app, tracing, LoopLag()), path="/v2/repository/index")) == {}
    run(tracing)
    assert len(collector.wait_for(5)) == 5


def test_a_share_of_the_traces_is_sampled(collector: Collector, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_TRACES_SAMPLER", "parentbased_traceidratio")
    monkeypatch.setenv("OTEL_TRACES_SAMPLER_ARG", "0")
    monkeypatch.setenv("OTEL_SERVICE_NAME", "my-gateway")
    tracing = tracing_from_environment("1")
    assert tracing is not None
    run(tracing)
    run(tracing, ("traceparent", SAMPLED))
    tracing.close()
    assert {span.trace for span in collector.spans} == {TRACE}
    assert {span.resource["service.name"] for span in collector.spans} == {"my-gateway"}


@pytest.mark.parametrize(
    "environment",
    [
        {},
        {"OTEL_SDK_DISABLED": "true", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
        {"OTEL_TRACES_EXPORTER": "none", "OTEL_EXPORTER_OTLP_ENDPOINT": "http://127.0.0.1:4318"},
    ],
)
def test_without_an_endpoint_there_is_no_tracing(
    environment: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_ENDPOINT", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert tracing_from_environment("1") is None


def test_a_protocol_that_is_not_spoken_stops_the_start(
    collector: Collector, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_PROTOCOL", "grpc")
    with pytest.raises(ConfigError, match=r"grpc\. Set .*http/protobuf"):
        tracing_from_environment("1")
