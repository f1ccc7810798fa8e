import pytest

from loadtests.options import check, default_processes, make_parser, traffic_of

GIVEN = ["--url", "http://x", "--model", "m", "--samples", "s", "--document", "d", "--out", "o"]


def read(*options):
    return make_parser().parse_args([*GIVEN, *options])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (("--rate", "5"), "--rate needs --shape: steady"),
        (("--slo", "p99<2ms"), "--slo needs --shape"),
        (("--shape", "replay"), "--shape replay needs --trace FILE"),
        (("--shape", "steady", "--trace", "t.csv"), "--trace needs --shape replay"),
        (("--shape", "steady", "--speed", "2"), "--speed needs --shape replay"),
        (("--shape", "spike", "--peak", "0.5"), "1 at least"),
        (("--shape", "steady", "--slo", "fast:p99<2ms"), "cannot be searched for"),
        (("--shape", "steady", "--slo", "capacity>2"), "cannot be searched for"),
    ],
)
def test_what_does_not_go_together_is_refused(options, said):
    with pytest.raises(ValueError, match=said):
        check(read(*options))


@pytest.mark.parametrize("options", [("--fail-on", "p98>2ms"), ("--shape", "wave"), ("--rate", "-1")])
def test_what_is_not_understood_ends_with_2(options, capsys):
    with pytest.raises(SystemExit) as ended:
        read(*options)
    assert ended.value.code == 2
    assert "error: argument" in capsys.readouterr().err


def test_defaults_make_a_load():
    options = read("--shape", "spike")
    check(options)
    traffic = traffic_of(options)
    assert (traffic.rate, traffic.peak, traffic.seconds, traffic.seed) == (100.0, 4.0, 5.0, 0)
    assert default_processes() >= 2


def test_a_trace_that_is_none_is_refused(tmp_path):
    with pytest.raises(ValueError, match="cannot be read"):
        traffic_of(read("--shape", "replay", "--trace", str(tmp_path / "none.csv")))
