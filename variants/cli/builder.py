"""`mipgate builder`."""

from __future__ import annotations

import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import click


@click.command(name="builder")
def command() -> None:
    """Build, search and profile what running gateways ask for, until interrupted.

    Gateways and builders meet in the database that MIPGATE_STATE names.

    Example: mipgate builder
    """
    with _started() as builder:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: builder.send_signal(received))
        status = builder.wait()
    sys.exit(max(status, 0))


@contextmanager
def builder_beside() -> Iterator[None]:
    """A builder that works as long as the block runs."""
    with _started() as builder:
        try:
            yield
        finally:
            builder.terminate()


def _started() -> subprocess.Popen[bytes]:
    sources = Path(__file__).resolve().parents[2]
    return subprocess.Popen([sys.executable, "-m", "service.building"], cwd=sources)
