"""The folder that the workers of one gateway share on their host, for as long as the gateway runs."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import psutil

from variants.home import mipgate_home


def shared_folder() -> Path:
    """The folder, as a worker sees it; it may have to be made."""
    return _folders() / str(os.getppid())


def start_anew() -> None:
    """Removes what an earlier gateway of this process's id left, and what gateways left that are gone.

    To be called in the process that the workers are children of.
    """
    for left in _folders().glob("*"):
        gateway = int(left.name) if left.name.isdigit() else None
        if gateway is None or gateway == os.getpid() or not psutil.pid_exists(gateway):
            shutil.rmtree(left, ignore_errors=True)


def _folders() -> Path:
    return mipgate_home() / "gateways"
