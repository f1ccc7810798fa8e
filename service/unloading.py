"""What operators unloaded: names that the workers of one gateway share, so that it is unloaded from all.

Each name is an empty file in a folder of this gateway's own. It begins empty: what was unloaded is loaded
again when the gateway starts.
"""

from __future__ import annotations

import shutil
from collections.abc import Iterator, MutableSet
from pathlib import Path

import psutil


class Unloaded(MutableSet[str]):
    """Names of models, as every worker sees them."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __contains__(self, name: object) -> bool:
        return isinstance(name, str) and (self._folder / name).exists()

    def __iter__(self) -> Iterator[str]:
        return (path.name for path in self._folder.glob("*"))

    def __len__(self) -> int:
        return sum(1 for _ in self)

    def add(self, value: str) -> None:
        """Notes that it is unloaded."""
        self._folder.mkdir(parents=True, exist_ok=True)
        (self._folder / value).touch()

    def discard(self, value: str) -> None:
        """Notes that it is to be loaded, if it was not."""
        (self._folder / value).unlink(missing_ok=True)


def forget_unloaded(folder: Path, gateway: int) -> None:
    """Removes what is left of an earlier process of this id, and of gateways that are gone.

    Args:
        folder: Holds a folder per gateway, by the id of its process.
        gateway: The process that starts.
    """
    for left in folder.glob("*"):
        if left.name == str(gateway) or not (left.name.isdigit() and psutil.pid_exists(int(left.name))):
            shutil.rmtree(left, ignore_errors=True)
