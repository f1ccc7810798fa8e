"""How long work tells how far it is: bars on a terminal, plain lines elsewhere, JSON for programs."""

from __future__ import annotations

import json
import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import TracebackType
from typing import Protocol, Self

from rich.console import Console
from rich.progress import BarColumn, Progress, SpinnerColumn, TaskID, TextColumn, TimeElapsedColumn

_SECONDS_BETWEEN_LINES = 5.0


class Reporter(Protocol):
    """Receives the progress of several tasks; may be called from several threads."""

    def update(self, task: str, what: str, fraction: float) -> None:
        """A task has come this far, 0..1."""

    def finish(self, task: str, outcome: str) -> None:
        """A task has ended."""


class Lines:
    """One line now and then for each task, for logs and pipes."""

    def __init__(self) -> None:
        self._next: dict[str, float] = {}

    def update(self, task: str, what: str, fraction: float) -> None:
        """Prints at most every few seconds per task."""
        now = time.monotonic()
        if now >= self._next.get(task, 0.0):
            self._next[task] = now + _SECONDS_BETWEEN_LINES
            print(f"{task}: {what} ({fraction:.0%})", file=sys.stderr, flush=True)

    def finish(self, task: str, outcome: str) -> None:
        """Prints the outcome."""
        print(f"{task}: {outcome}", file=sys.stderr, flush=True)


class JsonLines:
    """One JSON object per line for whoever started this: `MIPGATE_PROGRESS=json`."""

    def update(self, task: str, what: str, fraction: float) -> None:
        """Prints how far a task is."""
        self._print({"task": task, "what": what, "fraction": fraction})

    def finish(self, task: str, outcome: str) -> None:
        """Prints the outcome."""
        self._print({"task": task, "what": outcome, "fraction": 1.0})

    def _print(self, line: dict[str, str | float]) -> None:
        print(json.dumps(line), file=sys.stderr, flush=True)


class Bars:
    """One bar per task on a terminal."""

    def __init__(self, console: Console) -> None:
        self._progress = Progress(
            SpinnerColumn(finished_text="[green]✓"),
            TextColumn("{task.fields[name]:<24}"),
            BarColumn(bar_width=24),
            TextColumn("{task.description}"),
            TimeElapsedColumn(),
            console=console,
        )
        self._tasks: dict[str, TaskID] = {}

    def __enter__(self) -> Self:
        self._progress.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.stop()

    def update(self, task: str, what: str, fraction: float) -> None:
        """Moves the task's bar."""
        self._progress.update(self._task(task), description=what, completed=fraction)

    def finish(self, task: str, outcome: str) -> None:
        """Fills the task's bar and shows the outcome."""
        self._progress.update(self._task(task), description=outcome, completed=1.0)

    def _task(self, name: str) -> TaskID:
        if name not in self._tasks:
            self._tasks[name] = self._progress.add_task("", total=1.0, name=name)
        return self._tasks[name]


@contextmanager
def reporter() -> Iterator[Reporter]:
    """Bars when standard error is a terminal, lines when it is not; JSON where the environment asks."""
    console = Console(stderr=True)
    if os.environ.get("MIPGATE_PROGRESS") == "json":
        yield JsonLines()
    elif console.is_terminal:
        with Bars(console) as bars:
            yield bars
    else:
        yield Lines()


def for_task(progress: Reporter, task: str) -> Callable[[str, float], None]:
    """A callback that reports one task's progress."""

    def report(what: str, fraction: float) -> None:
        progress.update(task, what, fraction)

    return report
