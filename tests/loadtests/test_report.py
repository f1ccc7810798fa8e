from fractions import Fraction

import pytest
from hypothesis import given
from hypothesis import strategies as st

from loadtests.markdown import markdown
from loadtests.report import PACING, make_report, quantiles, tier_verdict
from loadtests.tally import Load, Measurement, Tally
from loadtests.targets import Target

ROWS = 100
DOCUMENT = {
    "model": "digits",
    "metric": "accuracy",
    "reference": "fp32",
    "host": {"cpu": "A CPU", "features": []},
    "tiers": {"accurate": {"min_quality_ratio": 0.999}, "fast": {"min_quality_ratio": 0.97}},
    "variants": [
        {"name": "fp32", "build": "b", "life": "candidate", "artifact": {"bytes": 7}},
        {"name": "fp32", "build": "a", "life": "released", "artifact": {"bytes": 4000}},
        {"name": "int8", "build": "c", "life": "released", "artifact": {"bytes": 1000}},
        {"name": "broken", "build": "d", "life": "candidate", "artifact": None},
    ],
}


def tally(variant: str, answers: int, correct: int, latency_ms: float = 1.0, failed: int = 0) -> Tally:
    made = Tally()
    made.latencies_ms = [latency_ms] * answers
    made.variants[variant] = answers
    made.judged, made.correct = answers, correct
    for _ in range(failed):
        made.failed("status 503: no capacity")
    return made


def measured(
    kind, name, variant, *, correct=95, latency_ms=1.0, failed=0, answers=1000, cpu=0.4, machine=0.5
):
    test = tally(variant, ROWS, correct)
    load = Load(tally(variant, answers, answers, latency_ms, failed), 2.0, cpu, machine)
    return Measurement(Target("digits", kind, name), test, load)


def report(*measurements, document=DOCUMENT, rows=ROWS):
    settings = {"seconds": 2.0, "users": 8, "binary": False}
    return make_report(
        measurements,
        document,
        rows=rows,
        url="http://here",
        settings=settings,
        taken="now",
        not_measured={"broken": "failed: why"},
    )


REFERENCE = measured("variant", "fp32", "fp32")


def test_quantiles_are_nearest_rank():
    assert quantiles([]) is None
    assert quantiles([3.0]) == {"p50": 3.0, "p95": 3.0, "p99": 3.0}
    assert quantiles([float(n) for n in range(200, 0, -1)]) == {"p50": 100.0, "p95": 190.0, "p99": 198.0}


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_quantiles_are_values_in_order(values):
    found = quantiles(values)
    assert found["p50"] <= found["p95"] <= found["p99"] <= max(values)
    assert set(found.values()) <= set(values)


@pytest.mark.parametrize(
    ("floor", "correct", "reference", "verdict", "short"),
    [
        (0.999, 354, 354, "ok", 0),
        (0.999, 353, 354, "below", 1),
        (0.99, 99, 100, "ok", 0),
        (0.97, 97, 100, "ok", 0),
        (0.97, 96, 100, "below", 1),
        (0.97, 90, 100, "below", 7),
        (0.97, 100, 90, "ok", 0),
    ],
)
def test_a_tier_is_held_to_its_floor_to_the_row(floor, correct, reference, verdict, short):
    found = tier_verdict(floor, correct, reference, 400, 400)
    assert (found["verdict"], found["rows_short"]) == (verdict, short)
    assert found["quality_ratio"] == correct / reference


@given(st.integers(0, 1000), st.integers(0, 2000), st.integers(1, 2000))
def test_the_verdict_is_that_of_exact_arithmetic(permille, correct, reference):
    found = tier_verdict(permille / 1000, correct, reference, 2000, 2000)
    assert (found["verdict"] == "ok") == (Fraction(correct, reference) >= Fraction(permille, 1000))
    enough = correct + found["rows_short"]
    assert Fraction(enough, reference) >= Fraction(permille, 1000)


@pytest.mark.parametrize(("reference", "rows", "judged"), [(90, 100, 99), (0, 100, 100), (0, 0, 0)])
def test_without_all_rows_there_is_no_verdict(reference, rows, judged):
    assert tier_verdict(0.9, 90, reference, rows, judged)["verdict"] == "not judged"


def test_a_row_of_the_report_tells_everything_of_its_target():
    made = report(REFERENCE, measured("tier", "fast", "int8", correct=95, latency_ms=2.0))
    reference, fast = made["targets"]
    assert reference["target"] == "variant:fp32"
    assert reference["artifact_bytes"] == 4000
    assert reference["tier"] is None
    assert fast["answered_by"] == {"int8": 1.0}
    assert fast["requests_per_s"] == 500.0
    assert fast["latency_ms"] == {"p50": 2.0, "p95": 2.0, "p99": 2.0}
    assert (fast["accuracy"], fast["accuracy_rows"]) == (0.95, ROWS)
    assert (fast["live_accuracy"], fast["live_rows"]) == (1.0, 1000)
    assert fast["tier"] == {"floor": 0.97, "quality_ratio": 1.0, "verdict": "ok", "rows_short": 0}
    assert made["verdict"] == {"ok": True, "reasons": []}
    assert made["pacing"] == PACING


def test_shares_are_over_both_variants_that_answered():
    mixed = measured("tier", "fast", "int8", answers=200)
    mixed.load.tally.variants["fp32"] = 100
    (target,) = report(mixed)["targets"]
    assert target["answered_by"] == {"int8": 0.75, "fp32": 0.25}


def test_a_tier_below_its_floor_is_named_with_a_reason():
    made = report(REFERENCE, measured("tier", "accurate", "int8", correct=94))
    (reason,) = made["verdict"]["reasons"]
    assert not made["verdict"]["ok"]
    assert "tier:accurate is below its floor" in reason
    assert "1 row(s) short" in reason


def test_failures_of_load_and_test_split_are_counted_together():
    flawed = measured("variant", "int8", "int8", failed=3)
    flawed.test.failed("status 500: bug")
    made = report(REFERENCE, flawed)
    assert made["targets"][1]["failures"] == 4
    assert made["targets"][1]["requests"] == 1000 + ROWS + 4
    assert made["verdict"]["reasons"] == [
        "variant:int8: 4 of 1104 requests failed, most of them with: status 503: no capacity"
    ]


def test_a_target_that_never_answered_is_a_failure_and_no_winner():
    silent = measured("variant", "int8", "int8", answers=0, failed=5)
    silent.test.variants.clear()
    silent.test.judged = silent.test.correct = 0
    made = report(REFERENCE, silent)
    assert made["targets"][1]["latency_ms"] is None
    assert made["targets"][1]["answered_by"] == {}
    assert {winner["target"] for winner in made["winners"]} == {"variant:fp32"}
    assert not made["verdict"]["ok"]
    assert "nobody" in markdown(made)


def test_the_reference_may_be_measured_on_the_test_split_only():
    reference = Measurement(REFERENCE.target, tally("fp32", ROWS, 80), None)
    made = report(reference, measured("tier", "fast", "int8", correct=80))
    assert [target["target"] for target in made["targets"]] == ["tier:fast"]
    assert made["targets"][0]["tier"]["quality_ratio"] == 1.0


def test_a_reference_that_failed_is_a_reason():
    reference = Measurement(REFERENCE.target, tally("fp32", 99, 80, failed=1), None)
    made = report(reference, measured("tier", "fast", "int8"))
    assert made["verdict"]["reasons"] == ["the reference failed on 1 of 100 rows of the test split."]
    assert made["targets"][0]["tier"]["verdict"] == "not judged"


def test_a_metric_other_than_accuracy_is_not_judged_but_warned_of():
    made = report(
        REFERENCE, measured("tier", "fast", "int8", correct=1), document=DOCUMENT | {"metric": "mse"}
    )
    assert made["targets"][1]["tier"]["verdict"] == "not judged"
    assert "its floor is on mse" in made["warnings"][0]
    assert made["verdict"]["ok"]


def test_a_busy_client_is_warned_of():
    made = report(measured("variant", "int8", "int8", cpu=0.97, machine=1.0), REFERENCE)
    (warning,) = made["warnings"]
    assert "itself was the bottleneck (up to 97% of one processor) for variant:int8:" in warning


def test_a_busy_machine_is_warned_of():
    (warning,) = report(measured("variant", "int8", "int8", machine=0.95), REFERENCE)["warnings"]
    assert "All processors of this machine were busy for variant:int8:" in warning


def titles(*measurements):
    return {winner["title"]: winner for winner in report(*measurements)["winners"]}


def test_each_title_goes_to_the_variant_that_holds_it():
    fast = measured("variant", "int8", "int8", correct=90, latency_ms=0.5, answers=2000)
    found = titles(REFERENCE, fast, measured("tier", "fast", "int8", latency_ms=0.1, answers=9000))
    assert {title: winner["target"] for title, winner in found.items()} == {
        "fastest p99": "variant:int8",
        "highest throughput": "variant:int8",
        "best accuracy": "variant:fp32",
        "smallest artifact": "variant:int8",
        "best accuracy per latency": "variant:int8",
    }
    assert found["best accuracy per latency"]["value"] == 0.9 / 0.5


def test_within_a_tenth_the_better_quality_wins():
    found = titles(REFERENCE, measured("variant", "int8", "int8", correct=90, latency_ms=0.95))
    assert found["fastest p99"]["target"] == "variant:fp32"
    assert found["fastest p99"]["tied"] == ["variant:int8"]


def test_tiers_compete_when_no_variant_was_measured():
    found = titles(measured("tier", "fast", "int8"))
    assert found["fastest p99"]["target"] == "tier:fast"
    assert "smallest artifact" not in found


def test_the_report_reads_as_markdown():
    made = report(REFERENCE, measured("tier", "accurate", "int8", correct=94, cpu=0.95))
    text = markdown(made)
    assert "| tier:accurate | int8 100% | 500 | 1.00 | 1.00 | 1.00 | 0 | 0.9400 (100 rows) |" in text
    assert "| accurate | 0.999 | 0.9895 | below |" in text
    assert "**tier:accurate is below its floor" in text
    assert "coordinated omission" in text
    assert "> **Warning.** The load generator itself" in text
    assert "- broken: failed: why" in text
    assert "fastest p99: **variant:fp32** (1 ms)" in text
