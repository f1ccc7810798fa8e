"""Logs: one JSON line for each decision worth knowing, with the trace that it belongs to.

Every logger of a worker ends in one handler on standard error, those of libraries too. What comes too often
is left out and counted; what may be secret or a payload is hidden (`service.observing.redaction`).
"""

from __future__ import annotations

import logging
import random
import sys
from collections.abc import Callable, Hashable
from typing import Any, Literal, TextIO

import orjson
import structlog
from opentelemetry.trace import get_current_span

from service.course import Course
from service.errors import DeadlineError, ServiceError, UnavailableError
from service.observing.bursts import Bursts
from service.observing.redaction import redact_event

Format = Literal["auto", "json", "console"]
Level = Literal["debug", "info", "warning", "error"]

_ROOT_LEVEL = logging.WARNING
_REQUESTS = "mipgate.requests"
_AUDIT = "mipgate.audit"
# Loggers that BentoML gives handlers of their own.
_HANDLED_ELSEWHERE = ("bentoml", "circus", "uvicorn.error")
# What tells one decision from another beside its event.
_KIND = ("model", "variant", "tier", "reason")

log: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger("mipgate.logs")
requests: structlog.stdlib.BoundLogger = structlog.stdlib.get_logger(_REQUESTS)


class RequestLog:
    """Tells of requests: each that was refused, late, failed or degraded, and a share of all.

    Args:
        share: Share of the answered requests that get a line, 0 to 1.
        bursts: Bounds the lines of others.
        lines_per_s: Most lines of answered requests in a second.
        draw: Numbers from 0 to 1.
    """

    def __init__(
        self,
        share: float,
        bursts: Bursts,
        lines_per_s: float = 20.0,
        draw: Callable[[], float] = random.random,
    ) -> None:
        self._share = share
        self._seconds_per_line = 1 / lines_per_s
        self._next = 0.0
        self._bursts = bursts
        self._draw = draw

    def served(self, course: Course) -> None:
        """Tells of a request that ended, if it is worth a line.

        Of the answered ones a share is, and not many in a second.
        """
        done, route = course.done, course.route
        if done is not None and (course.arrived < self._next or self._draw() >= self._share):
            done = None
        if done is None and course.error is None and (route is None or route.degraded_from is None):
            return
        names = {"model": course.model.name, "variant": course.variant.name, "tier": course.tier}
        if course.error is not None:
            self._end(course.error, **names, arm=course.arm, request_id=course.request_id)
        elif course.degraded_from is not None:
            self._decide("degrade", wanted=course.degraded_from, **names, request_id=course.request_id)
        if done is not None:
            self._next = course.arrived + self._seconds_per_line
            requests.info(
                "request",
                **names,
                arm=course.arm,
                rows=course.request.rows,
                batch_rows=done.batch_rows,
                queue_ms=round(done.queue_s * 1e3, 3),
                infer_ms=round(done.infer_s * 1e3, 3),
                total_ms=round(course.total_s * 1e3, 3),
                request_id=course.request_id,
            )

    def refused(self, error: ServiceError, model: str, tier: str, request_id: str) -> None:
        """Tells of a request that no variant was found for."""
        self._end(error, model=model, tier=tier, request_id=request_id)

    def _end(self, error: ServiceError, **facts: str) -> None:
        """What callers do wrong is theirs to know."""
        match error:
            case UnavailableError():
                self._decide("shed", reason=error.reason or "", error=str(error), **facts)
            case DeadlineError():
                self._decide("late", error=str(error), **facts)
            case _ if error.status >= 500:
                self._decide("fail", error=str(error), **facts)

    def _decide(self, event: str, **facts: str) -> None:
        """A line, unless too many of its kind were written: then not even a record is made."""
        left_out = self._bursts.admit((_REQUESTS, event, *(facts.get(name) for name in _KIND)))
        if left_out is not None:
            requests.warning(event, **facts, **({"left_out": left_out} if left_out else {}))


class _BurstFilter(logging.Filter):
    """Leaves out what comes too often; lines of requests were asked before they were made.

    An audit's lines all come.
    """

    def __init__(self, bursts: Bursts) -> None:
        super().__init__()
        self._bursts = bursts

    def filter(self, record: logging.LogRecord) -> bool:
        """Whether the record is written."""
        if record.name in (_REQUESTS, log.name, _AUDIT):
            return True
        left_out = self._bursts.admit((record.name, record.levelno, *_kind(record.msg)))
        record.left_out = left_out or 0
        return left_out is not None


def configure_logs(
    format: Format = "auto", level: Level = "info", stream: TextIO | None = None, bursts: Bursts | None = None
) -> Bursts:
    """Makes every logger of this process write to one place in one form.

    Args:
        format: `json`, `console`, or `auto` for the console's on a terminal and JSON elsewhere.
        level: The least that Mipgate's own loggers tell; of libraries, warnings and worse.
        stream: Where to; None for standard error.
        bursts: Bounds lines of one kind; None for the usual bounds.

    Returns:
        What bounds lines of one kind, for `tell_left_out`.
    """
    out, bursts = stream or sys.stderr, bursts or Bursts()
    for_people = out.isatty() if format == "auto" else format == "console"
    shared: list[Any] = [
        structlog.stdlib.add_logger_name,
        structlog.stdlib.add_log_level,
        structlog.processors.TimeStamper(fmt="iso", utc=True),
    ]
    handler = logging.StreamHandler(out)
    handler.addFilter(_BurstFilter(bursts))
    handler.setFormatter(
        structlog.stdlib.ProcessorFormatter(
            foreign_pre_chain=shared,
            processors=[
                _add_left_out,
                _add_trace,
                structlog.processors.format_exc_info,
                redact_event,
                structlog.stdlib.ProcessorFormatter.remove_processors_meta,
                structlog.dev.ConsoleRenderer() if for_people else structlog.processors.JSONRenderer(_json),
            ],
        )
    )
    structlog.configure(
        processors=[
            structlog.stdlib.filter_by_level,
            *shared,
            structlog.stdlib.ProcessorFormatter.wrap_for_formatter,
        ],
        logger_factory=structlog.stdlib.LoggerFactory(),
        wrapper_class=structlog.stdlib.BoundLogger,
        cache_logger_on_first_use=False,
    )
    _hand_over(handler, level)
    return bursts


def tell_left_out(bursts: Bursts) -> None:
    """Tells how many lines were left out of each kind that is quiet again; called now and then."""
    for kind, count in bursts.ended():
        log.warning("lines left out", of=_text(kind), left_out=count)


def _hand_over(handler: logging.Handler, level: Level) -> None:
    root = logging.getLogger()
    root.handlers = [handler]
    root.setLevel(_ROOT_LEVEL)
    for name in _HANDLED_ELSEWHERE:
        logging.getLogger(name).handlers = []
        logging.getLogger(name).propagate = True
    logging.getLogger("mipgate").setLevel(level.upper())


def _kind(message: object) -> tuple[Hashable, ...]:
    if isinstance(message, dict):
        return (message.get("event"), *(message.get(name) for name in _KIND))
    return (str(message),)


def _text(kind: Hashable) -> str:
    parts = kind if isinstance(kind, tuple) else (kind,)
    return " ".join(str(part) for part in parts if part is not None and not isinstance(part, int))


def _add_left_out(_: Any, __: str, event: Any) -> Any:
    if left_out := getattr(event["_record"], "left_out", 0):
        event["left_out"] = left_out
    return event


def _add_trace(_: Any, __: str, event: Any) -> Any:
    """The trace and span that the line belongs to, in the form of `traceparent`."""
    context = get_current_span().get_span_context()
    if context.is_valid:
        event["trace_id"] = f"{context.trace_id:032x}"
        event["span_id"] = f"{context.span_id:016x}"
    return event


def _json(event: Any, **_: Any) -> str:
    return orjson.dumps(event, default=str).decode()
