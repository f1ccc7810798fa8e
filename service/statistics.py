"""Triton's statistics extension: counts and cumulative times of one variant in this worker.

https://github.com/triton-inference-server/server/blob/main/docs/protocol/extension_statistics.md
"""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

_MOST_APART = 1000  # answers that wait to be added up: many at once take a fraction of the time


@dataclass(slots=True)
class _Duration:
    count: int = 0
    ns: int = 0

    def add(self, seconds: float) -> None:
        self.count += 1
        self.ns += int(seconds * 1e9)

    def add_all(self, seconds: Sequence[float]) -> None:
        self.count += len(seconds)
        self.ns += int(sum(seconds) * 1e9)

    def to_json(self) -> dict[str, int]:
        return {"count": self.count, "ns": self.ns}


@dataclass(slots=True)
class Statistics:
    """What happened to one variant since it was loaded."""

    inferences: int = 0
    executions: int = 0
    _last_s: float = 0.0
    _answers: list[tuple[int, float, float]] = field(default_factory=list)  # not added up yet
    success: _Duration = field(default_factory=_Duration)
    fail: _Duration = field(default_factory=_Duration)
    queue: _Duration = field(default_factory=_Duration)
    infer: _Duration = field(default_factory=_Duration)
    batches: dict[int, _Duration] = field(default_factory=dict)

    def executed(self, rows: int, seconds: float) -> None:
        """A batch ran."""
        self._last_s = time.time()
        if len(self._answers) >= _MOST_APART:
            self._add_up()
        self.executions += 1
        self.infer.add(seconds)
        self.batches.setdefault(rows, _Duration()).add(seconds)

    def answered(self, rows: int, queue_s: float, total_s: float) -> None:
        """A request was answered."""
        self._answers.append((rows, queue_s, total_s))

    def _add_up(self) -> None:
        if not self._answers:
            return
        rows, queue_s, total_s = zip(*self._answers, strict=True)
        self.inferences += sum(rows)
        self.queue.add_all(queue_s)
        self.success.add_all(total_s)
        self._answers.clear()

    def failed(self, total_s: float) -> None:
        """A request ended in an error after it had been given to the variant."""
        self.fail.add(total_s)

    def to_json(self, name: str, version: str) -> dict[str, Any]:
        """One entry of `model_stats`."""
        self._add_up()
        nothing = _Duration().to_json()
        return {
            "name": name,
            "version": version,
            "last_inference": int(self._last_s * 1e3),
            "inference_count": self.inferences,
            "execution_count": self.executions,
            "inference_stats": {
                "success": self.success.to_json(),
                "fail": self.fail.to_json(),
                "queue": self.queue.to_json(),
                "compute_input": nothing,
                "compute_infer": self.infer.to_json(),
                "compute_output": nothing,
            },
            "batch_stats": [
                {
                    "batch_size": rows,
                    "compute_input": nothing,
                    "compute_infer": duration.to_json(),
                    "compute_output": nothing,
                }
                for rows, duration in sorted(self.batches.items())
            ],
        }
