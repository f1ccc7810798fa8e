import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.baseline import BaselineError, compare_runs, holm, mcnemar
from loadtests.figures import answers_by_row, blocks, figures
from loadtests.tally import Load, Tally
from tests.loadtests.test_figures import SECONDS, rows

SETTINGS = {"shape": "poisson", "rate": 100.0, "seconds": SECONDS, "binary": False}


def run(latencies, *, digest="one", right=1, failed=0, settings=SETTINGS, model="digits", host="a"):
    made = rows(latencies, right=right)
    made["good"][:failed] = False
    found = figures(made, Load(Tally(), SECONDS, 0, 0), 0.0, whole=True)
    target = {
        "target": "tier:fast",
        "figures": found,
        "blocks": blocks(made, SECONDS),
        "digest": digest,
        "machine_cpu": 0.5,
        "answers_by_row": answers_by_row(made, 10),
    }
    return {
        "format": 1,
        "model": model,
        "taken": "yesterday",
        "url": "http://there",
        "host": {"fingerprint": host, "cpu": "a CPU"},
        "settings": settings,
        "targets": [target],
    }


def draw(scale=1.0, seed=0):
    return np.random.default_rng(seed).lognormal(1, 0.4, 2000) * scale


def verdicts(baseline):
    return {change["figure"]: change["verdict"] for change in baseline["changes"]}


@pytest.mark.parametrize("digest", ["one", "two"])
def test_the_same_software_twice_cannot_be_told_apart(digest):
    found = compare_runs(run(draw(seed=1)), run(draw(seed=2), digest=digest))
    assert found["paired"] == (digest == "one")
    assert set(verdicts(found).values()) == {"cannot tell"}
    assert "No figure changed by more than chance explains" in found["text"]


@pytest.mark.parametrize("digest", ["one", "two"])
def test_slower_answers_are_told_with_an_interval(digest):
    found = compare_runs(run(draw(1.3, 1)), run(draw(seed=2), digest=digest))
    assert verdicts(found)["p50"] == "worse"
    p50 = found["changes"][0]
    assert p50["low"] < 0.3 < p50["high"]
    assert p50["p"] < 0.05
    assert "Worse: tier:fast: p50" in found["text"]


def test_faster_answers_are_better():
    assert verdicts(compare_runs(run(draw(0.7, 1)), run(draw(seed=2))))["p50"] == "better"


def test_one_pause_is_no_change_of_the_software():
    paused = draw(seed=1)
    paused[900:1000] += 50
    assert verdicts(compare_runs(run(paused), run(draw(seed=2))))["p99"] == "cannot tell"


def test_failures_all_over_the_run_are_told():
    failing = run(draw(seed=1))
    for part in failing["targets"][0]["blocks"]:
        part["good"] -= 5
    failing["targets"][0]["figures"]["errors"] = 0.05
    assert verdicts(compare_runs(failing, run(draw(seed=2))))["errors"] == "worse"


def test_with_few_answers_it_says_that_it_cannot_tell():
    found = compare_runs(run(draw(2.0)[:100]), run(draw()[:100]))
    (p99,) = [change for change in found["changes"] if change["figure"] == "p99"]
    assert p99["p"] is None
    assert p99["text"].endswith("cannot tell, too few answers")


@pytest.mark.parametrize(
    ("before", "said"),
    [
        (run(draw(), settings=SETTINGS | {"rate": 50.0}), "rate was 50.0 and is 100.0"),
        (run(draw(), host="b"), "the host was a CPU"),
    ],
)
def test_of_unlike_runs_nothing_is_told(before, said):
    found = compare_runs(run(draw(3.0)), before)
    assert found["unlike"] == [said]
    assert set(verdicts(found).values()) == {"cannot tell"}
    assert said in found["text"]


@pytest.mark.parametrize(
    "before", [run(draw(), model="other"), {}, {"format": 1, "model": "digits", "targets": []}]
)
def test_another_model_or_no_report_is_refused(before):
    with pytest.raises(BaselineError, match="the earlier run"):
        compare_runs(run(draw()), before)


def test_rows_that_changed_decide_over_accuracy():
    assert mcnemar(0, 0) == 1.0
    assert mcnemar(0, 10) == pytest.approx(2 / 2**10)
    assert mcnemar(5, 5) == 1.0
    found = compare_runs(run(draw(), right=0), run(draw(), right=1))
    assert verdicts(found)["accuracy"] == "worse"  # all ten rows


@given(st.lists(st.floats(0, 1), max_size=20))
def test_corrected_p_values_are_larger_and_keep_their_order(values):
    found = holm(values)
    assert all(value <= corrected <= 1 for value, corrected in zip(values, found, strict=True))
    assert all(
        found[i] <= found[j] for i in range(len(values)) for j in range(len(values)) if values[i] < values[j]
    )
