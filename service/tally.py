"""Counts that are kept in memory and written to Prometheus a few times a second.

In multiprocess mode each increment locks, checks the process and packs two numbers into a mapped file: five
of them took a quarter of a small request's time. A tally notes what it is told; `Tallies.flush` adds up and
writes the sums. Only the event loop notes and flushes; a load in another thread may make new ones meanwhile.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from prometheus_client import Counter, Histogram


class CounterTally:
    """One labelled counter."""

    __slots__ = ("_child", "_count")

    def __init__(self, child: Counter) -> None:
        self._child = child
        self._count = 0

    def inc(self) -> None:
        """Adds one."""
        self._count += 1

    def flush(self) -> None:
        """Writes what was added."""
        if self._count:
            self._child.inc(self._count)
            self._count = 0


class HistogramTally:
    """One labelled histogram.

    Attributes:
        observe: Adds one observation: as cheap as can be, for it is called several times per request.
    """

    __slots__ = ("_child", "_values", "observe")

    def __init__(self, child: Histogram) -> None:
        self._child = child
        self._values: list[float] = []
        self.observe: Callable[[float], None] = self._values.append

    def flush(self) -> None:
        """Writes what was observed. The client library has no public way to add many at once."""
        if not self._values:
            return
        values = np.array(self._values)
        self._values.clear()
        counts = np.bincount(np.searchsorted(self._child._upper_bounds, values))
        for position in np.flatnonzero(counts):
            self._child._buckets[position].inc(int(counts[position]))
        self._child._sum.inc(float(values.sum()))


class Tallies:
    """Every tally of a worker, made at first use."""

    def __init__(self) -> None:
        self._counters: dict[tuple[Counter, tuple[str, ...]], CounterTally] = {}
        self._histograms: dict[tuple[Histogram, tuple[str, ...]], HistogramTally] = {}

    def counter(self, metric: Counter, *labels: str) -> CounterTally:
        """The tally of a counter under these labels."""
        key = (metric, labels)
        tally = self._counters.get(key)
        if tally is None:
            tally = self._counters[key] = CounterTally(metric.labels(*labels))
        return tally

    def histogram(self, metric: Histogram, *labels: str) -> HistogramTally:
        """The tally of a histogram under these labels."""
        key = (metric, labels)
        tally = self._histograms.get(key)
        if tally is None:
            tally = self._histograms[key] = HistogramTally(metric.labels(*labels))
        return tally

    def flush(self) -> None:
        """Writes everything."""
        for counter in list(self._counters.values()):
            counter.flush()
        for histogram in list(self._histograms.values()):
            histogram.flush()
