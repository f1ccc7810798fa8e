"""A flushed tally is what the client library itself would have written."""

from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from service.tally import Tallies

BUCKETS = (0.001, 0.01, 0.1, 1.0)


def _exposed(registry: CollectorRegistry) -> list[str]:
    return [line for line in generate_latest(registry).decode().splitlines() if "_created" not in line]


@given(st.lists(st.one_of(st.floats(0, 10), st.sampled_from(BUCKETS)), max_size=50), st.integers(0, 49))
def test_a_flushed_histogram_equals_one_that_observed(values: list[float], pause: int) -> None:
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    tallies = Tallies()
    tally = tallies.histogram(Histogram("h", "x", ["a"], buckets=BUCKETS, registry=ours), "one")
    direct = Histogram("h", "x", ["a"], buckets=BUCKETS, registry=theirs).labels("one")
    for position, value in enumerate(values):
        tally.observe(round(value, 6))
        direct.observe(round(value, 6))
        if position == pause:
            tallies.flush()
    tallies.flush()
    for our_line, their_line in zip(_exposed(ours), _exposed(theirs), strict=True):
        name, _, value = our_line.rpartition(" ")
        their_name, _, their_value = their_line.rpartition(" ")
        assert name == their_name
        if not our_line.startswith("#"):
            assert abs(float(value) - float(their_value)) < 1e-9


@given(st.integers(0, 30))
def test_a_flushed_counter_holds_every_increment_once(count: int) -> None:
    registry = CollectorRegistry()
    tallies = Tallies()
    counter = Counter("c", "x", ["a"], registry=registry)
    for _ in range(count):
        tallies.counter(counter, "one").inc()
    tallies.flush()
    tallies.flush()
    assert (registry.get_sample_value("c_total", {"a": "one"}) or 0) == count
