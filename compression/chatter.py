"""Keeps third-party libraries from printing and logging over a caller's output."""

from __future__ import annotations

import io
import logging
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stdout


@contextmanager
def quiet(*loggers: str) -> Iterator[None]:
    """Swallows prints, and messages below `ERROR` of the named loggers, inside the block.

    Args:
        loggers: Names of loggers; the empty name is the root logger, which libraries use that call
            `logging.warning` themselves.
    """
    known = [logging.getLogger(name) for name in loggers]
    levels = [logger.level for logger in known]
    for logger in known:
        logger.setLevel(logging.ERROR)
    try:
        with redirect_stdout(io.StringIO()):
            yield
    finally:
        for logger, level in zip(known, levels, strict=True):
            logger.setLevel(level)


@contextmanager
def logging_left_alone() -> Iterator[None]:
    """Undoes what is done to the root logger inside, as by a module that configures it on import."""
    root = logging.getLogger()
    handlers, level = list(root.handlers), root.level
    try:
        yield
    finally:
        root.handlers[:] = handlers
        root.setLevel(level)
