"""Profiles: what a call of any size is predicted to take, and what ranks runtimes."""

from __future__ import annotations

from math import sqrt

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.variants.handmade import profile
from variants.profile import BATCH_SIZES, Profile

MS = st.floats(0.001, 1e4)
PROFILES = st.lists(MS, min_size=len(BATCH_SIZES), max_size=len(BATCH_SIZES)).map(
    lambda times: profile(latency_ms=dict(zip(BATCH_SIZES, times, strict=True)))
)
SPARSE = st.dictionaries(st.integers(1, 64), MS, min_size=1).map(lambda times: profile(latency_ms=times))


@given(PROFILES | SPARSE)
def test_a_profiled_size_is_predicted_as_it_was_measured(measured: Profile) -> None:
    for size, latency in measured.latency_ms.items():
        assert measured.predict_ms(size) == latency.p50


@given(PROFILES | SPARSE, st.integers(1, 64))
def test_between_profiled_sizes_the_prediction_is_between_them(measured: Profile, rows: int) -> None:
    below = [size for size in measured.latency_ms if size < rows]
    above = [size for size in measured.latency_ms if size > rows]
    if not (below and above) or rows in measured.latency_ms:
        return
    ends = [measured.latency_ms[size].p50 for size in (max(below), min(above))]
    assert min(ends) * (1 - 1e-9) <= measured.predict_ms(rows) <= max(ends) * (1 + 1e-9)


@given(SPARSE, st.integers(1, 1000), st.integers(1, 1000))
def test_beyond_the_largest_size_time_grows_in_proportion(measured: Profile, one: int, other: int) -> None:
    largest = max(measured.latency_ms)
    fewer, more = largest + min(one, other), largest + max(one, other)
    assert measured.latency_ms[largest].p50 < measured.predict_ms(fewer) <= measured.predict_ms(more)
    assert measured.predict_ms(2 * largest) == pytest.approx(2 * measured.latency_ms[largest].p50)


@given(SPARSE)
def test_below_the_smallest_size_nothing_is_faster(measured: Profile) -> None:
    smallest = min(measured.latency_ms)
    assert measured.predict_ms(1) == measured.latency_ms[smallest].p50


@given(st.lists(MS, min_size=6, max_size=6).map(sorted), st.integers(1, 200), st.integers(1, 200))
def test_where_larger_batches_take_longer_so_do_predictions(times: list[float], one: int, other: int) -> None:
    measured = profile(latency_ms=dict(zip(BATCH_SIZES, times, strict=True)))
    assert measured.predict_ms(min(one, other)) <= measured.predict_ms(max(one, other)) * (1 + 1e-9)


@given(PROFILES)
def test_the_cost_is_time_per_row_at_one_and_eight_together(measured: Profile) -> None:
    alone, eight = measured.latency_ms[1].p50, measured.latency_ms[8].p50 / 8
    assert measured.cost_ms() == pytest.approx(sqrt(alone * eight))
    assert min(alone, eight) * 0.999 <= measured.cost_ms() <= max(alone, eight) * 1.001


@given(PROFILES, st.integers(1, 64))
def test_a_named_batch_alone_decides_the_cost(measured: Profile, batch: int) -> None:
    assert measured.cost_ms(batch) == pytest.approx(measured.predict_ms(batch) / batch)
