"""An activation as a distribution per channel: its moments and limits, also behind operators."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import erf, exp, inf, pi, sqrt

import numpy as np

from compression.signature import Array

_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_STEPS = 257  # between its limits, where a function is searched for its least and greatest value


@dataclass(frozen=True)
class Spread:
    """An activation as a normal distribution per channel, cut off at its limits.

    Attributes:
        mean: Of shape `(channels,)`, or `(1,)` for all of them alike, as the others.
        deviation: Standard deviation.
        low: Nothing is below.
        high: Nothing is above.
        exact: Whether the mean can be relied on, not the limits only.
    """

    mean: Array
    deviation: Array
    low: Array
    high: Array
    exact: bool

    @classmethod
    def normal(cls, mean: Array, deviation: Array, deviations: float) -> Spread:
        """A normal distribution that is cut off so many standard deviations from its mean."""
        reach = deviations * deviation
        return cls(mean, deviation, mean - reach, mean + reach, True)

    @classmethod
    def between(cls, low: float, high: float) -> Spread:
        """Anything between two limits."""
        ends = np.array([low], np.float64), np.array([high], np.float64)
        return cls((ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / sqrt(12), *ends, exact=False)

    @property
    def range(self) -> tuple[float, float]:
        """The limits over all channels."""
        return float(self.low.min()), float(self.high.max())

    def alike(self) -> Spread:
        """All channels taken together."""
        mean = self.mean.mean(keepdims=True)
        deviation = np.sqrt(np.mean(self.deviation**2 + (self.mean - mean) ** 2, keepdims=True))
        return Spread(mean, deviation, self.low.min(keepdims=True), self.high.max(keepdims=True), False)

    def clipped(self, low: float, high: float) -> Spread:
        """After values beyond the limits were set to them (Nagel et al. 2019, appendix C)."""
        pairs = [_clipped_normal(*each, low, high) for each in zip(self.mean, self.deviation, strict=True)]
        mean, deviation = np.array(pairs).T
        return Spread(
            mean, deviation, np.clip(self.low, low, high), np.clip(self.high, low, high), self.exact
        )

    def mapped(self, change: Callable[[Array], Array]) -> Spread:
        """The same change made to each part."""
        parts = self.mean, self.deviation, self.low, self.high
        mean, deviation, low, high = (change(part) for part in parts)
        return Spread(mean, deviation, low, high, self.exact)

    def through_function(self, function: Callable[[Array], Array]) -> Spread:
        """After a function of each value, by Gauss-Hermite quadrature."""
        ends = self.low[:, None], self.high[:, None]
        drawn = function(np.clip(self.mean[:, None] + self.deviation[:, None] * _POINTS, *ends))
        share = _WEIGHTS / _WEIGHTS.sum()
        mean = drawn @ share
        deviation = np.sqrt((drawn - mean[:, None]) ** 2 @ share)
        reached = function(ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, _STEPS))
        return Spread(mean, deviation, reached.min(1), reached.max(1), self.exact)

    def by_output(self, weight: Array, groups: int) -> Spread:
        """Of the inputs that each output of a product reads: parts of shape `(channels out, channels in)`."""
        ins, outs = weight.shape[1] * groups, len(weight) // groups
        # One channel becomes many neighbouring values when an image is flattened.
        return self.mapped(
            lambda part: np.repeat(np.repeat(part, ins // len(part)).reshape(groups, -1), outs, axis=0)
        )

    def through(self, weight: Array, groups: int, bias: Array, deviations: float) -> Spread:
        """After a product with weights `(channels out, channels in, taps)`, inputs taken as independent."""
        read = self.by_output(weight, groups)
        mean = np.einsum("oik,oi->o", weight, read.mean) + bias
        deviation = np.sqrt(np.einsum("oik,oi->o", weight**2, read.deviation**2))
        likely = Spread.normal(mean, deviation, deviations)
        up, down = np.maximum(weight, 0).sum(2), np.minimum(weight, 0).sum(2)
        # Zeros may stand beside an image.
        low, high = np.minimum(read.low, 0), np.maximum(read.high, 0)
        return Spread(
            mean,
            deviation,
            np.maximum(likely.low, np.sum(up * low + down * high, 1) + bias),
            np.minimum(likely.high, np.sum(up * high + down * low, 1) + bias),
            exact=False,
        )


def _clipped_normal(mean: float, deviation: float, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of a normal variable that is set to limits beyond them."""
    if deviation <= 0:
        return min(max(mean, low), high), 0.0

    def below(limit: float) -> tuple[float, float]:
        """Density and share of the standard normal distribution below a limit."""
        if limit in (inf, -inf):
            return 0.0, float(limit > 0)
        place = (limit - mean) / deviation
        return exp(-(place**2) / 2) / sqrt(2 * pi), (1 + erf(place / sqrt(2))) / 2

    (density_low, share_low), (density_high, share_high) = below(low), below(high)
    at_low, at_high = (0.0 if limit in (inf, -inf) else limit for limit in (low, high))
    inside = share_high - share_low
    # First and second moments of the part inside, and of the two heaps at the limits.
    first = mean * inside + deviation * (density_low - density_high)
    edges = (at_low + mean) * density_low - (at_high + mean) * density_high
    second = (mean**2 + deviation**2) * inside + deviation * edges
    average = first + at_low * share_low + at_high * (1 - share_high)
    square = second + at_low**2 * share_low + at_high**2 * (1 - share_high)
    return average, sqrt(max(square - average**2, 0.0))
