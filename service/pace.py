"""How fast this host is now, beside its profiles: neighbours and throttling make it slower than it was.

Each batch that ran compares its time with the profile's. What all variants have in common is the device's
factor, which follows within a few batches; what remains is the variant's own.
"""

from __future__ import annotations

from math import exp, log

_DEVICE_RATE, _OWN_RATE, _SPREAD_RATE = 0.15, 0.03, 0.05
_FORGETTING = 0.999  # of a variant's own factor: what all have in common belongs to the device
_LOWEST, _HIGHEST = log(1 / 4), log(64.0)
TELLING_MS = 1.0  # shorter batches tell of the interpreter, not of the device: the profile stands
# Mean absolute deviations that a promise allows for: 3.2 standard ones, if times are log-normal.
_DEVIATIONS = 4
_WIDEST = 1.0


class DevicePace:
    """What the variants of one device have in common."""

    __slots__ = ("factor", "log_factor", "spread")

    def __init__(self) -> None:
        self.log_factor = 0.0
        self.factor = 1.0
        self.spread = 0.0

    @property
    def margin(self) -> float:
        """How much longer than predicted a batch may well take, as a factor."""
        return 1.0 + min(_WIDEST, _DEVIATIONS * self.spread)


class Pace:
    """One variant's times over its profile's."""

    __slots__ = ("_device", "_log_own", "_own")

    def __init__(self, device: DevicePace) -> None:
        self._device = device
        self._log_own = 0.0
        self._own = 1.0

    def corrected_ms(self, profiled_ms: float) -> float:
        """The time that a batch takes now, by the time that its profile has."""
        if profiled_ms < TELLING_MS:
            return profiled_ms
        return profiled_ms * self._own * self._device.factor

    def ran(self, profiled_ms: float, took_ms: float) -> None:
        """Learns from a batch.

        Args:
            profiled_ms: Its time by the profile.
            took_ms: The time that it held the device.
        """
        if profiled_ms < TELLING_MS:
            return
        device = self._device
        observed = min(max(log(took_ms / profiled_ms), _LOWEST), _HIGHEST) if took_ms > 0 else _LOWEST
        error = observed - device.log_factor - self._log_own
        self._log_own = (self._log_own + _OWN_RATE * error) * _FORGETTING
        self._own = exp(self._log_own)
        device.log_factor += _DEVICE_RATE * error
        device.factor = exp(device.log_factor)
        device.spread += _SPREAD_RATE * (abs(error) - device.spread)
