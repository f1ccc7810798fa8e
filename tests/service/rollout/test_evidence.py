"""Evidence adds up whichever worker saw it, and survives being written down."""

from __future__ import annotations

import json
import math

from hypothesis import given, settings
from hypothesis import strategies as st

from service.rollout.evidence import (
    BUCKETS_PER_OCTAVE,
    ArmEvidence,
    ArmTally,
    Comparisons,
    Feedback,
    Histogram,
    bucket,
    lower_edge_s,
    merge,
)

COUNTS = st.integers(0, 10**6)
SUMS = st.integers(0, 10**6).map(
    lambda eighths: eighths / 8
)  # exact, so that sums do not depend on the order
HISTOGRAMS = st.dictionaries(st.integers(0, 959), st.integers(1, 10**6), max_size=8).map(Histogram)
EVIDENCE = st.builds(
    ArmEvidence,
    *[COUNTS] * 6,
    HISTOGRAMS,
    st.builds(Comparisons, COUNTS, SUMS, SUMS, SUMS),
    st.builds(Feedback, COUNTS, SUMS, SUMS, SUMS),
)

a_few = settings(max_examples=50)


@a_few
@given(EVIDENCE, EVIDENCE, EVIDENCE)
def test_merging_neither_heeds_order_nor_grouping(a: ArmEvidence, b: ArmEvidence, c: ArmEvidence) -> None:
    assert a.merged(b) == b.merged(a)
    assert a.merged(b).merged(c) == a.merged(b.merged(c))
    assert a.merged(ArmEvidence()) == a
    assert merge([{"x": a, "y": b}, {"x": c}]) == {"x": a.merged(c), "y": b}


@a_few
@given(EVIDENCE)
def test_evidence_survives_json(evidence: ArmEvidence) -> None:
    assert ArmEvidence.from_json(json.loads(json.dumps(evidence.to_json()))) == evidence


@a_few
@given(st.floats(2e-6, 1000.0))
def test_a_latency_lies_in_its_bucket(seconds: float) -> None:
    index = bucket(seconds)
    slack = 1e-9
    assert lower_edge_s(index) * (1 - slack) <= seconds <= lower_edge_s(index + 1) * (1 + slack)


@a_few
@given(st.sampled_from([-1.0, 0.0, 1e-9, 1e9]))
def test_latencies_beyond_the_ends_are_kept_there(seconds: float) -> None:
    assert bucket(seconds) == (0 if seconds < 1 else 30 * BUCKETS_PER_OCTAVE - 1)


@a_few
@given(st.lists(st.floats(1e-5, 100.0), min_size=1, max_size=50), st.floats(0.01, 0.99))
def test_a_quantile_is_right_to_a_bucket(latencies: list[float], share: float) -> None:
    tally = ArmTally()
    for latency in latencies:
        tally.answered(latency)
    exact = sorted(latencies)[max(0, math.ceil(round(share * len(latencies), 9)) - 1)]
    found = tally.take().latency.quantile_s(share)
    assert found is not None
    assert abs(bucket(found) - bucket(exact)) <= 1


def test_a_tally_begins_anew_when_it_is_taken() -> None:
    tally = ArmTally()
    tally.answered(0.01)
    tally.errors += 1
    tally.compared(Comparisons(1, 1.0, 0.9, 0.2))
    tally.compared(Comparisons(1, 0.0, 0.5, 0.1))
    taken = tally.take()
    assert (taken.requests, taken.errors, taken.latency.total) == (1, 1, 1)
    assert taken.comparisons == Comparisons(2, 1.0, 1.4, 0.2)
    assert tally.take() == ArmEvidence()
    assert taken.latency.total == 1


def test_a_tally_that_nobody_takes_does_not_grow() -> None:
    tally, seconds = ArmTally(), [0.001 * (1 + number % 7) for number in range(25_000)]
    for each in seconds:
        tally.answered(each)
    assert len(tally._seconds) < 10_000
    assert tally.take().latency == Histogram.of(seconds)
    assert tally.take() == ArmEvidence()


def test_only_whole_buckets_below_a_limit_are_within_it() -> None:
    histogram = Histogram({bucket(0.001): 3, bucket(0.02): 4, bucket(0.5): 5})
    assert histogram.within(0.01) == 3
    assert histogram.within(0.02) == 3
    assert histogram.within(1.0) == 12
    assert Histogram().quantile_s(0.5) is None
