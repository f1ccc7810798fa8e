"""What operators unloaded: names that the workers of one gateway share, so that all of them unload it.

Each name is an empty file. The folder begins empty: what was unloaded is loaded when the gateway starts anew.
"""

from __future__ import annotations

from collections.abc import Iterator, MutableSet
from pathlib import Path


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
