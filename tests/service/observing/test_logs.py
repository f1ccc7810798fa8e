"""Logs: one JSON line per decision, no flood, no secrets, no payloads."""

from __future__ import annotations

import io
import json
import logging
from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.trace import use_span
from prometheus_client import CollectorRegistry

from service.config import Config
from service.errors import BadRequestError, DeadlineError, InferenceError, UnavailableError
from service.lag import LoopLag
from service.metrics import Metrics
from service.observing.bursts import Bursts
from service.observing.logs import RequestLog, configure_logs, tell_left_out
from service.observing.observers import Observers
from service.observing.redaction import HIDDEN, redact
from tests.service.observing.courses import course
from variants.catalog import Catalog

NAMES = ("", "mipgate", "bentoml", "circus", "uvicorn.error")


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


class Written(io.StringIO):
    """What was logged."""

    @property
    def lines(self) -> list[dict[str, Any]]:
        return [json.loads(line) for line in self.getvalue().splitlines()]

    @property
    def events(self) -> list[str]:
        return [line["event"] for line in self.lines]


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def written(clock: Clock) -> Iterator[Written]:
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(logger.handlers, logger.level, logger.propagate) for logger in loggers]
    written = Written()
    written.bursts = configure_logs("json", "info", written, Bursts(3, 10.0, clock))  # type: ignore[attr-defined]
    yield written
    structlog.reset_defaults()
    for logger, (handlers, level, propagate) in zip(loggers, before, strict=True):
        logger.handlers, logger.propagate = handlers, propagate
        logger.setLevel(level)


def requests(written: Written, share: float = 0.0, draw: float = 0.5) -> RequestLog:
    return RequestLog(share, written.bursts, 1e9, lambda: draw)  # type: ignore[attr-defined]


def test_loggers_of_the_standard_library_write_the_same_lines(written: Written) -> None:
    logging.getLogger("mipgate.fleet").info("%s serves %s", "digits", "fp32")
    structlog.stdlib.get_logger("mipgate.rollout").info("transition", model="digits", phase="promoting")
    logging.getLogger("some.library").info("nobody asked")
    logging.getLogger("bentoml").warning("from BentoML")
    one, two, three = written.lines
    assert one.items() >= {"event": "digits serves fp32", "logger": "mipgate.fleet", "level": "info"}.items()
    assert two["phase"] == "promoting"
    assert three["logger"] == "bentoml"
    assert all(line["timestamp"].endswith("Z") for line in written.lines)


def test_a_traceback_is_part_of_its_line(written: Written) -> None:
    try:
        raise RuntimeError("boom")
    except RuntimeError:
        logging.getLogger("mipgate.data_plane").exception("request %s failed", "abc")
    (line,) = written.lines
    assert "RuntimeError: boom" in line["exception"]


def test_lines_name_the_trace_that_they_belong_to(written: Written) -> None:
    span = TracerProvider().get_tracer("t").start_span("s")
    with use_span(span, end_on_exit=True):
        logging.getLogger("mipgate.scheduler").error("inside")
    logging.getLogger("mipgate.scheduler").error("outside")
    inside, outside = written.lines
    assert inside["trace_id"] == f"{span.get_span_context().trace_id:032x}"
    assert "trace_id" not in outside


@pytest.mark.parametrize(("tty", "format", "is_json"), [(True, "auto", False), (False, "auto", True),
                         (True, "json", True), (False, "console", False)])  # fmt: skip
def test_people_on_a_terminal_get_no_json(written: Written, tty: bool, format: Any, is_json: bool) -> None:
    out = Written()
    out.isatty = lambda: tty  # type: ignore[method-assign]
    configure_logs(format, "info", out)
    logging.getLogger("mipgate").warning("hello")
    assert out.getvalue().startswith("{") is is_json


def test_the_least_that_is_told_can_be_set(written: Written) -> None:
    out = Written()
    configure_logs("json", "error", out)
    logging.getLogger("mipgate.fleet").warning("a warning")
    structlog.stdlib.get_logger("mipgate.fleet").warning("another")
    logging.getLogger("mipgate.fleet").error("an error")
    assert out.events == ["an error"]


# ---- requests


def test_answered_requests_get_no_more_lines_in_a_second_than_are_wanted(written: Written) -> None:
    log = RequestLog(1.0, written.bursts, 10.0, lambda: 0.0)  # type: ignore[attr-defined]
    for arrived in (100.0, 100.05, 100.11, 100.12, 100.3):
        log.served(course(arrived=arrived))
    assert len(written.lines) == 3
    log.served(course(arrived=100.31, error=InferenceError("boom"), outputs=None))
    assert len(written.lines) == 4  # failures have bounds of their own


def test_a_share_of_the_answered_requests_gets_a_line(written: Written) -> None:
    requests(written, 0.25, 0.25).served(course())
    requests(written, 0.0, 0.0).served(course())
    assert not written.lines
    requests(written, 0.25, 0.24).served(course(arm="candidate"))
    (line,) = written.lines
    said = {"event": "request", "model": "digits", "variant": "fp16", "tier": "balanced", "arm": "candidate"}
    assert line.items() >= (said | {"rows": 1, "batch_rows": 3, "queue_ms": 3.0, "infer_ms": 4.0}).items()
    assert line["total_ms"] == 10.0
    assert line["request_id"] == "abc-1"


@pytest.mark.parametrize(
    ("facts", "event"),
    [
        ({"error": UnavailableError("full. Wait.", "capacity")}, "shed"),
        ({"error": DeadlineError("late. Wait.")}, "late"),
        ({"error": InferenceError("broken. Wait.")}, "fail"),
        ({"degraded_from": "fp32"}, "degrade"),
    ],
)
def test_what_did_not_go_as_asked_is_always_told(written: Written, facts: Any, event: str) -> None:
    requests(written).served(course(**facts))
    (line,) = written.lines
    assert line["event"] == event
    assert line["level"] == "warning"


def test_a_request_that_no_variant_was_found_for_is_told(written: Written) -> None:
    requests(written).refused(UnavailableError("full. Wait.", "capacity"), "digits", "fast", "mine-1")
    (line,) = written.lines
    said = {"event": "shed", "model": "digits", "tier": "fast", "reason": "capacity", "error": "full. Wait."}
    assert line.items() >= (said | {"request_id": "mine-1"}).items()


def test_what_callers_do_wrong_is_not_logged(written: Written) -> None:
    requests(written, 1.0, 0.0).served(course(error=BadRequestError("no. Mend it.")))
    assert not written.lines


# ---- bursts


def test_a_burst_of_one_decision_is_cut_short_and_counted(written: Written, clock: Clock) -> None:
    log = requests(written)
    for _ in range(1000):
        log.served(course(error=UnavailableError("full. Wait.")))
    log.served(course(error=UnavailableError("broken. Wait.", "breaker")))
    assert written.events == ["shed"] * 4  # three of one reason, one of another
    clock.now = 10.0
    log.served(course(error=UnavailableError("full. Wait.")))
    assert written.lines[-1]["left_out"] == 997


def test_loggers_of_the_standard_library_cannot_flood_either(written: Written, clock: Clock) -> None:
    for number in range(100):
        logging.getLogger("mipgate.scheduler").error("a batch of %d rows failed", number)
    assert len(written.lines) == 3
    clock.now = 10.0
    logging.getLogger("mipgate.scheduler").error("a batch of %d rows failed", 100)
    assert written.lines[-1]["left_out"] == 97


def test_no_line_of_an_audit_is_left_out(written: Written) -> None:
    for number in range(100):
        logging.getLogger("mipgate.audit").info("%s: release %d", "key root", number)
    assert len(written.lines) == 100


def test_when_a_burst_is_over_its_number_is_told(written: Written, clock: Clock) -> None:
    for _ in range(10):
        requests(written).served(course(error=UnavailableError("full. Wait.")))
    tell_left_out(written.bursts)  # type: ignore[attr-defined]
    assert written.events == ["shed"] * 3
    clock.now = 10.0
    for _ in range(2):
        tell_left_out(written.bursts)  # type: ignore[attr-defined]
    assert written.events == ["shed"] * 3 + ["lines left out"]
    assert written.lines[-1]["left_out"] == 7
    assert "shed" in written.lines[-1]["of"]


def test_kinds_without_end_share_one_window() -> None:
    bursts = Bursts(2, 10.0, Clock())
    admitted = sum(bursts.admit(number) is not None for number in range(5000))
    assert admitted == 1002


# ---- secrets and payloads

SECRET_HEADERS = (
    "authorization", "Authorization", "proxy-authorization", "cookie", "set-cookie", "x-api-key", "X-API-Key",
    "x-mipgate-key", "x-mipgate-sticky-key", "x-auth-token", "api_key", "client-secret", "password",
)  # fmt: skip
WORDS = st.text(st.characters(min_codepoint=33, max_codepoint=126), min_size=1, max_size=20)
SECRETS = st.text(st.characters(categories=["L", "N", "P", "Zs"]), min_size=1, max_size=40).map(
    lambda text: f"S3CRET{text}S3CRET"
)
HEADERS = st.lists(
    st.one_of(st.tuples(st.sampled_from(SECRET_HEADERS), SECRETS), st.tuples(WORDS, WORDS)), max_size=8
)


@given(HEADERS, SECRETS)
def test_no_way_to_log_headers_lets_a_secret_through(headers: list[tuple[str, str]], key: str) -> None:
    raw = [(name.encode(), value.encode()) for name, value in headers]
    for value in (headers, raw, dict(headers), dict(raw), {"scope": {"headers": raw}}, [*headers]):
        assert "S3CRET" not in json.dumps(redact(value))
        assert "S3CRET" not in json.dumps(redact(f"headers were {value}"))
    for text in (
        f"Bearer {key[:6]}",
        f"key=mipgate_0123456789ab_{key[:6]}",
        f"postgresql://me:{key[:6]}@db/x",
    ):
        assert "S3CRET" not in json.dumps(redact(text))


@given(HEADERS)
def test_headers_in_a_line_are_hidden_however_they_came_there(headers: list[tuple[str, str]]) -> None:
    out = Written()
    root, mipgate = logging.getLogger(), logging.getLogger("mipgate")
    before = root.handlers, root.level, mipgate.level
    try:
        configure_logs("json", "info", out, Bursts(1000))
        logging.getLogger("mipgate.x").warning("headers %s", headers)
        structlog.stdlib.get_logger("mipgate.x").warning(
            "headers", headers=headers, **{f"h{number}": pair for number, pair in enumerate(headers)}
        )
    finally:
        structlog.reset_defaults()
        root.handlers = before[0]
        root.setLevel(before[1])
        mipgate.setLevel(before[2])
    assert len(out.lines) == 2
    assert "S3CRET" not in out.getvalue()


def test_payloads_are_told_by_their_size(written: Written) -> None:
    rows = np.full((2, 64), 7.25, np.float32)
    facts = {"body": rows.tobytes(), "rows": rows, "values": rows.ravel().tolist()}
    structlog.stdlib.get_logger("mipgate.x").warning("x", **facts)
    (line,) = written.lines
    assert line["body"] == "(512 bytes)"
    assert line["rows"] == "(float32 [2, 64])"
    assert line["values"] == "(128 items)"
    assert len(redact("a" * 10_000)) < 2100
    assert redact({"password": "x"}) == {"password": HIDDEN}


# ---- together


def test_what_is_switched_off_is_not_there(written: Written, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("OTEL_EXPORTER_OTLP_ENDPOINT", "OTEL_EXPORTER_OTLP_TRACES_ENDPOINT"):
        monkeypatch.delenv(name, raising=False)
    observers = Observers(Config(drift_share=0), "1", Catalog().card_file, Metrics(CollectorRegistry()))
    assert observers.listeners == [observers.requests]
    assert observers.around(nobody, LoopLag()) is nobody


async def nobody(*_: Any) -> None:
    """An app."""
