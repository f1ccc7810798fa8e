"""Small files that the processes of a host map into memory, to share numbers without a call."""

from __future__ import annotations

import mmap
from pathlib import Path


def map_file(path: Path, size: int) -> mmap.mmap:
    """So many bytes that every process sees which maps this file; zeros when it is new.

    Raises:
        OSError: The file cannot be written.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab+") as file:
        file.truncate(size)
        return mmap.mmap(file.fileno(), size)
