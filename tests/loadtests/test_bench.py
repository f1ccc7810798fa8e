"""The arithmetic of the bench, on a small record with holes and figures on both sides of what is required."""

import copy
import json
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from loadtests.bench.arithmetic import Sample, best, figures, ratios, why_void
from loadtests.bench.arrivals import best_possible, due_times, mix
from loadtests.bench.figures import figures as required
from loadtests.bench.overload import judge
from loadtests.bench.profile import ProfileError, attributed, by_layer
from loadtests.bench.requests import Request
from loadtests.bench.rollout import trial_of
from loadtests.bench.servers import ECHO, GATEWAY, MOSEC, PLAIN, TRITON
from loadtests.bench.stage import Contender, Stage
from loadtests.bench.subject import Subject
from loadtests.bench.tables import markdown
from loadtests.bench.wrk import WrkError, parse_wrk
from loadtests.samples import Samples

RECORDED = Path(__file__).parent / "bench_record.json"


@pytest.fixture
def record():
    return json.loads(RECORDED.read_text())


def sample(rate, p50=1.0, p99=2.0, **flaws):
    return Sample(round(rate * 2), 2.0, p50, p99, **flaws)


def rounds(**contenders):
    return [dict(zip(contenders, each, strict=True)) for each in zip(*contenders.values(), strict=True)]


FAST, SLOW = [sample(r) for r in (900, 1500, 1200)], [sample(r) for r in (100, 90, 80)]


def figure(record, name):
    return next(each for each in required(record) if each["name"].startswith(name))


def test_medians_with_their_spread():
    said = figures("a", rounds(a=FAST, b=SLOW))
    assert said["requests_per_s"] == {"median": 1200, "low": 900, "high": 1500}
    assert said["void"] is None


def test_ratios_are_paired_by_round():
    measured = rounds(a=FAST, b=SLOW)
    assert ratios(measured, "a", measured, "b") == pytest.approx([9, 1500 / 90, 15])


@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        (sample(100, bad_answers=1), "1 of 200 answers were errors in round 2"),
        (sample(100, socket_errors=3), "3 socket errors in round 2"),
        (Sample(0, 2.0, 0.0, 0.0), "no answers in round 2"),
        (None, "did not answer in round 2"),
    ],
)
def test_one_flawed_round_is_a_hole_and_no_win(flaw, why):
    measured = rounds(a=FAST, b=[SLOW[0], flaw, SLOW[2]])
    assert why_void("b", measured) == why
    assert figures("b", measured)["requests_per_s"] is None
    assert ratios(measured, "a", measured, "b") == []
    assert best(["b"], measured) is None


def test_the_best_is_the_fastest_that_answered():
    assert best(["a", "b", "missing"], rounds(a=FAST, b=SLOW)) == "a"


def test_what_is_required_of_recorded_rounds(record):
    verdicts = {each["name"]: each["verdict"] for each in required(record)}
    assert verdicts[f"JSON, 16 connections, over {TRITON}"] == "reached"
    assert verdicts[f"JSON, 16 connections, over {MOSEC}"] == "reached"
    assert verdicts[f"JSON, 16 connections, over {PLAIN}"] == "not reached"
    kept = "throughput kept with an active A/B rollout, over"
    assert verdicts[f"{kept} one variant alone"] == "void"
    of_both = [each for each in required(record) if each["name"] == f"{kept} both by name without it"]
    assert [(each["part"], each["verdict"]) for each in of_both] == [("small", "void"), ("real", "reached")]
    assert of_both[1]["measured"] == pytest.approx([0.98, 0.97, 0.96])
    assert "The candidate of the rollout is int8-2." in markdown(record, [])
    assert verdicts["goodput at 2x over the least of offered and best possible"] == "reached"
    assert verdicts["fewer misses at 2x than always fp32"] == "reached"
    assert verdicts["fewer misses at 3x than always fp32"] == "not reached"
    assert verdicts["admitted and late at 3x"] == "not reached"


def subject(tiers, ratios):
    variants = [
        {"name": name, "life": "released", "runtime": "r", "precision": "f32", "threads": 1}
        | {"profiles": [{"runtime": "r", "precision": "f32", "threads": 1, "latency_ms": {"1": {"p50": ms}}}]}
        for name, (_, ms) in ratios.items()
    ]
    for each, (ratio, _) in zip(variants, ratios.values(), strict=True):
        each["profiles"][0]["quality"] = {"validation": {"ratio": ratio}}
    rows = np.zeros((2, 4), np.float32)
    return Subject("m", {"tiers": tiers, "variants": variants}, Samples({"x": rows}, None))


def test_a_trial_is_against_the_nearest_that_meets_the_floor():
    tiers = {"balanced": {"serves": "int8", "min_quality_ratio": 0.99}}
    known = {"fp32": (1.0, 9.0), "int8": (0.995, 1.0), "near": (0.991, 2.0), "poor": (0.9, 1.1)}
    asked = subject(tiers, known)
    routed = Contender(None, asked.pinned("int8")["json"].requests(asked.samples))
    stage = Stage(Path(), lambda text: None)
    trial = trial_of(routed, asked, "json", stage)
    assert (trial.candidate, stage.rollout_hole) == ("near", "")
    paths = Counter(request.path for request in trial.halves.requests)
    assert paths == {f"/v2/models/m/versions/{name}/infer": 2 for name in ("int8", "near")}
    for lacking, why in (
        (subject({}, known), "nothing serves"),
        (subject(tiers, {"int8": (1, 1)}), "only int8"),
    ):
        assert trial_of(routed, lacking, "json", stage) is None
        assert why in stage.rollout_hole


def test_what_was_measured_is_paired_by_round(record):
    assert figure(record, f"JSON, 16 connections, over {TRITON}")["measured"] == pytest.approx(
        [1.6, 1.7, 2.0]
    )
    assert figure(record, "p99/p50 at half load")["measured"] == pytest.approx([1.2, 1.0, 1.1])


def test_a_profile_may_stand_in_the_place_of_a_fast_binary_wire(record):
    for cases in record["parts"]["small"]["rounds"]:
        cases["binary, 16 connections"][GATEWAY] = dict(cases["json, 16 connections"][GATEWAY])
    faster, told = figure(record, "binary over JSON"), figure(record, "or else")
    assert (faster["verdict"], told["verdict"]) == ("does not apply", "reached")
    assert told["measured"] == [85]
    taken = record["parts"]["small"]["profiles"]
    assert "| decoding requests, encoding answers | 40.0% | 25.0% |" in markdown(record, [])
    taken["binary"]["shares"] |= {"other": 0.5, "the model: onnxruntime": 0.25}
    assert figure(record, "binary over JSON")["verdict"] == "not reached"
    assert figure(record, "or else")["verdict"] == "not reached"
    taken["binary"] = {"shares": {}, "hole": "py-spy may not look"}
    assert figure(record, "or else")["verdict"] == "void"
    assert "binary: py-spy may not look" in markdown(record, [])


def test_samples_belong_to_the_layer_they_end_in():
    shares = by_layer(
        [
            "run (/lib/asyncio/runners.py:9);_infer (/x/service/inference.py:5);run (/onnxruntime/a.py:3) 6",
            "run (/lib/asyncio/runners.py:9);_infer (/x/service/data_plane.py:5) 3",
            "main (<string>:1) 1",
        ]
    )
    assert list(shares.items()) == [
        ("the model: onnxruntime", 0.6), ("a request's way through the gateway", 0.3), ("other", 0.1)
    ]  # fmt: skip
    assert attributed(shares) == pytest.approx(0.9)
    with pytest.raises(ProfileError, match="nothing was sampled"):
        by_layer([])


def test_a_missing_peer_voids_what_is_held_against_it(record):
    for cases in record["parts"]["small"]["rounds"]:
        cases["json, 16 connections"][TRITON] = None
    hole = figure(record, f"JSON, 16 connections, over {TRITON}")
    assert hole["verdict"] == "void"
    assert "did not answer in round 1" in hole["why"]
    assert figure(record, f"JSON, 16 connections, over {MOSEC}")["verdict"] == "reached"


def test_a_missing_gateway_reaches_nothing(record):
    part = record["parts"]["small"]
    part["servers"].pop(GATEWAY)
    part["idle"] = part["profiles"] = {}
    for cases in part["rounds"]:
        for each in cases.values():
            each.pop(GATEWAY, None)
    record["parts"]["overload"]["rounds"] = []
    assert {each["verdict"] for each in required(record) if each["part"] != "real"} == {"void"}


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_rounds_give_no_verdict(record, count):
    for part in record["parts"].values():
        part["rounds"] = part["rounds"][:count]
    rounds_needed = [
        each for each in required(record) if "x" in each["unit"] and "accuracy" not in each["name"]
    ]
    assert {each["verdict"] for each in rounds_needed} == {"void"}


def test_rounds_on_both_sides_of_what_is_required_are_told(record):
    cases = record["parts"]["small"]["rounds"][0]["json, 16 connections"]
    cases[TRITON]["requests"] *= 2
    assert figure(record, f"JSON, 16 connections, over {TRITON}")["why"] == "it held in 2 of 3 rounds"


def test_the_real_model_is_held_against_the_best_peer(record):
    against = figure(record, "balanced over the best peer with FP32")
    assert MOSEC in against["name"]
    assert against["measured"] == pytest.approx([5, 5, 5])
    assert figure(record, "balanced over the best peer with the same 8-bit file")["verdict"] == "not reached"
    assert figure(record, "accuracy of balanced")["measured"] == pytest.approx([0.99])


@pytest.mark.parametrize(
    ("features", "verdict"), [(["avx2"], "does not apply"), (["amx_int8"], "not reached")]
)
def test_four_times_as_fast_is_required_of_processors_with_amx(record, features, verdict):
    record["host"]["features"] = features
    for cases in record["parts"]["real"]["rounds"]:
        cases["16 connections"][f"{MOSEC}: fp32"]["requests"] *= 3
    assert figure(record, "balanced over the best peer with FP32")["verdict"] == verdict


def test_a_client_that_fell_behind_proves_nothing(record):
    record["parts"]["overload"]["rounds"][1]["2x"][GATEWAY]["client_lag_ms"] = 50.0
    fell = figure(record, "goodput at 2x")
    assert fell["verdict"] == "void"
    assert fell["why"] == "the client fell 50 ms behind its plan"


def test_tables_show_holes_and_verdicts(record):
    shown = copy.deepcopy(record)
    for cases in shown["parts"]["small"]["rounds"]:
        cases["json, 16 connections"][PLAIN] = None
    text = markdown(shown, required(shown))
    assert f"| {PLAIN} | hole: did not answer in round 1 | - | - | - |" in text
    assert "| not reached |" in text
    assert "takes no binary tensors" in text
    assert f"| {ECHO} | 4000 (4000 to 4000) |" in text


def test_an_open_loop_counts_from_when_requests_were_due():
    events = {
        "sent_s": np.array([0.0, 1.5, 2.0, 3.0, 4.0, 5.0]),
        "done_s": np.array([0.05, 1.55, 2.01, 3.2, np.nan, 5.01]),
        "status": np.array([200, 200, 503, 504, 0, 500]),
    }
    due_s, yes = np.array([0.0, 1.0, 2.0, 3.0, 4.0, 5.0]), np.array([True] * 6)
    outcome = judge(due_s, np.full(6, 0.1), events, yes, ~yes, 6.0)
    assert (outcome.in_time, outcome.late, outcome.rejected, outcome.failed) == (1, 3, 1, 1)
    assert outcome.misses == pytest.approx(5 / 6)
    assert outcome.late_of_admitted == pytest.approx(3 / 5)
    assert outcome.accuracy == 1.0
    assert outcome.client_lag_ms > 400


def test_arrivals_are_poisson_and_repeatable():
    due_s = due_times(1000, 10, np.random.default_rng(1))
    assert np.array_equal(due_s, due_times(1000, 10, np.random.default_rng(1)))
    gaps = np.diff(due_s)
    assert len(due_s) == pytest.approx(10_000, rel=0.05)
    assert gaps.std() == pytest.approx(gaps.mean(), rel=0.05)
    assert (gaps >= 0).all()
    assert due_s.max() <= 10


def variant(ratio, **latency_ms):
    timed = {batch.removeprefix("b"): {"p50": value} for batch, value in latency_ms.items()}
    runtime = {"runtime": "r", "precision": "f32", "threads": 1}
    return runtime | {
        "quality": {"validation": {"ratio": ratio}},
        "profiles": [runtime | {"latency_ms": timed}],
    }


def test_the_best_possible_is_the_fastest_variant_at_each_floor():
    tiers = {"accurate": {"min_quality_ratio": 1.0, "deadline_ms": 100}}
    asks = mix({"tiers": tiers, "degrade_floor": 0.9})
    assert [each.floor for each in asks] == [1.0, 0.9]
    variants = {"fp32": variant(1.0, b1=10, b8=48), "fast": variant(0.95, b1=2)}
    assert best_possible(asks, variants) == pytest.approx(1000 / ((6 + 2) / 2))
    assert best_possible(asks, {"fast": variants["fast"]}) is None


def test_a_request_as_it_goes_over_a_connection():
    request = Request("/v2", b"{}", {"Content-Type": "application/json"})
    assert request.http1(80) == (
        b"POST /v2 HTTP/1.1\r\nHost: 127.0.0.1:80\r\nContent-Length: 2\r\n"
        b"Content-Type: application/json\r\n\r\n{}"
    )


def test_what_wrk_prints_is_read():
    output = (
        "Running 2s test @ http://127.0.0.1:1/\n  1 threads and 16 connections\n"
        'BENCH {"requests": 300, "us": 2000000, "p50_us": 640, "p99_us": 1050, "status": 7, "socket": 2}\n'
    )
    read = parse_wrk(output)
    assert read == Sample(300, 2.0, 0.64, 1.05, 7, 2)
    assert read.requests_per_s == 150


@pytest.mark.parametrize("output", ["", "BENCH nonsense", "BENCH {}", "unable to connect"])
def test_anything_else_from_wrk_is_an_error(output):
    with pytest.raises(WrkError, match="no figures"):
        parse_wrk(output)
