"""OpenTelemetry spans of inference requests: route, queue, batch, infer below one span per request.

The spans are made after the fact, from the times that an course has anyway; switched off, nothing of this is
in the path of a request. Configured by OpenTelemetry's own environment variables alone:
https://opentelemetry.io/docs/specs/otel/configuration/sdk-environment-variables/.
"""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Mapping
from contextvars import ContextVar
from dataclasses import dataclass, replace
from itertools import groupby

from opentelemetry import context as otel_context
from opentelemetry.sdk.resources import SERVICE_INSTANCE_ID, SERVICE_NAME, Resource
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import BatchSpanProcessor
from opentelemetry.trace import Link, Span, SpanKind, StatusCode, set_span_in_context
from opentelemetry.trace.propagation.tracecontext import TraceContextTextMapPropagator

from service.asgi import App, Headers, Message, Receive, Scope, Send
from service.config import ConfigError
from service.course import Course
from service.errors import DeadlineError, InferenceError, ServiceError
from service.lag import LoopLag

_ENDPOINTS = ("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "OTEL_EXPORTER_OTLP_ENDPOINT")
_PROTOCOLS = ("OTEL_EXPORTER_OTLP_TRACES_PROTOCOL", "OTEL_EXPORTER_OTLP_PROTOCOL")
_SPOKEN = "http/protobuf"
_PARENT_HEADERS = (b"traceparent", b"tracestate")
_PROPAGATOR = TraceContextTextMapPropagator()


@dataclass(frozen=True, slots=True)
class _Traced:
    """A request whose spans will be sent.

    Attributes:
        span: The request's own; those below it begin no earlier.
        began_ns: When that began, in Unix time.
        epoch_ns: Turns `time.perf_counter` into Unix time.
    """

    span: Span
    began_ns: int
    epoch_ns: int

    def unix_ns(self, moment: float) -> int:
        return max(self.began_ns, self.epoch_ns + int(moment * 1e9))


_traced: ContextVar[_Traced | None] = ContextVar("mipgate_traced", default=None)


class Tracing:
    """Sends spans of sampled requests; listens to how each request ended.

    Args:
        provider: Samples, and sends what ended.
    """

    def __init__(self, provider: TracerProvider) -> None:
        self._provider = provider
        self._tracer = provider.get_tracer("mipgate")
        self._ended: list[tuple[_Traced, Course]] = []

    def begin(self, scope: Scope, began_ns: int) -> Span:
        """The span of a request, below the caller's when its headers name one."""
        carrier = _parent_headers(scope["headers"])
        parent = _PROPAGATOR.extract(carrier) if carrier else otel_context.Context()
        attributes = {"http.request.method": scope["method"], "url.scheme": scope.get("scheme", "http")}
        return self._tracer.start_span(
            "POST /v2/models/{model}/infer",
            parent,
            SpanKind.SERVER,
            attributes=attributes,
            start_time=began_ns,
        )

    def served(self, course: Course) -> None:
        """Notes a request that ended; its spans are made when all of its batch have."""
        traced = _traced.get()
        if traced is None:
            return
        if not self._ended:
            # The others of the batch were woken before this one ran: they are told first.
            asyncio.get_running_loop().call_soon(self._make_spans)
        self._ended.append((traced, course))
        traced.span.set_attributes({**_attributes(course), "mipgate.request_id": course.request_id})

    def close(self) -> None:
        """Sends what waits; takes as long as the exporter gives itself."""
        self._provider.shutdown()

    def _make_spans(self) -> None:
        ended, self._ended = self._ended, []
        ended.sort(key=lambda item: (item[1].started, item[1].variant.key))
        for (started, _), group in groupby(ended, lambda item: (item[1].started, item[1].variant.key)):
            batch = list(group)
            for traced, course in batch:
                if started:
                    others = [Link(t.span.get_span_context()) for t, _ in batch if t is not traced]
                    self._answered(traced, course, others)
                elif course.error is not None:
                    self._failed(traced, course, course.error)

    def _answered(self, traced: _Traced, course: Course, others: list[Link]) -> None:
        done = course.done
        assert done is not None  # it was answered
        began, ended = done.started, course.arrived + course.total_s
        queued = max(course.arrived, began - done.queue_s)
        self._add(traced, "route", course, course.arrived, queued)
        self._add(traced, "queue", course, queued, began)
        batch = self._add(traced, "batch", course, began, ended, others, {"rows": done.batch_rows})
        self._add(replace(traced, span=batch), "infer", course, began, began + done.infer_s)

    def _failed(self, traced: _Traced, course: Course, error: ServiceError) -> None:
        """One span, of the step that it ended in: more is not known of a failure."""
        match error:
            case DeadlineError():
                name = "queue"
            case InferenceError():
                name = "infer"
            case _:
                name = "route"
        self._add(traced, name, course, course.arrived, course.arrived + course.total_s)

    def _add(
        self,
        above: _Traced,
        name: str,
        course: Course,
        start: float,
        end: float,
        links: list[Link] | None = None,
        more: Mapping[str, int] | None = None,
    ) -> Span:
        attributes: dict[str, str | int] = {**_attributes(course), **(more or {})}
        span = self._tracer.start_span(
            name,
            set_span_in_context(above.span, otel_context.Context()),
            attributes=attributes,
            links=links,
            start_time=above.unix_ns(start),
        )
        if course.error is not None:
            span.set_status(StatusCode.ERROR)
        span.end(above.unix_ns(end))
        return span


class TracedApp:
    """An ASGI app with a span around each inference request; the answer names the span in `traceparent`.

    Args:
        app: What is traced.
        tracing: Sends the spans.
        lag: How much earlier a request came than the loop says.
    """

    def __init__(self, app: App, tracing: Tracing, lag: LoopLag) -> None:
        self._app = app
        self._tracing = tracing
        self._lag = lag

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection event of ASGI."""
        if scope["type"] != "http" or not _is_inference(scope):
            await self._app(scope, receive, send)
            return
        now_ns = time.time_ns()
        epoch_ns = now_ns - int(time.perf_counter() * 1e9)
        began_ns = now_ns - int(self._lag.seconds * 1e9)
        span = self._tracing.begin(scope, began_ns)
        carrier: dict[str, str] = {}
        _PROPAGATOR.inject(carrier, set_span_in_context(span, otel_context.Context()))
        header = (b"traceparent", carrier["traceparent"].encode())

        async def send_traced(message: Message) -> None:
            if message["type"] == "http.response.start":
                message["headers"] = [*message["headers"], header]
                _tell_status(span, message["status"])
            await send(message)

        if span.is_recording():
            _traced.set(_Traced(span, began_ns, epoch_ns))
        token = otel_context.attach(set_span_in_context(span))  # log lines find it there
        try:
            await self._app(scope, receive, send_traced)
        finally:
            otel_context.detach(token)
            _traced.set(None)
            span.end()


def tracing_from_environment(worker: str) -> Tracing | None:
    """Tracing as the environment has it, or None when it is off: without an endpoint there is none.

    Args:
        worker: Tells this worker's spans from the others'.

    Raises:
        ConfigError: The environment asks for an exporter or a protocol that is not here.
    """
    if os.environ.get("OTEL_SDK_DISABLED", "").strip().lower() == "true":
        return None
    exporter = os.environ.get("OTEL_TRACES_EXPORTER") or "otlp"
    if exporter == "none" or not any(os.environ.get(name) for name in _ENDPOINTS):
        return None
    protocol = next((os.environ[name] for name in _PROTOCOLS if os.environ.get(name)), _SPOKEN)
    if exporter != "otlp" or protocol != _SPOKEN:
        raise ConfigError(
            f"traces cannot be sent by {exporter} over {protocol}. Set OTEL_TRACES_EXPORTER=otlp and "
            f"OTEL_EXPORTER_OTLP_PROTOCOL={_SPOKEN}; collectors take it on port 4318."
        )
    # Imported where traces are sent: it takes a fifth of a second.
    from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter

    provider = TracerProvider(resource=_resource(worker))
    provider.add_span_processor(BatchSpanProcessor(OTLPSpanExporter()))
    return Tracing(provider)


def _resource(worker: str) -> Resource:
    """What the environment says of this service; where it says nothing, its own name."""
    named = Resource.create()
    if str(named.attributes[SERVICE_NAME]).startswith("unknown_service"):
        named = named.merge(Resource({SERVICE_NAME: "mipgate"}))
    return named.merge(Resource({SERVICE_INSTANCE_ID: worker}))


def _is_inference(scope: Scope) -> bool:
    path: str = scope["path"]
    return path.endswith("/infer") and path.startswith("/v2/") and scope["method"] == "POST"


def _parent_headers(headers: Headers) -> dict[str, str]:
    found: dict[str, str] = {}
    for name, value in headers:
        if name in _PARENT_HEADERS:
            key, text = name.decode(), value.decode("latin-1")
            found[key] = f"{found[key]},{text}" if key in found else text
    return found


def _tell_status(span: Span, status: int) -> None:
    span.set_attribute("http.response.status_code", status)
    if status >= 500:
        span.set_status(StatusCode.ERROR)


def _attributes(course: Course) -> dict[str, str]:
    said = {
        "model": course.model.name,
        "variant": course.variant.name,
        "tier": course.tier,
        "arm": course.arm,
    }
    return said if course.error is None else said | {"error.type": type(course.error).__name__}
