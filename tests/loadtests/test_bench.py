import pytest

from loadtests.bench.arithmetic import ECHO, GATEWAY, PLAIN, Sample, summarize
from loadtests.bench.wrk import WrkError, parse_wrk


def sample(rate, p50=1.0, p99=2.0, **flaws):
    return Sample(round(rate * 2), 2.0, p50, p99, **flaws)


def rounds(gateway, plain, echo):
    return [
        {GATEWAY: g, PLAIN: p, ECHO: e} for g, p, e in zip(gateway, plain, echo, strict=True)
    ]  # fmt: skip


FAST, SLOW, BARE = (
    [sample(r) for r in (900, 1500, 1200)],
    [sample(r) for r in (100, 90, 80)],
    [sample(3000)] * 3,
)


def verdicts(summary):
    return [each["verdict"] for each in summary["requirements"]]


def test_medians_and_ratios_paired_by_round():
    summary = summarize(rounds(FAST, SLOW, BARE))
    assert summary["peers"][GATEWAY]["requests_per_s"] == 1200
    assert summary["peers"][PLAIN]["requests_per_s"] == 90
    assert summary["ratios"][PLAIN]["rounds"] == pytest.approx([9, 1500 / 90, 15])
    assert summary["ratios"][PLAIN]["median"] == 15
    assert summary["ratios"][ECHO]["median"] == pytest.approx(0.4)
    assert verdicts(summary) == ["met", "met"]


@pytest.mark.parametrize(("rate", "verdict"), [(1200, "met"), (1199, "missed")])
def test_the_speedup_has_a_sharp_edge(rate, verdict):
    summary = summarize(rounds([sample(rate)] * 3, [sample(100)] * 3, BARE))
    assert summary["requirements"][0]["verdict"] == verdict


@pytest.mark.parametrize(("p99", "verdict"), [(5.0, "met"), (5.01, "missed")])
def test_the_tail_has_a_sharp_edge(p99, verdict):
    summary = summarize(rounds([sample(5000, 1.0, p99)] * 3, SLOW, BARE))
    assert summary["requirements"][1]["verdict"] == verdict


def test_the_tail_is_paired_by_round():
    slow_machine = [sample(5000, 1.0, 3.0), sample(5000, 10.0, 30.0), sample(5000, 1.0, 3.0)]
    assert summarize(rounds(slow_machine, SLOW, BARE))["peers"][GATEWAY]["tail"] == 3.0


def test_a_peer_that_did_not_answer_is_a_hole_and_no_win():
    summary = summarize(rounds(FAST, [None] * 3, BARE))
    assert summary["peers"][PLAIN]["requests_per_s"] is None
    assert summary["ratios"][PLAIN] == {"median": None, "rounds": []}
    assert verdicts(summary) == ["void", "met"]
    assert "plain bentoml: did not answer in round 1" in summary["requirements"][0]["why"]


def test_a_missing_ceiling_voids_nothing_that_is_required():
    summary = summarize(rounds(FAST, SLOW, [None] * 3))
    assert verdicts(summary) == ["met", "met"]
    assert summary["ratios"][ECHO]["median"] is None


def test_a_missing_gateway_voids_everything():
    assert verdicts(summarize(rounds([None] * 3, SLOW, BARE))) == ["void", "void"]


@pytest.mark.parametrize(
    ("flaw", "why"),
    [
        (sample(100, bad_answers=1), "1 of 200 answers were errors in round 2"),
        (sample(100, socket_errors=3), "3 socket errors in round 2"),
        (Sample(0, 2.0, 0.0, 0.0), "no answers in round 2"),
        (None, "did not answer in round 2"),
    ],
)
def test_one_flawed_round_voids_the_peer(flaw, why):
    plain = summarize(rounds(FAST, [SLOW[0], flaw, SLOW[2]], BARE))
    assert verdicts(plain) == ["void", "met"]
    assert plain["peers"][PLAIN]["void"] == why
    gateway = summarize(rounds([FAST[0], flaw, FAST[2]], SLOW, BARE))
    assert verdicts(gateway) == ["void", "void"]


def test_rounds_on_both_sides_of_a_requirement_are_told():
    summary = summarize(rounds(FAST, SLOW, BARE))
    assert summary["ratios"][PLAIN]["rounds"][0] < 12
    assert summary["requirements"][0]["why"] == "inconclusive: it held in 2 of 3 rounds"
    assert summary["requirements"][1]["why"] == ""


@pytest.mark.parametrize("count", [0, 1, 2])
def test_fewer_than_three_rounds_are_void(count):
    assert verdicts(summarize(rounds(FAST, SLOW, BARE)[:count])) == ["void", "void"]


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
