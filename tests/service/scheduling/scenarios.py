"""Scenarios of the scheduler: a variant with a gate, a clock that stands still, requests of given rows."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine, Hashable, Mapping
from time import perf_counter
from typing import Any, TypeVar

import numpy as np

from compression.signature import Array
from service.scheduler import Completed, Limits

T = TypeVar("T")
LIMITS = Limits(requests=1000, bytes=1_000_000, inline_ms=1.0)
HEAVY_MS = 2.0
SOON_S, NEVER_S = 0.05, 20.0


class Doubling:
    """Stands for a loaded variant: `y = 2 x`, a record of its batches, and a gate that holds them."""

    def __init__(
        self, key: str = "m/v", *, ms_per_row: float = 0.0, base_ms: float = 0.0, max_rows: int = 32
    ) -> None:
        self.key = key
        self.max_batch_rows = max_rows
        self.ms_per_row, self.base_ms = ms_per_row, base_ms
        self.batches: list[list[float]] = []
        self.told: list[tuple[int, int]] = []
        self.threads: set[str] = set()
        self.started, self.gate = threading.Event(), threading.Event()
        self.gate.set()
        self.answer: Callable[[Array], list[Any]] = lambda x: [2 * x]
        self.log: list[str] = []
        self.well = False
        self.cancelled, self.can_be_cut_off = threading.Event(), False

    def run(self, inputs: Mapping[str, Array]) -> list[Array]:
        self.threads.add(threading.current_thread().name)
        self.batches.append(inputs["x"][:, 0].tolist())
        self.log.append(self.key)
        self.started.set()
        assert self.gate.wait(NEVER_S)
        if self.cancelled.is_set():
            self.cancelled.clear()
            raise RuntimeError("cut off")
        return self.answer(inputs["x"])

    def cancel(self) -> None:
        if self.can_be_cut_off:
            self.cancelled.set()
            self.gate.set()

    def predict_ms(self, rows: int) -> float:
        assert rows > 0, "nobody asks how long nothing takes"
        return self.base_ms + self.ms_per_row * rows

    def profiled_ms(self, rows: int) -> float:
        return self.predict_ms(rows)

    def shape_key(self, inputs: Mapping[str, Array]) -> Hashable:
        return inputs["x"].shape[1:]

    def executed(self, rows: int, requests: int, seconds: float, held_s: float, ok: bool) -> None:
        assert held_s >= seconds >= 0
        self.told.append((rows, requests))

    def cut_off(self, rows: int, held_s: float) -> None:
        self.told.append((rows, 0))

    def is_well(self) -> bool:
        return self.well


class Clock:
    """Stands still unless it is moved."""

    now = 100.0

    def __call__(self) -> float:
        return self.now


def heavy(key: str = "m/heavy", **settings: Any) -> Doubling:
    """A variant whose batches run in the executor, and whose gate is closed."""
    variant = Doubling(key, base_ms=HEAVY_MS, **settings)
    variant.gate.clear()
    return variant


def rows(*values: float, width: int = 2) -> dict[str, Array]:
    return {"x": np.repeat(np.array(values, np.float64)[:, None], width, axis=1)}


def on_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    """Runs a scenario on an event loop on which an error that nobody handles fails the test."""
    unhandled: list[dict[str, Any]] = []

    async def run() -> T:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: unhandled.append(context))
        async with asyncio.timeout(NEVER_S):
            return await scenario()

    result = asyncio.run(run())
    assert not unhandled
    return result


def later() -> float:
    return perf_counter() + NEVER_S


async def settle(*futures: asyncio.Future[Completed]) -> list[Completed | BaseException]:
    return await asyncio.gather(*futures, return_exceptions=True)


async def has_started(variant: Doubling) -> None:
    assert await asyncio.to_thread(variant.started.wait, NEVER_S)
