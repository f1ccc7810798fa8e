"""Intervals hold at every look; a decision taken at the first chance is wrong as rarely as was asked for."""

from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from service.rollout.evidence import ArmEvidence, Comparisons, Histogram, bucket, lower_edge_s
from service.rollout.guard import parse_guard
from service.rollout.judgement import State, judge
from service.rollout.sequences import (
    Interval,
    Moments,
    difference_interval,
    mean_interval,
    mean_ratio_interval,
    quantile_interval,
    quantile_ratio_interval,
    ratio_interval,
    share_interval,
)
from tests.service.rollout.simulation import World, is_decided, play

a_few = settings(max_examples=50)

SHARES = st.integers(1, 10**6).flatmap(lambda n: st.tuples(st.integers(0, n), st.just(n)))
ALPHAS = st.sampled_from([0.001, 0.05, 0.3])


def ordered(interval: Interval, low: float = 0.0, high: float = math.inf) -> bool:
    return low <= interval.low <= interval.estimate <= interval.high <= high


@a_few
@given(SHARES, ALPHAS, st.floats(0.001, 0.999))
def test_a_share_lies_in_its_interval(seen: tuple[int, int], alpha: float, usual: float) -> None:
    interval = share_interval(*seen, alpha, usual)
    assert ordered(interval, 0, 1)
    assert interval.estimate == seen[0] / seen[1]


@a_few
@given(SHARES)
def test_more_confidence_is_a_wider_interval(seen: tuple[int, int]) -> None:
    wide, narrow = share_interval(*seen, 0.001, 0.5), share_interval(*seen, 0.1, 0.5)
    assert wide.low <= narrow.low
    assert narrow.high <= wide.high


@a_few
@given(SHARES, ALPHAS)
def test_an_interval_mirrors_with_its_share(seen: tuple[int, int], alpha: float) -> None:
    hits, count = seen
    interval, mirrored = (
        share_interval(hits, count, alpha, 0.1),
        share_interval(count - hits, count, alpha, 0.9),
    )
    assert interval.low == pytest.approx(1 - mirrored.high, abs=1e-6)
    assert interval.high == pytest.approx(1 - mirrored.low, abs=1e-6)


def test_no_failure_in_5300_requests_shows_less_than_one_in_a_thousand() -> None:
    assert share_interval(0, 5300, 0.05 / 3, 0.001).high == pytest.approx(0.001, rel=0.02)


def test_a_prior_at_the_threshold_decides_sooner_than_one_in_the_middle() -> None:
    assert share_interval(0, 5300, 0.05, 0.001).high < share_interval(0, 5300, 0.05, 0.5).high


@a_few
@given(SHARES, SHARES, ALPHAS)
def test_differences_and_ratios_lie_in_their_intervals_and_agree(
    ours: tuple[int, int], theirs: tuple[int, int], alpha: float
) -> None:
    difference = difference_interval(ours, theirs, alpha, 0.9)
    ratio = ratio_interval(ours, theirs, alpha, 0.9)
    assert ordered(difference, -1, 1)
    assert ratio.low <= ratio.high
    assert (difference.low > 1e-6) <= (ratio.low > 1)
    assert (difference.high < -1e-6) <= (ratio.high < 1)


def test_nothing_bounds_the_ratio_to_what_may_be_nothing() -> None:
    assert ratio_interval((5, 100), (0, 100), 0.05, 0.01).high == math.inf
    assert ratio_interval((0, 100), (0, 100), 0.05, 0.01).low == 0


HISTOGRAMS = st.dictionaries(st.integers(100, 500), st.integers(1, 1000), min_size=1, max_size=30).map(
    Histogram
)


@a_few
@given(HISTOGRAMS, st.floats(0.01, 0.99), ALPHAS)
def test_a_quantile_lies_in_its_interval(latencies: Histogram, quantile: float, alpha: float) -> None:
    assert ordered(quantile_interval(latencies, quantile, alpha))


@a_few
@given(HISTOGRAMS, st.floats(0.1, 0.9), st.integers(0, 64))
def test_the_ratio_of_shifted_latencies_is_the_shift(latencies: Histogram, quantile: float, by: int) -> None:
    shifted = Histogram({index + by: count for index, count in latencies.counts.items()})
    ratio = quantile_ratio_interval(shifted, latencies, quantile, 0.05)
    assert ordered(ratio)
    assert ratio.estimate == pytest.approx(2 ** (by / 32))


def test_an_interval_of_few_latencies_has_no_upper_end() -> None:
    few = Histogram({bucket(0.005): 50})
    assert quantile_interval(few, 0.99, 0.05).high == math.inf
    assert quantile_ratio_interval(few, few, 0.99, 0.05).high == math.inf


def test_many_equal_latencies_leave_one_bucket() -> None:
    interval = quantile_interval(Histogram({bucket(0.005): 10**6}), 0.99, 0.05)
    assert (interval.low, interval.high) == (lower_edge_s(bucket(0.005)), lower_edge_s(bucket(0.005) + 1))


@a_few
@given(st.integers(2, 10**6), st.floats(0.1, 10), st.floats(0.01, 5))
def test_means_lie_in_their_intervals(count: int, mean: float, deviation: float) -> None:
    values = Moments(count, count * mean, count * (mean**2 + deviation**2))
    interval = mean_interval(values, 0.05)
    assert ordered(interval, -math.inf)
    assert ordered(mean_ratio_interval(values, values, 0.05))
    more = Moments(count * 100, values.total * 100, values.squares * 100)
    assert mean_interval(more, 0.05).high <= interval.high


def test_a_ratio_of_losses_needs_losses() -> None:
    nothing = Moments(100, 0.0, 0.0)
    assert mean_ratio_interval(nothing, nothing, 0.05) == Interval(1.0, 0.0, math.inf)
    assert mean_ratio_interval(Moments(100, 5.0, 1.0), nothing, 0.05).high == math.inf


@a_few
@given(SHARES, st.sampled_from(["agreement>=0.99,n=1", "agreement>=0.5@80%,n=1"]))
def test_a_guard_is_decided_when_the_bets_against_its_threshold_are_won(
    seen: tuple[int, int], text: str
) -> None:
    guard, (hits, count) = parse_guard(text), seen
    candidate = ArmEvidence(comparisons=Comparisons(count, hits))
    decided = judge(guard, ArmEvidence(), candidate).state is not State.UNDECIDED
    assert decided == is_decided(guard, hits, count)


# ---- simulations: one look after every batch, and a stop at the first decision

# Three standard errors above 5% in so many runs: 1000 give 7.1%, 40 give 15.3%.


@pytest.mark.parametrize(
    ("guard", "world"),
    [
        ("errors<=1%,n=1", World(errors=(0.0, 0.01))),
        ("agreement>=0.99,n=1", World(agreement=0.99)),
    ],
)
def test_exactly_at_the_threshold_a_share_is_rarely_decided(guard: str, world: World) -> None:
    played = play(guard, world, runs=1000, looks=100, batch=20)
    assert played.failed + played.passed <= 0.071


@pytest.mark.parametrize(
    ("guard", "world"),
    [
        ("accuracy>=-1pt,n=1", World(accuracy=(0.95, 0.94))),
        ("accuracy>=0.9x,n=1", World(accuracy=(0.9, 0.81))),
        ("p50<=1.2x,n=1", World(slower=1.2)),
        ("p90<=1.2x,n=1", World(slower=1.2)),
    ],
)
def test_exactly_at_the_threshold_a_comparison_is_rarely_decided(guard: str, world: World) -> None:
    played = play(guard, world, runs=40, looks=8, batch=100)
    assert played.failed + played.passed <= 0.153


def test_equals_pass_and_are_hardly_ever_rolled_back() -> None:
    played = play("agreement>=0.99", World(agreement=0.999), runs=300, looks=100, batch=50)
    assert played.passed >= 0.95
    assert played.failed <= 0.05


def test_a_real_drop_is_noticed_the_sooner_the_larger_it_is() -> None:
    small = play("agreement>=0.99,n=20", World(agreement=0.96), runs=100, looks=200, batch=10)
    large = play("agreement>=0.99,n=20", World(agreement=0.8), runs=100, looks=200, batch=10)
    assert small.failed == large.failed == 1.0
    assert large.samples[0] < small.samples[0] < 400


def test_a_slower_tail_is_noticed() -> None:
    played = play("p99<=1.2x", World(slower=2.0), runs=10, looks=40, batch=100)
    assert played.failed == 1.0
    assert played.samples[1] <= 3000
