"""Where Mipgate keeps what is not a variant: caches, locks and work in progress."""

from __future__ import annotations

import os
from pathlib import Path


def mipgate_home() -> Path:
    """The Mipgate home: `MIPGATE_HOME`, or `~/.mipgate`."""
    return Path(os.environ.get("MIPGATE_HOME") or Path.home() / ".mipgate")


def subfolder(name: str) -> Path:
    """The folder of this name in the Mipgate home, made when it is missing."""
    folder = mipgate_home() / name
    folder.mkdir(parents=True, exist_ok=True)
    return folder
