"""Confidence sequences: intervals that hold at every moment at once, however often one looks.

An interval at level 1 - alpha from here covers the truth at all times together with that probability, so a
decision may be taken the moment it allows one. Everything is a function of counts.

Sources: Robbins (1970), Statistical methods related to the law of the iterated logarithm (mixtures);
Howard, Ramdas, McAuliffe and Sekhon (2021), Time-uniform, nonparametric, nonasymptotic confidence sequences
(beta-binomial mixture); Waudby-Smith and Ramdas (2024), Estimating means of bounded random variables by
betting; Howard and Ramdas (2022), Sequential estimation of quantiles; Turner and Gruenwald (2023), Exact
anytime-valid confidence intervals for contingency tables (products over two groups); Waudby-Smith, Arbour,
Sinha, Kennedy and Ramdas (2024), Time-uniform central limit theory and asymptotic confidence sequences.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import exp, inf, lgamma, log, log1p, sqrt

from service.rollout.evidence import Histogram, lower_edge_s

_HALVINGS = 30
_GOLDEN = (sqrt(5) - 1) / 2
_SECTIONS = 24
_TIGHTEST_AT = 1000  # samples at which an asymptotic sequence is narrowest
_RAREST = 1e-5


@dataclass(frozen=True, slots=True)
class Interval:
    """An estimate with the ends of its interval; an end that nothing bounds is infinite."""

    estimate: float
    low: float
    high: float


class ShareCapital:
    """Bets against the mean of values 0..1: the logarithm of the capital that a gambler has won.

    Were `share` the mean, the capital would be a (super)martingale that starts at 1: by Ville's inequality it
    ever reaches 1/alpha with probability alpha at most. The bet is a beta mixture of binomial likelihood
    ratios; it is also valid for fractions, as x -> a**x * b**(1 - x) lies below its chord.

    Args:
        total: Sum of the values.
        count: How many there are.
        usual: About where the mean lies; bets are best there, and valid anywhere.
    """

    __slots__ = ("_constant", "_hits", "_misses")

    def __init__(self, total: float, count: int, usual: float) -> None:
        self._hits = min(total, float(count))
        self._misses = count - self._hits
        rare = max(_RAREST, min(usual, 1 - usual))
        few, many = 0.5, 0.5 * (1 - rare) / rare
        a, b = (few, many) if usual <= 0.5 else (many, few)
        self._constant = _log_beta(a + self._hits, b + self._misses) - _log_beta(a, b)

    def against(self, share: float) -> float:
        """The logarithm of the capital won against the claim that this share is the mean."""
        if (share <= 0 and self._hits > 0) or (share >= 1 and self._misses > 0):
            return inf
        hits = self._hits * log(share) if self._hits else 0.0
        misses = self._misses * log1p(-share) if self._misses else 0.0
        return self._constant - hits - misses


def share_interval(total: float, count: int, alpha: float, usual: float) -> Interval:
    """The mean of values 0..1.

    Args:
        total: Sum of the values.
        count: How many there are, at least one.
        alpha: Chance of ever being wrong.
        usual: About where the mean lies.
    """
    capital, limit = ShareCapital(total, count, usual), log(1 / alpha)
    estimate = min(1.0, total / count)
    if capital.against(estimate) >= limit:  # rounding alone
        return Interval(estimate, estimate, estimate)
    low = _last(lambda share: capital.against(share) < limit, estimate, 0.0)
    high = _last(lambda share: capital.against(share) < limit, estimate, 1.0)
    return Interval(estimate, low, high)


def difference_interval(
    ours: tuple[float, int], theirs: tuple[float, int], alpha: float, usual: float
) -> Interval:
    """Our mean less theirs, of values 0..1; each given as sum and count, at least one."""
    bets = _TwoShares(ours, theirs, alpha, usual)
    ours_mean, theirs_mean = ours[0] / ours[1], theirs[0] / theirs[1]
    estimate = ours_mean - theirs_mean

    def allowed(margin: float) -> bool:
        nearest = min(max(ours_mean - margin, 0.0, -margin), 1.0, 1.0 - margin)
        return bets.allow(lambda share: share + margin, theirs_mean, nearest)

    return Interval(estimate, _last(allowed, estimate, -1.0), _last(allowed, estimate, 1.0))


def ratio_interval(
    ours: tuple[float, int], theirs: tuple[float, int], alpha: float, usual: float
) -> Interval:
    """Our mean over theirs, of values 0..1; each given as sum and count, at least one."""
    bets = _TwoShares(ours, theirs, alpha, usual)
    ours_mean, theirs_mean = ours[0] / ours[1], theirs[0] / theirs[1]

    def allowed(angle: float) -> bool:  # the ratio r as r / (1 + r), so that infinity is a number
        if angle <= 0:
            return bets.allow(lambda _: 0.0, theirs_mean, theirs_mean)
        if angle >= 1:
            return bets.allow_nothing_of_theirs()
        ratio = angle / (1 - angle)
        return bets.allow(lambda share: share * ratio, theirs_mean, min(1.0, ours_mean / ratio, 1 / ratio))

    total = ours_mean + theirs_mean
    angle = ours_mean / total if total else 0.5
    low, high = _last(allowed, angle, 0.0), _last(allowed, angle, 1.0)
    return Interval(_as_ratio(angle), _as_ratio(low), _as_ratio(high))


def quantile_interval(latencies: Histogram, quantile: float, alpha: float) -> Interval:
    """A quantile of latencies, in seconds.

    The share of values below the true quantile is known: a point lies in the interval as long as the bets
    against that share have not won. Ends are widened to those of their buckets.
    """
    places = [place for place in _places(latencies, quantile) if place.capital < log(1 / alpha)]
    return Interval(
        latencies.quantile_s(quantile) or 0.0,
        _edge_s(min(place.first for place in places)),
        _edge_s(max(place.last for place in places) + 1),
    )


def quantile_ratio_interval(ours: Histogram, theirs: Histogram, quantile: float, alpha: float) -> Interval:
    """A quantile of our latencies over theirs."""
    limit = log(1 / alpha)
    others = _places(theirs, quantile)
    pairs = [
        (mine, other)
        for mine in _places(ours, quantile)
        for other in others
        if mine.capital + other.capital < limit
    ]
    return Interval(
        (ours.quantile_s(quantile) or 0.0) / (theirs.quantile_s(quantile) or inf),
        min(_over(mine.first, other.last + 1) for mine, other in pairs),
        max(_over(mine.last + 1, other.first) for mine, other in pairs),
    )


@dataclass(frozen=True, slots=True)
class Moments:
    """Sums of values without bounds, and of their squares."""

    count: int
    total: float
    squares: float

    @property
    def mean(self) -> float:
        """Their mean."""
        return self.total / self.count

    @property
    def variance_of_mean(self) -> float:
        """The estimated variance of their mean."""
        return max(0.0, self.squares / self.count - self.mean**2) / self.count


def mean_interval(values: Moments, alpha: float) -> Interval:
    """The mean of values without bounds; valid for large samples."""
    radius = _asymptotic_radius(values.variance_of_mean, values.count, alpha)
    return Interval(values.mean, values.mean - radius, values.mean + radius)


def mean_ratio_interval(ours: Moments, theirs: Moments, alpha: float) -> Interval:
    """Our mean of positive values over theirs, on the scale of logarithms; valid for large samples."""
    if ours.mean <= 0 or theirs.mean <= 0:
        return Interval(1.0 if ours.mean == theirs.mean else _as_ratio(float(ours.mean > 0)), 0.0, inf)
    variance = ours.variance_of_mean / ours.mean**2 + theirs.variance_of_mean / theirs.mean**2
    radius = min(_asymptotic_radius(variance, ours.count + theirs.count, alpha), 500.0)
    ratio = ours.mean / theirs.mean
    return Interval(ratio, ratio * exp(-radius), ratio * exp(radius))


class _TwoShares:
    """Bets against two means at once: the product of two capitals is a capital."""

    def __init__(
        self, ours: tuple[float, int], theirs: tuple[float, int], alpha: float, usual: float
    ) -> None:
        self._ours = ShareCapital(*ours, usual)
        self._theirs = ShareCapital(*theirs, usual)
        self._limit = log(1 / alpha)

    def allow(self, mine: Callable[[float], float], theirs: float, ours: float) -> bool:
        """Whether some share of theirs, with ours at `mine` of it, is not yet ruled out.

        Both capitals are convex; their sum is least between the shares at which either is, and golden
        sections find where.

        Args:
            mine: Our share that belongs to a share of theirs.
            theirs: The share that suits their values best.
            ours: The share of theirs that suits our values best.
        """
        low, high = min(theirs, ours), max(theirs, ours)

        def capital(share: float) -> float:
            return self._theirs.against(share) + self._ours.against(min(1.0, max(0.0, mine(share))))

        left, right = high - _GOLDEN * (high - low), low + _GOLDEN * (high - low)
        at_left, at_right = capital(left), capital(right)
        for _ in range(_SECTIONS):
            if min(at_left, at_right) < self._limit:
                return True
            if at_left < at_right:
                high, right, at_right = right, left, at_left
                left = high - _GOLDEN * (high - low)
                at_left = capital(left)
            else:
                low, left, at_left = left, right, at_right
                right = low + _GOLDEN * (high - low)
                at_right = capital(right)
        return min(capital(low), capital(high)) < self._limit

    def allow_nothing_of_theirs(self) -> bool:
        """Whether their mean may be 0, so that the ratio has no bound."""
        return self._theirs.against(0.0) < self._limit


@dataclass(frozen=True, slots=True)
class _Place:
    """Neighbouring buckets in which a quantile may lie, and the least capital won against that."""

    first: float
    last: float
    capital: float


def _places(latencies: Histogram, quantile: float) -> list[_Place]:
    """All places of a quantile, in order, from below the first bucket to beyond the last."""
    count = latencies.total

    def against(below: float) -> float:
        return ShareCapital(below, count, quantile).against(quantile)

    places: list[_Place] = []
    below, next_index = 0, -inf
    for index in sorted(latencies.counts):
        if next_index < index:
            places.append(_Place(next_index, index - 1, against(below)))
        upto = below + latencies.counts[index]
        places.append(_Place(index, index, against(min(max(quantile * count, below), upto))))
        below, next_index = upto, index + 1
    return [*places, _Place(next_index, inf, against(below))]


def _edge_s(index: float) -> float:
    return 0.0 if index == -inf else inf if index == inf else lower_edge_s(index)


def _over(mine: float, other: float) -> float:
    """The edge of one bucket over that of another."""
    over, under = _edge_s(mine), _edge_s(other)
    return inf if over == inf or under == 0.0 else over / under


def _asymptotic_radius(variance_of_mean: float, count: int, alpha: float) -> float:
    """Theorem 2.2 of Waudby-Smith et al. (2024), narrowest at `_TIGHTEST_AT` samples."""
    tail = -2 * log(alpha)
    rho2 = (tail + log(tail + 1)) / _TIGHTEST_AT
    grown = count * rho2 + 1
    return sqrt(variance_of_mean * 2 * grown / (count * rho2) * log(sqrt(grown) / alpha))


def _last(allowed: Callable[[float], bool], inside: float, outside: float) -> float:
    """How far from a point inside one may go towards a point; the result errs to the outside."""
    if allowed(outside):
        return outside
    for _ in range(_HALVINGS):
        middle = (inside + outside) / 2
        if allowed(middle):
            inside = middle
        else:
            outside = middle
    return outside


def _as_ratio(angle: float) -> float:
    return angle / (1 - angle) if angle < 1 else inf


def _log_beta(a: float, b: float) -> float:
    return lgamma(a) + lgamma(b) - lgamma(a + b)
