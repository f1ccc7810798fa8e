"""How often a key may be used: a token bucket that the workers of a host share.

Each key has eight bytes in a file that every worker maps: the time at which its bucket will be full again.
That one number is the whole bucket (the generic cell rate algorithm, ATM Forum 1996). Two workers that write
at the same moment may let one request too many through.
"""

from __future__ import annotations

import logging
import mmap
from pathlib import Path
from struct import Struct

from service.mapped import map_file

log = logging.getLogger("mipgate.access")

_TIME = Struct("<d")


class Bucket:
    """Lets `rate_per_s` requests a second through; after a pause, as many as one second holds at once."""

    def __init__(self, path: Path, rate_per_s: float) -> None:
        self._shared = _mapped(path)
        self.rate_per_s = rate_per_s
        self._interval_s = 1 / rate_per_s
        self._depth_s = max(1.0, self._interval_s)

    def take(self, now: float) -> float:
        """Takes one request out.

        Args:
            now: Seconds on a clock that the processes of this host share.

        Returns:
            0, or after how many seconds there will be one when it is empty now.
        """
        full = _TIME.unpack_from(self._shared)[0]
        if full < now or full > now + self._depth_s + self._interval_s:  # later than can be: of another boot
            full = now
        wait_s: float = full + self._interval_s - self._depth_s - now
        if wait_s > 1e-9:
            return wait_s
        _TIME.pack_into(self._shared, 0, full + self._interval_s)
        return 0.0


def _mapped(path: Path) -> mmap.mmap:
    """The eight bytes, shared; where no file can be written, this process's own."""
    try:
        return map_file(path, _TIME.size)
    except OSError as error:
        log.warning("each worker limits key %s for itself: %s", path.name, error)
        return mmap.mmap(-1, _TIME.size)
