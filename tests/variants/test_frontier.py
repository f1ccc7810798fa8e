"""What is worth serving: draws and dominance."""

from __future__ import annotations

from operator import itemgetter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.variants.handmade import profile
from variants.frontier import TIE, dominates, fastest, undominated
from variants.profile import BATCH_SIZES, Profile

# Few values, so that equal ones come up.
MS = st.sampled_from([0.5, 1.0, 1.05, 1.1, 2.0]) | st.floats(0.01, 10)
RATIO = st.sampled_from([0.9, 0.99, 1.0]) | st.floats(0.5, 1.1)
ITEMS = st.lists(st.tuples(MS, RATIO), min_size=1, max_size=8)
SAME_SIZES = st.builds(
    lambda ratio, times: profile(ratio, latency_ms=dict(zip(BATCH_SIZES, times, strict=True))),
    RATIO,
    st.lists(MS, min_size=6, max_size=6),
)
ANY_SIZES = st.builds(
    lambda ratio, times: profile(ratio, latency_ms=times),
    RATIO,
    st.dictionaries(st.sampled_from(BATCH_SIZES), MS, min_size=1),
)


def cost(item: tuple[float, float]) -> float:
    return item[0]


def quality(item: tuple[float, float]) -> float:
    return item[1]


@given(ITEMS)
def test_the_fastest_is_at_most_a_tenth_slower_than_the_least_and_none_as_fast_is_better(
    items: list[tuple[float, float]],
) -> None:
    chosen = fastest(items, cost, quality)
    assert chosen in items
    limit = TIE * min(map(cost, items))
    assert cost(chosen) <= limit
    assert quality(chosen) == max(quality(item) for item in items if cost(item) <= limit)


@given(ITEMS, st.randoms(use_true_random=False))
def test_order_does_not_decide_between_different_qualities(
    items: list[tuple[float, float]], random: object
) -> None:
    shuffled = random.sample(items, len(items))  # type: ignore[attr-defined]
    assert quality(fastest(items, cost, quality)) == quality(fastest(shuffled, cost, quality))  # type: ignore[arg-type]


def test_of_nothing_nothing_is_fastest() -> None:
    assert fastest([], cost, quality) is None


@pytest.mark.parametrize(("slower_ms", "winner"), [(1.09, 1.0), (1.11, 0.9)])
def test_a_tenth_is_a_draw_that_quality_decides(slower_ms: float, winner: float) -> None:
    chosen = fastest([(1.0, 0.9), (slower_ms, 1.0)], cost, quality)
    assert chosen is not None
    assert quality(chosen) == winner


def test_of_equal_quality_the_faster_wins_a_draw() -> None:
    assert fastest([(1.05, 1.0), (1.0, 1.0)], cost, quality) == (1.0, 1.0)


def test_one_dominates_by_being_faster_everywhere_and_no_worse() -> None:
    assert dominates(profile(1.0, ms=1), profile(1.0, ms=2))
    assert not dominates(profile(0.99, ms=1), profile(1.0, ms=2))
    mixed = dict.fromkeys(BATCH_SIZES, 1.0) | {8: 9.0}
    assert not dominates(profile(1.0, latency_ms=mixed), profile(1.0, latency_ms=dict.fromkeys(mixed, 2.0)))


def test_what_was_measured_at_different_sizes_cannot_be_compared() -> None:
    one, other = profile(1.0, latency_ms={1: 1.0}), profile(1.0, latency_ms={8: 2.0})
    assert not dominates(one, other)
    assert not dominates(other, one)


@given(SAME_SIZES | ANY_SIZES)
def test_nothing_dominates_itself(one: Profile) -> None:
    assert not dominates(one, one)


@given(SAME_SIZES | ANY_SIZES, SAME_SIZES | ANY_SIZES)
def test_two_never_dominate_each_other(one: Profile, other: Profile) -> None:
    assert not (dominates(one, other) and dominates(other, one))


@given(st.lists(SAME_SIZES, min_size=3, max_size=3))
def test_what_dominates_a_dominator_dominates(profiles: list[Profile]) -> None:
    one, two, three = profiles
    if dominates(one, two) and dominates(two, three):
        assert dominates(one, three)


@given(st.lists(SAME_SIZES, min_size=1, max_size=6))
def test_something_is_always_left(profiles: list[Profile]) -> None:
    assert any(not any(dominates(other, one) for other in profiles) for one in profiles)


def test_what_something_cheaper_is_as_good_as_is_dominated() -> None:
    points = [(3.0, 0.9), (1.0, 0.5), (2.0, 0.5), (1.0, 0.4), (4.0, 0.8), (5.0, 0.95)]
    assert undominated(points, itemgetter(0), itemgetter(1)) == [(1.0, 0.5), (3.0, 0.9), (5.0, 0.95)]
    assert undominated([], itemgetter(0), itemgetter(1)) == []
