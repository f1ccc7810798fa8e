import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.figures import (
    BLOCKS,
    FIGURES,
    answers_by_row,
    bin_ms,
    binned_quantile,
    blocks,
    curve,
    figures,
    histogram,
    intervals,
    lateness,
    timeline,
)
from loadtests.tally import ROW, Load, Tally, Usage, tally_of

SECONDS = 10.0


def rows(latencies, *, good=True, status=200, right=1, degraded=False):
    made = np.zeros(len(latencies), ROW)
    made["at_s"] = np.linspace(0, SECONDS, len(latencies), endpoint=False)
    made["latency_ms"] = latencies
    made["good"], made["status"], made["right"], made["degraded"] = good, status, right, degraded
    made["row"] = np.arange(len(latencies)) % 10
    return made


def load(server=None):
    return Load(Tally(), SECONDS, 0.1, 0.2, server, "digest")


def test_figures_of_answers_and_failures():
    made = np.concatenate(
        [
            rows(np.arange(1.0, 97.0)),
            rows([1.0], right=0, degraded=True),
            rows([0.1], good=False, status=503, right=-1),
            rows([0.1], good=False, status=504, right=-1),
            rows([0.1], good=False, status=0, right=-1),
        ]
    )
    found = figures(made, load(Usage(2.0, 5_000_000, 1)), 36.0, whole=True)
    assert found.keys() == FIGURES.keys()
    assert (found["p50"], found["max"]) == (48.0, 96.0)
    assert found["errors"] == pytest.approx(0.03)
    assert (found["rejected"], found["late"]) == pytest.approx((0.01, 0.01))
    assert found["degraded"] == pytest.approx(1 / 97)
    assert found["accuracy"] == pytest.approx(96 / 97)
    assert (found["offered"], found["rate"]) == (10.0, 9.7)
    assert found["cpu"] == pytest.approx(2 / 97 * 1000)
    assert found["cost"] == pytest.approx(2 / 97 * 1000 * 36 / 3600)
    assert found["memory"] == 5_000_000


def test_of_nothing_nothing_is_known():
    found = figures(rows([]), load(), 0.0, whole=True)
    assert {name for name, value in found.items() if value is not None} == {"offered", "rate"}
    assert intervals(rows([]), blocks(rows([]), SECONDS)) == {}
    assert (curve(rows([])), timeline(rows([]), SECONDS), lateness(rows([]))) == ([], [], None)


@given(st.lists(st.floats(0.01, 1e5), min_size=1, max_size=300), st.sampled_from([0.5, 0.9, 0.99]))
def test_bins_keep_quantiles_to_one_per_cent(latencies, share):
    made = rows(latencies)
    counts = histogram(blocks(made, SECONDS))
    assert counts.sum() == len(latencies)
    exact = np.sort(made["latency_ms"])[max(0, int(np.ceil(share * len(latencies) - 1e-9)) - 1)]
    assert binned_quantile(counts.sum(0)[None], share)[0] == pytest.approx(exact, rel=0.011)


def test_intervals_hold_the_figure_and_need_answers_beyond_it():
    latencies = np.random.default_rng(0).lognormal(1, 0.5, 600)
    made = rows(latencies)
    found = intervals(made, blocks(made, SECONDS))
    for name in ("p50", "p90", "p99"):
        low, high = found[name]
        assert low <= figures(made, load(), 0.0, whole=True)[name] <= high * 1.01
    assert "p99.9" not in found
    assert found["errors"] == [0.0, 0.0]


def test_a_pause_widens_the_interval_since_neighbours_are_not_independent():
    calm = np.random.default_rng(0).lognormal(0, 0.1, 2000)
    stalled, scattered = calm.copy(), calm.copy()
    stalled[500:560] = 100.0
    scattered[np.random.default_rng(1).choice(2000, 60, replace=False)] = 100.0

    def width(latencies):
        made = rows(latencies)
        low, high = intervals(made, blocks(made, SECONDS))["p95"]
        return high - low

    assert width(stalled) > 10 * width(scattered)


def test_asking_a_row_again_tells_nothing_new_of_accuracy():
    few, many = rows(np.ones(10)), rows(np.ones(1000))
    assert (
        intervals(few, blocks(few, SECONDS))["accuracy"] == intervals(many, blocks(many, SECONDS))["accuracy"]
    )


def test_each_row_is_marked_right_or_wrong():
    made = rows(np.ones(4))
    made["right"] = [1, 0, 1, 1]
    made["row"] = [0, 1, 1, 3]
    assert answers_by_row(made, 5) == "10-1-"


def test_blocks_and_moments_cover_the_run():
    made = rows(np.full(400, 2.0))
    assert [part["requests"] for part in blocks(made, SECONDS)] == [400 // BLOCKS] * BLOCKS
    moments = timeline(made, SECONDS)
    assert sum(moment["offered"] for moment in moments) / len(moments) == pytest.approx(40)
    assert moments[0]["p99"] == 2.0
    assert curve(made)[0] == [0.0, 2.0]
    assert bin_ms(np.array([0]))[0] < 0.0011


def test_what_workers_saw_becomes_one_tally():
    one, other = rows([3.0, 1.0]), rows([2.0])
    one["variant"], one["tier"] = 0, 1
    other["variant"], other["tier"] = 1, 0
    parts = [
        {"rows": one.tobytes(), "names": ["int8", "fast"], "failures": {"status 503: 12 wait": 2}},
        {"rows": other.tobytes(), "names": ["fast", "fp32"], "failures": {"status 503: 13 wait": 1}},
    ]
    tally = tally_of(parts)
    assert tally.variants == {"int8": 2, "fp32": 1}
    assert sorted(tally.latencies_ms) == [1.0, 2.0, 3.0]
    assert tally.failures == {"status 503: 12 wait": 3}
    names = list(tally.names)
    assert {names[code] for code in tally.rows["tier"]} == {"fast"}
    assert (tally.judged, tally.correct) == (3, 3)
