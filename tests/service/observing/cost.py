"""What observing costs a request: `python -m tests.service.observing.cost`.

Microseconds of one core per request, the least of several rounds, beside a data plane that needs 40 to 60.
"""

from __future__ import annotations

import asyncio
import itertools
import os
from collections.abc import Awaitable, Callable
from dataclasses import replace
from time import perf_counter
from types import SimpleNamespace
from typing import Any

import numpy as np
from prometheus_client import CollectorRegistry

from compression.signature import Signature, TensorSpec
from service.asgi import App, Message, Receive, Scope, Send
from service.course import Course, Listener
from service.errors import UnavailableError
from service.lag import LoopLag
from service.metrics import Metrics
from service.observing.bursts import Bursts
from service.observing.drift import Drift
from service.observing.logs import RequestLog, configure_logs
from service.observing.tracing import TracedApp, tracing_from_environment
from tests.service.observing.collector import collecting
from tests.service.observing.courses import course
from variants.catalog import Catalog
from variants.serving_spec import ServingSpec

_ROUNDS, _CALLS = 7, 2000
_SPEC = ServingSpec(
    "digits",
    Signature(
        (TensorSpec("image", "float32", ("batch", 64)),), (TensorSpec("logits", "float32", ("batch", 10)),)
    ),
    "accuracy",
    "fp32",
)


class _App:
    """Answers nothing, and tells a listener that a request ended."""

    def __init__(self, listener: Listener | None, **facts: Any) -> None:
        self.listener, self.facts, self.clock = listener, facts, itertools.count(1)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if self.listener is not None:
            self.listener.served(_course(float(next(self.clock)), **self.facts))
        await send({"type": "http.response.start", "status": 200, "headers": []})


_COURSE = course(
    model=SimpleNamespace(name="digits", card=SimpleNamespace(spec=_SPEC)),
    request=SimpleNamespace(rows=1, inputs={"image": np.zeros((1, 64), np.float32)}),
    outputs={"logits": np.zeros((1, 10), np.float32)},
    variant=SimpleNamespace(name="fp16", key="digits/fp16@0", version="fp16@0"),
)


def _course(arrived: float, **facts: Any) -> Course:
    done = replace(_COURSE.done, started=arrived + 0.005) if _COURSE.done else None
    return replace(_COURSE, **({"arrived": arrived, "done": done} | facts))


async def _us(app: App, *headers: tuple[bytes, bytes]) -> float:
    """The least of several rounds, in microseconds per call."""

    async def send(message: Message) -> None:
        pass

    receive: Callable[[], Awaitable[Message]] = lambda: asyncio.sleep(0, {})  # noqa: E731
    scope = {"type": "http", "method": "POST", "path": "/v2/models/digits/infer", "headers": list(headers)}
    rounds = []
    for _ in range(_ROUNDS):
        began = perf_counter()
        for _ in range(_CALLS):
            await app(scope, receive, send)
        await asyncio.sleep(0)
        rounds.append((perf_counter() - began) / _CALLS * 1e6)
        await asyncio.sleep(0.3)  # the exporter sends meanwhile
    return min(rounds)


async def _measure() -> dict[str, float]:
    tracing = tracing_from_environment("1")
    assert tracing is not None
    bursts = Bursts()
    configure_logs("json", "info", open(os.devnull, "w"), bursts)  # noqa: PTH123, SIM115
    metrics = Metrics(CollectorRegistry())
    drift = Drift(Catalog().card_file, metrics, 1.0, 50.0)
    all_rows = Drift(Catalog().card_file, metrics, 1.0, 1e9)
    caller = (b"traceparent", b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-")
    shed = {"error": UnavailableError("full. Wait."), "outputs": None}
    quiet = RequestLog(0.0, bursts)
    plain = await _us(_App(quiet))
    with_caller = [(caller[0], caller[1] + flag) for flag in (b"00", b"01")]
    drift._next = 1e18
    costs = {
        "traces on, request not sampled": await _us(
            TracedApp(_App(tracing), tracing, LoopLag()), with_caller[0]
        ),
        "traces on, request sampled": await _us(TracedApp(_App(tracing), tracing, LoopLag()), with_caller[1]),
        "log, 1% of requests": await _us(_App(RequestLog(0.01, bursts))),
        "log, every request": await _us(_App(RequestLog(1.0, bursts))),
        "log, a burst of refusals": await _us(_App(quiet, **shed)),
        "drift, not this request's turn": await _us(_App(drift)),
        "drift, a row kept": await _us(_App(all_rows)),
    }
    all_rows.take()
    tracing.close()
    return {"an empty app and an outcome": plain} | {name: cost - plain for name, cost in costs.items()}


def main() -> None:
    """Prints the table."""
    with collecting() as collector:
        os.environ |= {"OTEL_EXPORTER_OTLP_ENDPOINT": collector.url}
        for name, cost in asyncio.run(_measure()).items():
            print(f"{name:34} {cost:7.1f} us")


if __name__ == "__main__":
    main()
