"""When requests arrive: drawn before the load starts, so that no answer can delay the next request. Pure.

A load whose clients wait for answers slows down with the server and hides its worst moments (coordinated
omission; Tene 2013, "How NOT to Measure Latency"). Arrivals that are fixed beforehand do not.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

Times = NDArray[np.float64]

_GRID = 4096
_STEPS = 4
_SPIKE = (0.4, 0.6)


def _steady(place: Times, peak: float) -> Times:
    return np.ones_like(place)


def _step(place: Times, peak: float) -> Times:
    return 1 + (peak - 1) * np.floor(place * _STEPS) / (_STEPS - 1)


def _spike(place: Times, peak: float) -> Times:
    return np.where((place >= _SPIKE[0]) & (place < _SPIKE[1]), peak, 1.0)


def _diurnal(place: Times, peak: float) -> Times:
    return 1 + (peak - 1) * (1 - np.cos(2 * np.pi * place)) / 2


# Name -> the rate at a place 0..1 of the run, as a multiple of the base rate, and what a user is told of it.
SHAPES: dict[str, tuple[Callable[[Times, float], Times], str]] = {
    "steady": (_steady, "one rate, evenly spaced"),
    "poisson": (_steady, "one rate, random gaps as of many independent callers"),
    "step": (_step, "four stairs from the rate to its peak, evenly spaced"),
    "spike": (_spike, "the peak for the middle fifth, random gaps"),
    "diurnal": (_diurnal, "a day: up to the peak and down again, random gaps"),
}
_EVEN = ("steady", "step")


def arrivals(shape: str, rate: float, seconds: float, peak: float, generator: np.random.Generator) -> Times:
    """Times of arrival in seconds from the start, in order.

    An inhomogeneous Poisson process by inversion: arrivals of unit rate, mapped through the inverse of the
    expected count (Cinlar 1975, "Introduction to Stochastic Processes"); evenly spaced shapes map equal gaps.

    Args:
        shape: A name in `SHAPES`.
        rate: The base rate, requests per second.
        seconds: Length of the run.
        peak: The highest rate of step, spike and diurnal, as a multiple of the base rate.
        generator: Draws the random gaps.
    """
    edges = np.linspace(0.0, 1.0, _GRID + 1)
    multiple = SHAPES[shape][0]((edges[:-1] + edges[1:]) / 2, peak)
    expected = np.concatenate([[0.0], np.cumsum(multiple)]) * (rate * seconds / _GRID)
    total = float(expected[-1])
    if shape in _EVEN:
        counts = np.arange(0.5, total)
    else:
        # The number of a Poisson process is Poisson, and given the number its places are uniform.
        counts = np.sort(generator.uniform(0.0, total, generator.poisson(total)))
    times: Times = np.interp(counts, expected, edges * seconds)
    return times


def describe(settings: Mapping[str, Any]) -> str:
    """The load in a few words, from a report's settings."""
    shape = settings.get("shape")
    if shape is None:
        return f"{settings['users']} users for {settings['seconds']:g} s per target"
    senders = f"{settings['processes']} load generator{'s' if settings['processes'] > 1 else ''}"
    if shape == "replay":
        return f"replay of {settings['trace']}, {settings['seconds']:g} s per target, {senders}"
    peak = f" to {settings['peak'] * settings['rate']:g}" if shape not in ("steady", "poisson") else ""
    return (
        f"{shape}, {settings['rate']:g}{peak} requests/s for {settings['seconds']:g} s per target, {senders}"
    )
