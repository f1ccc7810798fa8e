"""A child process: runs one module on a JSON job, follows its progress, and survives its death.

The child prints progress as JSON lines; whatever else it prints is kept for the error message, and logged.
"""

from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import subprocess
import sys
import threading
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from itertools import dropwhile
from pathlib import Path
from typing import Any, TypeVar

import psutil

from variants import document

log = logging.getLogger("mipgate.worker")

Report = Callable[[str, float], None]
T = TypeVar("T")
_TAIL_LINES = 15
_FRAME = '  File "'
_DISK_FULL = os.strerror(errno.ENOSPC)
_OWN_ERROR = re.compile(r"^(?:compression|variants)\.[\w.]+: ")


class WorkerError(Exception):
    """The child failed; the message says how."""


def run(
    module: str,
    job: Any,
    result: type[T],
    folder: Path,
    report: Report,
    threads: int | None = None,
    timeout_s: float | None = None,
) -> T:
    """Runs `python -m MODULE JOB RESULT` and reads the result.

    Args:
        module: What to run.
        job: A dataclass: what to do.
        result: The dataclass that the child writes.
        folder: Where job and result are written.
        report: Called with the child's progress.
        threads: Threads that the child's numeric libraries may use; None leaves it to them. Children that
            share cores and each use all of them spend their time waiting for one another.
        timeout_s: How long it may take; None for as long as it does.

    Raises:
        WorkerError: The child exited with an error, was killed, took too long, or wrote no result.
    """
    job_path, result_path = folder / f"{module}-job.json", folder / f"{module}-result.json"
    result_path.unlink(missing_ok=True)
    document.write(job_path, job)
    command = [sys.executable, "-m", module, str(job_path), str(result_path)]
    tail: deque[str] = deque(maxlen=_TAIL_LINES)
    environment = os.environ | ({"OMP_NUM_THREADS": str(threads)} if threads else {})
    with subprocess.Popen(
        command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True, env=environment
    ) as child:
        assert child.stdout is not None
        deadline = _Deadline(child, timeout_s)
        try:
            for line in child.stdout:
                _follow(line, report, tail)
        except BaseException:
            child.kill()
            raise
        finally:
            deadline.cancel()
    if deadline.passed:
        raise WorkerError(f"it took longer than {timeout_s:g} s and was stopped. Raise --timeout.")
    if child.returncode != 0 or not result_path.is_file():
        raise WorkerError(_cause(child.returncode, tail))
    return document.read(result, result_path)


class _Deadline:
    """Kills a child that takes too long, unless it is cancelled before."""

    def __init__(self, child: subprocess.Popen[str], timeout_s: float | None) -> None:
        self.passed = False
        self._child = child
        self._timer = threading.Timer(timeout_s or 0.0, self._end)
        self._timer.daemon = True
        if timeout_s is not None:
            self._timer.start()

    def cancel(self) -> None:
        """Lets the child be."""
        self._timer.cancel()

    def _end(self) -> None:
        if self._child.poll() is not None:
            return
        self.passed = True
        with suppress(psutil.NoSuchProcess):  # its own children would keep its output open
            for grandchild in psutil.Process(self._child.pid).children(recursive=True):
                with suppress(psutil.NoSuchProcess):
                    grandchild.kill()
        self._child.kill()


def report_to_parent(what: str, fraction: float) -> None:
    """Tells the parent how far a child is."""
    print(json.dumps({"progress": what, "fraction": fraction}), flush=True)


def _follow(line: str, report: Report, tail: deque[str]) -> None:
    if line.startswith('{"progress":'):
        message = json.loads(line)
        report(message["progress"], message["fraction"])
    elif line.strip():
        log.info("%s", line.rstrip())
        tail.append(line.rstrip())


def _cause(returncode: int, tail: deque[str]) -> str:
    if returncode == -signal.SIGKILL:
        return "the process was killed; the machine probably ran out of memory. Build with fewer --jobs."
    if returncode < 0:
        words = f"Last words: {' | '.join(tail)}" if tail else "It said nothing."
        return (
            f"the process died of {signal.Signals(-returncode).name}, a fault of a library on this graph. "
            f"{words} Leave this recipe or runtime out."
        )
    if not tail:
        return f"the process ended with status {returncode} and said nothing"
    if _DISK_FULL in tail[-1]:
        return f"{_DISK_FULL}. Free some space and build again."
    # Our own errors explain themselves without their class.
    return _OWN_ERROR.sub("", _last_words(tail))


def _last_words(tail: Sequence[str]) -> str:
    """What an uncaught exception said, in however many lines; the last line where there was none."""
    frames = [number for number, line in enumerate(tail) if line.startswith(_FRAME)]
    if not frames:
        return tail[-1]
    said = dropwhile(lambda line: line.startswith(" "), list(tail)[frames[-1] :])
    return " ".join(line.strip() for line in said) or tail[-1]
