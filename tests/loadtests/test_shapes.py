import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.schedule import MOST_ROWS, draw, read_message, replay
from loadtests.shapes import SHAPES, arrivals, describe
from loadtests.trace import Trace, TraceError, bursts, main, read_trace, write_trace


def times(shape, rate=200.0, seconds=10.0, peak=4.0, seed=0):
    return arrivals(shape, rate, seconds, peak, np.random.default_rng(seed))


@given(
    st.sampled_from(sorted(SHAPES)),
    st.floats(0.1, 500),
    st.floats(0.1, 20),
    st.floats(1, 10),
    st.integers(0, 99),
)
def test_arrivals_are_in_order_and_within_the_run(shape, rate, seconds, peak, seed):
    found = times(shape, rate, seconds, peak, seed)
    assert (np.diff(found) >= 0).all()
    assert ((found >= 0) & (found <= seconds)).all()


@pytest.mark.parametrize(
    ("shape", "multiple"),
    [("steady", 1.0), ("poisson", 1.0), ("step", 2.5), ("spike", 1.6), ("diurnal", 2.5)],
)
def test_a_shape_sends_as_many_as_its_rates_add_up_to(shape, multiple):
    assert len(times(shape)) == pytest.approx(2000 * multiple, rel=0.06)


def test_steady_is_even_and_poisson_is_not():
    assert np.ptp(np.diff(times("steady"))) < 1e-9
    gaps = np.diff(times("poisson"))
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.1)


def test_each_shape_has_its_rate_where_it_belongs():
    def rates(shape):
        return np.histogram(times(shape), bins=10, range=(0, 10))[0] / 200

    spike, step, diurnal = rates("spike"), rates("step"), rates("diurnal")
    assert spike[4:6].mean() == pytest.approx(4, rel=0.1)
    assert spike[[0, 1, 2, 3, 6, 7, 8, 9]].mean() == pytest.approx(1, rel=0.1)
    assert (step[0], step[3], step[6], step[9]) == pytest.approx((1, 2, 3, 4), rel=0.02)
    assert diurnal[0] < 1.4 < diurnal[2] < 3.4 < diurnal[5]


def test_one_seed_draws_one_schedule():
    one, same, other = (draw("poisson", 50, 2, 4, [60, 30, 10], 30, seed) for seed in (1, 1, 2))
    assert one.digest == same.digest != other.digest


def test_the_shares_of_workers_are_the_whole():
    whole = draw("spike", 100, 2, 4, [60, 30, 10], 30, 0)
    shares = [whole.share(place, 3) for place in range(3)]
    assert sorted(np.concatenate([share.times for share in shares])) == whole.times.tolist()
    back = read_message(shares[1].message())
    assert back.digest == shares[1].digest
    assert back.seconds == 2


def test_a_mix_follows_its_proportions_and_rows_stay_few():
    made = draw("steady", 10_000, 1, 1, [60, 30, 10], 50_000, 0)
    assert np.bincount(made.targets) / len(made.targets) == pytest.approx([0.6, 0.3, 0.1], abs=0.03)
    assert len(np.unique(made.rows)) <= MOST_ROWS


def test_a_record_is_replayed_at_its_times_and_tiers():
    trace = Trace(np.array([0.0, 1.0, 3.0]), ("fast", "", "accurate"))
    made = replay(trace, {"fast": 0, "balanced": 1, "accurate": 2}, 1, 2.0, None, 10, 0)
    assert made.times.tolist() == [0.0, 0.5, 1.5]
    assert made.targets.tolist() == [0, 1, 2]
    assert len(replay(trace, {"fast": 0, "accurate": 1}, 0, 1.0, 2.0, 10, 0).times) == 2
    with pytest.raises(ValueError, match=r"asks for the tiers accurate; the gateway offers fast"):
        replay(trace, {"fast": 0}, 0, 1.0, None, 10, 0)


def test_a_trace_is_read_as_it_was_written(tmp_path):
    trace = bursts(20, 30, {"fast": 1, "balanced": 2}, np.random.default_rng(0))
    write_trace(tmp_path / "trace.csv", "digits", trace)
    back = read_trace(tmp_path / "trace.csv", "digits")
    assert back.tiers == trace.tiers
    assert back.times == pytest.approx(trace.times - trace.times[0], abs=2e-6)


def test_dates_are_times_and_other_models_are_left_out(tmp_path):
    lines = "2026-11-23T08:00:02Z,digits,fast", "2026-11-23T08:00:00+00:00,digits,", "1,other,fast"
    (tmp_path / "trace.csv").write_text("timestamp,model,tier\n" + "\n".join(lines) + "\n")
    trace = read_trace(tmp_path / "trace.csv", "digits")
    assert trace.times.tolist() == [0.0, 2.0]
    assert trace.tiers == ("", "fast")
    assert trace.skipped == 1


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("time,model,tier\n", "has no column timestamp"),
        ("timestamp,model,tier\nsoon,digits,fast\n", 'line 2: "soon" is no time'),
        ("timestamp,model,tier\n1,other,fast\n", r"no arrival of digits \(1 of other models\)"),
    ],
)
def test_what_is_no_trace_is_refused_with_a_remedy(tmp_path, text, said):
    (tmp_path / "trace.csv").write_text(text)
    with pytest.raises(TraceError, match=said):
        read_trace(tmp_path / "trace.csv", "digits")


def test_the_generator_writes_bursts_of_few_callers(tmp_path, capsys):
    assert (
        main(["--model", "digits", "--out", str(tmp_path / "t.csv"), "--seconds", "60", "--rate", "40"]) == 0
    )
    trace = read_trace(tmp_path / "t.csv", "digits")
    assert 0.5 < len(trace.times) / 2400 < 1.5
    seconds = np.bincount(trace.times.astype(int), minlength=60)
    assert seconds.var() > 3 * seconds.mean()  # of a Poisson process they are equal
    assert "the busiest second has" in capsys.readouterr().out


def test_a_load_is_described_in_words():
    settings = {"shape": "spike", "rate": 50.0, "peak": 4.0, "seconds": 5.0, "processes": 2}
    assert describe(settings) == "spike, 50 to 200 requests/s for 5 s per target, 2 load generators"
    assert describe({"users": 8, "seconds": 2.0}) == "8 users for 2 s per target"
