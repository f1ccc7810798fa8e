import pytest

from loadtests.capacity import Probe, find_capacity
from loadtests.figures import FIGURES
from loadtests.terms import TermError, check_scopes, first_broken, judge, read_terms, show

EMPTY = dict.fromkeys(FIGURES)


def target(label, tiers=(), variants=(), **figures):
    kind, _, name = label.rpartition(":")
    return {
        "target": label,
        "kind": kind or "mix",
        "name": name,
        "figures": EMPTY | figures,
        "tiers": [{"name": part, "figures": EMPTY | values} for part, values in tiers],
        "variants": [{"name": part, "figures": EMPTY | values} for part, values in variants],
    }


TARGETS = [
    target("mix", [("fast", {"p99": 9.0})], [("int8", {"p99": 7.0})], p99=12.0, errors=0.002),
    target("tier:fast", p99=4.0, errors=0.0),
    target("variant:int8", p99=6.0, errors=0.0),
]


def breached(text):
    return [entry["text"] for entry in judge(read_terms(text), TARGETS) if entry["breached"]]


def test_terms_are_read_with_their_units():
    terms = read_terms("p99>0.02s, accuracy<98%,tier:fast:errors>=0.1%, memory>2GB,p99.9>900us")
    bounds = [(t.scope, t.figure, t.sign, t.bound) for t in terms]
    assert bounds[:3] == [
        ("", "p99", ">", 20.0),
        ("", "accuracy", "<", 0.98),
        ("tier:fast", "errors", ">=", 0.001),
    ]
    assert bounds[3:] == [("", "memory", ">", 2e9), ("", "p99.9", ">", 0.9)]


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("p98>2ms", r'"p98" in "p98>2ms" is no figure. Known: p50, p90'),
        ("p99>20", r'has the unit ""; p99 takes us or ms or s'),
        ("accuracy<3ms", r'has the unit "ms"; accuracy takes no unit or %'),
        ("fast", r"is no condition. Write FIGURE>VALUE"),
        ("p99=3ms", r"is no condition"),
    ],
)
def test_what_is_not_understood_is_refused_with_what_there_is(text, said):
    with pytest.raises(TermError, match=said):
        read_terms(text)


def test_a_scope_must_be_loaded():
    with pytest.raises(TermError, match=r"is of slow, which is not loaded. Known: fast, int8"):
        check_scopes(read_terms("slow:p99>2ms"), ["fast", "int8"])


def test_without_a_scope_every_target_is_held_to_the_term():
    assert breached("p99>5ms,errors>0.1%") == [
        "mix: p99 is 12.00 ms (p99>5ms)",
        "variant:int8: p99 is 6.00 ms (p99>5ms)",
        "mix: errors is 0.20% (errors>0.1%)",
    ]


def test_a_tier_is_held_alone_and_within_the_mix():
    assert breached("fast:p99>3ms") == [
        "mix, tier:fast: p99 is 9.00 ms (fast:p99>3ms)",
        "tier:fast: p99 is 4.00 ms (fast:p99>3ms)",
    ]
    assert breached("variant:int8:p99>6.5ms") == [
        "mix, variant:int8: p99 is 7.00 ms (variant:int8:p99>6.5ms)"
    ]


def test_what_is_not_known_fails():
    assert breached("mix:accuracy<0.9") == ["mix: accuracy is not known (mix:accuracy<0.9)"]
    assert breached("fp32:p99>1s") == ["nothing answered for fp32 (fp32:p99>1s)"]


def test_an_objective_names_what_breaks_it():
    objective = read_terms("p99<=5ms,accuracy>=0.9")
    assert first_broken(objective, EMPTY | {"p99": 5.0, "accuracy": 0.95}) is None
    assert first_broken(objective, EMPTY | {"p99": 5.1, "accuracy": 0.95}) == "p99 5.10 ms"
    assert first_broken(objective, EMPTY | {"p99": 1.0}) == "accuracy is not known"


@pytest.mark.parametrize(
    ("figure", "value", "words"),
    [
        ("p99", 123.4, "123 ms"),
        ("errors", 0.0123, "1.23%"),
        ("cost", 6.456e-06, "0.00000646"),
        ("rate", None, "-"),
    ],
)
def test_figures_are_shown_with_their_units(figure, value, words):
    assert show(figure, value) == words


@pytest.mark.parametrize("limit", [1.5, 3, 40, 777, 4000])
@pytest.mark.parametrize("start", [1, 100, 5000])
def test_the_highest_rate_is_found_to_a_tenth(limit, start):
    found = find_capacity(lambda rate: Probe(rate, "held" if rate <= limit else "broken"), start, 10_000)
    assert found.rate <= limit <= found.rate * 1.1 + 1
    assert found.limit == "gateway"
    assert len(found.probes) < 40


def test_a_rate_that_breaks_once_is_tried_again():
    seen = []

    def probe(rate):
        seen.append(rate)
        return Probe(rate, "broken" if len(seen) == 1 else "held")

    assert find_capacity(probe, 100, 400).rate == 400
    assert seen[:2] == [100, 100]


def test_a_search_says_what_limited_it():
    assert find_capacity(lambda rate: Probe(rate, "held"), 10, 50).limit == "most"
    by_client = find_capacity(lambda rate: Probe(rate, "held" if rate < 30 else "client"), 10, 500)
    assert by_client.limit == "client"
    nothing = find_capacity(lambda rate: Probe(rate, "broken"), 10, 500)
    assert (nothing.rate, nothing.limit) == (0.0, "gateway")
