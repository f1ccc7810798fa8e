"""Intervals and tests of qualities: of one model, and of two on the same rows."""

from __future__ import annotations

from collections.abc import Callable
from math import sqrt

import numpy as np
from numpy.typing import NDArray

LEVEL = 0.95
RESAMPLES = 2000
_Z = 1.959964  # the normal quantile of a two-sided 95% interval
_RESAMPLE_BLOCK = 64

Floats = NDArray[np.float64]


def wilson(share: float, rows: int) -> tuple[float, float]:
    """Wilson's score interval (1927) of a share of rows, at 95%."""
    centre = (share + _Z**2 / (2 * rows)) / (1 + _Z**2 / rows)
    half = _Z / (1 + _Z**2 / rows) * sqrt(share * (1 - share) / rows + _Z**2 / (4 * rows**2))
    return max(0.0, centre - half), min(1.0, centre + half)


def paired_ratio_low(rows: Floats, reference: Floats) -> float:
    """Lower end of the 95% interval of the ratio of two shares of the same rows, each 0 or 1 per row.

    Agresti and Min (2005): Wald's interval of the paired difference, with half a row added to each of the
    four outcomes. Where no row differs it stays below 1 by what so few rows cannot rule out.
    """
    only_ours, only_theirs = (count + 0.5 for count in _discordant(rows, reference))
    count = len(rows) + 2.0
    difference = (only_ours - only_theirs) / count
    deviation = sqrt(only_ours + only_theirs - count * difference**2) / count
    base = float(reference.mean())
    return max(0.0, (base + difference - _Z * deviation) / base) if base else 0.0


def mcnemar(rows: Floats, reference: Floats) -> float:
    """Two-sided exact p-value that two models are right equally often, each 0 or 1 per row.

    McNemar (1947), by the binomial distribution: of the rows on which exactly one of the two is right, each
    is as likely to be either's.
    """
    only_ours, only_theirs = _discordant(rows, reference)
    trials = only_ours + only_theirs
    ways = tail = 1  # of choosing no row, one row, ... out of all
    for wins in range(min(only_ours, only_theirs)):
        ways = ways * (trials - wins) // (wins + 1)
        tail += ways
    return float(min(1.0, 2 * tail / 2**trials))


def resample(rows: int, seed: int, statistic: Callable[[Floats], tuple[Floats, Floats]]) -> list[Floats]:
    """Two statistics of `RESAMPLES` bootstrap resamples (Efron 1979), in blocks that bound memory.

    Args:
        rows: How many rows there are.
        seed: Decides the resamples.
        statistic: Takes row weights `(resamples, rows)` that sum to 1 and gives two arrays `(resamples,)`.
    """
    generator = np.random.default_rng(seed)
    blocks = []
    for start in range(0, RESAMPLES, _RESAMPLE_BLOCK):
        size = min(_RESAMPLE_BLOCK, RESAMPLES - start)
        blocks.append(statistic(generator.multinomial(rows, np.full(rows, 1 / rows), size=size) / rows))
    return [np.concatenate(column) for column in zip(*blocks, strict=True)]


def percentile_interval(samples: Floats) -> tuple[float, float]:
    """The 95% interval between quantiles of resamples."""
    tail = (1 - LEVEL) / 2
    low, high = np.quantile(samples, [tail, 1 - tail])
    return float(low), float(high)


def bootstrap_p_value(ratios: Floats) -> float:
    """Two-sided p-value that a ratio is 1: how rarely its resamples fall on the other side of 1.

    After Efron and Tibshirani (1993), section 15.4; one resample is added, so that it is never 0.
    """
    rarer = min(int((ratios <= 1).sum()), int((ratios >= 1).sum()))
    return float(min(1.0, 2 * (rarer + 1) / (len(ratios) + 1)))


def _discordant(rows: Floats, reference: Floats) -> tuple[int, int]:
    """Rows that only the one and only the other has right."""
    return int(np.sum((rows == 1) & (reference == 0))), int(np.sum((rows == 0) & (reference == 1)))
