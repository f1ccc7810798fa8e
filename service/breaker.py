"""A circuit breaker per variant: one that keeps failing gets no traffic until a probe answers again.

After Nygard 2007, "Release It!". Pure: the time is an argument.
"""

from __future__ import annotations

from dataclasses import dataclass
from enum import StrEnum

# So many batches in a row without an answer open it; one that failed among many good ones does not.
FAILURES = 3
FIRST_PAUSE_S = 2.0
LONGEST_PAUSE_S = 60.0


class Circuit(StrEnum):
    """Closed lets traffic through, open none, half-open one request at a time."""

    CLOSED = "closed"
    OPEN = "open"
    HALF_OPEN = "half_open"


@dataclass(slots=True)
class Breaker:
    """Whether a variant may be asked.

    Attributes:
        circuit: The state.
        failures: Batches without an answer since the last good one.
        until: When it may be probed (again), unless it is closed.
    """

    circuit: Circuit = Circuit.CLOSED
    failures: int = 0
    until: float = 0.0
    _pause_s: float = FIRST_PAUSE_S

    def allows(self, now: float) -> bool:
        """Whether a request may go to the variant."""
        return self.circuit is Circuit.CLOSED or now >= self.until

    def asked(self, now: float) -> None:
        """A request goes to the variant; unless the circuit is closed, as the only probe for a while."""
        if self.circuit is not Circuit.CLOSED:
            self.circuit = Circuit.HALF_OPEN
            self.until = now + self._pause_s

    def answered(self) -> bool:
        """A batch gave answers; returns whether that closed the circuit."""
        self.failures = 0
        if self.circuit is Circuit.CLOSED:
            return False
        self.circuit, self._pause_s = Circuit.CLOSED, FIRST_PAUSE_S
        return True

    def failed(self, now: float) -> bool:
        """A batch gave none; returns whether that opened the circuit."""
        self.failures += 1
        was_open = self.circuit is not Circuit.CLOSED
        if not was_open and self.failures < FAILURES:
            return False
        if self.circuit is Circuit.HALF_OPEN:
            self._pause_s = min(2 * self._pause_s, LONGEST_PAUSE_S)
        self.circuit, self.until = Circuit.OPEN, now + self._pause_s
        return not was_open
