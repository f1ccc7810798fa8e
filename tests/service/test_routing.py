"""Which variant answers: the fastest that is good enough and in time, or a refusal that says why."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service import routing
from service.errors import UnavailableError, UnmeetableSloError
from service.routing import Candidate, Decision, Load, Slo
from variants.frontier import TIE, fastest
from variants.serving_spec import TierSpec

BALANCED = TierSpec("balanced", 0.99, 100)


def candidate(name: str, ratio: float, ms: float) -> Candidate:
    return Candidate(f"{name}@0123456789ab", name, ratio, lambda rows: ms * rows, lambda rows: ms * rows)


def slo(floor: float = 0.9, deadline_ms: float = 10.0, degraded_floor: float | None = None) -> Slo:
    return Slo(BALANCED, floor, deadline_ms, degraded_floor)


def choose(asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float) -> Decision:
    """The decision on a gateway on which everything waits equally long."""
    load = Load(asked.deadline_ms, lambda c: wait_ms + c.predict_ms(rows), wait_ms)
    return routing.choose(asked, rows, candidates, load)


# Few values, so that draws, floors and deadlines that are just met come up often.
RATIOS = st.sampled_from([0.85, 0.9, 0.97, 0.99, 1.0, 1.02]) | st.floats(0.8, 1.05)
TIMES = st.sampled_from([1.0, 1.05, 1.09, 1.1, 1.2, 5.0]) | st.floats(0.01, 50)
CANDIDATES = st.lists(st.tuples(RATIOS, TIMES), max_size=6).map(
    lambda pairs: [candidate(f"v{number}", *pair) for number, pair in enumerate(pairs)]
)
SLOS = st.builds(
    slo,
    floor=st.sampled_from([0.97, 0.99]) | st.floats(0.86, 1.0),
    deadline_ms=st.sampled_from([1.07, 1.1, 5.0]) | st.floats(0.01, 200),
    degraded_floor=st.none() | st.floats(0.7, 0.86),
)
ROWS = st.just(1) | st.integers(1, 40)
WAITS = st.just(0.0) | st.floats(0, 100)


def decide(
    asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float
) -> tuple[Decision, Candidate] | UnmeetableSloError | UnavailableError:
    try:
        decision = choose(asked, rows, candidates, wait_ms)
    except (UnmeetableSloError, UnavailableError) as error:
        return error
    return decision, next(c for c in candidates if c.version == decision.version)


@given(SLOS, ROWS, CANDIDATES, WAITS)
def test_what_is_chosen_is_good_enough_in_time_and_not_beaten(
    asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float
) -> None:
    outcome = decide(asked, rows, candidates, wait_ms)
    if isinstance(outcome, Exception):
        return
    decision, chosen = outcome
    time_ms = chosen.predict_ms(rows)
    assert wait_ms + time_ms <= asked.deadline_ms
    assert decision.degraded == (chosen.ratio < asked.floor)
    lowest = asked.floor
    if decision.degraded:
        assert asked.degraded_floor is not None
        lowest = asked.degraded_floor
    assert chosen.ratio >= lowest
    eligible = [c for c in candidates if c.ratio >= lowest]
    assert time_ms <= TIE * min(c.predict_ms(rows) for c in eligible)
    in_time = [c for c in eligible if wait_ms + c.predict_ms(rows) <= asked.deadline_ms]
    tied = [c for c in in_time if c.predict_ms(rows) <= time_ms]
    assert chosen.ratio >= max(c.ratio for c in tied)


@given(SLOS, ROWS, CANDIDATES, WAITS)
def test_nothing_is_refused_or_degraded_that_could_be_met(
    asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float
) -> None:
    def in_time(floor: float) -> bool:
        return any(c.ratio >= floor and wait_ms + c.predict_ms(rows) <= asked.deadline_ms for c in candidates)

    outcome = decide(asked, rows, candidates, wait_ms)
    if isinstance(outcome, Exception):
        assert not in_time(asked.floor if asked.degraded_floor is None else asked.degraded_floor)
    elif outcome[0].degraded:
        assert not in_time(asked.floor)


@given(SLOS, ROWS, CANDIDATES, WAITS)
def test_422_is_for_what_an_idle_gateway_would_refuse_too_and_503_for_the_rest(
    asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float
) -> None:
    outcome = decide(asked, rows, candidates, wait_ms)
    if not isinstance(outcome, Exception):
        return
    idle = decide(asked, rows, candidates, 0.0)
    if isinstance(outcome, UnmeetableSloError):
        assert type(idle) is UnmeetableSloError
        assert any(c.name in str(outcome) for c in candidates)
    elif candidates:
        assert not isinstance(idle, Exception)
        assert outcome.reason == "capacity"
        assert outcome.retry_after_s > 0


@given(SLOS, ROWS, CANDIDATES.filter(bool), WAITS, st.randoms(use_true_random=False))
def test_the_order_of_the_candidates_decides_nothing_but_exact_draws(
    asked: Slo, rows: int, candidates: list[Candidate], wait_ms: float, random: Any
) -> None:
    shuffled = random.sample(candidates, len(candidates))
    one, other = decide(asked, rows, candidates, wait_ms), decide(asked, rows, shuffled, wait_ms)
    assert isinstance(one, Exception) == isinstance(other, Exception)
    if isinstance(one, tuple) and isinstance(other, tuple):
        assert one[1].ratio == other[1].ratio


def test_the_fastest_above_the_floor_answers() -> None:
    variants = [candidate("fp32", 1.0, 3), candidate("int8", 0.99, 1), candidate("tiny", 0.8, 0.1)]
    assert choose(slo(0.9), 1, variants, 0.0).version.startswith("int8@")
    assert choose(slo(0.995), 1, variants, 0.0).version.startswith("fp32@")


def test_a_draw_goes_to_the_better() -> None:
    variants = [candidate("fast", 0.95, 1.0), candidate("good", 1.0, 1.09), candidate("best", 1.01, 1.2)]
    assert choose(slo(0.9), 1, variants, 0.0).version.startswith("good@")


@pytest.mark.parametrize("turned", [False, True])
def test_of_equally_good_ones_the_sooner_answers_as_show_says(turned: bool) -> None:
    both = [candidate("fp32", 1.0, 1.05), candidate("int8", 1.0, 1.0)]
    candidates = both[::-1] if turned else both
    chosen = choose(slo(), 1, candidates, wait_ms=0.0)
    named = fastest(candidates, lambda c: c.predict_ms(1), lambda c: c.ratio)
    assert named is not None
    assert chosen.version == named.version == "int8@0123456789ab"


def test_a_draw_does_not_go_to_one_that_would_be_late() -> None:
    variants = [candidate("fast", 0.95, 1.0), candidate("good", 1.0, 1.09)]
    assert choose(slo(0.9, deadline_ms=1.05), 1, variants, 0.0).version.startswith("fast@")


def test_a_loaded_gateway_degrades_only_when_allowed() -> None:
    variants = [candidate("fp32", 1.0, 8), candidate("int8", 0.95, 1)]
    with pytest.raises(UnavailableError) as caught:
        choose(slo(0.99), 1, variants, 5.0)
    assert (b"retry-after", b"1") in caught.value.headers()
    decision = choose(slo(0.99, degraded_floor=0.9), 1, variants, 5.0)
    assert (decision.version[:5], decision.degraded) == ("int8@", True)
    assert not choose(slo(0.99, degraded_floor=0.9), 1, variants, 0.0).degraded


def test_a_floor_that_nothing_reaches_names_the_nearest() -> None:
    variants = [candidate("fp32", 0.97, 1), candidate("int8", 0.95, 1)]
    with pytest.raises(UnmeetableSloError, match=r"0\.99.*nearest is fp32 with 0\.97"):
        choose(slo(0.99), 1, variants, 0.0)


def test_a_ratio_that_a_refusal_suggests_is_one_that_is_met() -> None:
    variants = [candidate("fp32", 0.97777, 1)]
    with pytest.raises(UnmeetableSloError) as caught:
        choose(slo(0.99), 1, variants, 0.0)
    suggested = re.search(r"min_accuracy ([\d.]+\d)", str(caught.value))
    assert suggested
    assert choose(slo(float(suggested[1])), 1, variants, 0.0).version == variants[0].version


def test_a_deadline_that_nothing_makes_names_the_nearest_and_its_time() -> None:
    variants = [candidate("fp32", 1.0, 30), candidate("slow", 1.0, 40)]
    with pytest.raises(UnmeetableSloError, match=r"within 10 ms; the nearest is fp32 with 30"):
        choose(slo(0.99), 1, variants, 0.0)


def test_what_degrading_could_answer_in_time_when_idle_is_503_under_load() -> None:
    variants = [candidate("fp32", 1.0, 30), candidate("int8", 0.95, 4)]
    asked = slo(0.99, degraded_floor=0.9)
    assert choose(asked, 1, variants, 0.0).degraded
    with pytest.raises(UnavailableError):
        choose(asked, 1, variants, 8.0)


def test_a_model_without_a_serving_variant_is_unavailable() -> None:
    with pytest.raises(UnavailableError) as caught:
        choose(slo(), 1, [], 0.0)
    assert caught.value.reason == "refused"
    assert caught.value.retry_after_s > 0


def test_a_loaded_gateway_lowers_the_floor_of_those_that_allow_it_and_no_further() -> None:
    variants = [candidate("fp32", 1.0, 8), candidate("int8", 0.97, 2), candidate("tiny", 0.92, 1)]
    willing = slo(0.99, deadline_ms=100, degraded_floor=0.95)

    def at(asked: Slo, lowered: float) -> Decision:
        return routing.choose(asked, 1, variants, Load(100, lambda c: c.predict_ms(1), 0.0, lowered))

    assert at(slo(0.99, deadline_ms=100), 0.97).version.startswith("fp32@")
    once = at(willing, 0.97)
    assert (once.version[:5], once.degraded_from) == ("int8@", "fp32")
    assert at(willing, 0.5).version.startswith("int8@")  # its own bound holds


def test_one_that_would_make_others_late_does_not_answer() -> None:
    variants = [candidate("fp32", 1.0, 8), candidate("int8", 0.97, 2)]
    load = Load(100, lambda c: math.inf if c.name == "int8" else 8.0, 5.0)
    assert routing.choose(slo(0.9, deadline_ms=100), 1, variants, load).version.startswith("fp32@")
    with pytest.raises(UnavailableError):
        routing.choose(slo(0.9, deadline_ms=100), 1, variants[1:], load)


def test_a_host_that_is_slow_now_refuses_for_now_not_for_ever() -> None:
    slow = Candidate("fp32@0123456789ab", "fp32", 1.0, lambda rows: 30.0 * rows, lambda rows: 3.0 * rows)
    load = Load(10, lambda c: c.predict_ms(1), 0.0)
    with pytest.raises(UnavailableError):
        routing.choose(slo(0.9, deadline_ms=10), 1, [slow], load)


@given(SLOS, CANDIDATES)
def test_each_step_of_a_ladder_is_cheaper_and_worse_and_allowed(
    asked: Slo, candidates: list[Candidate]
) -> None:
    steps = routing.ladder(asked, candidates)
    assert bool(steps) == bool(candidates)
    costs = [routing.work_ms(each, asked.deadline_ms) for each in steps]
    assert all(later * TIE < earlier for earlier, later in pairwise(costs))
    lower = steps[1:]
    assert all(asked.degraded_floor is not None and each.ratio >= asked.degraded_floor for each in lower)
    assert all(later.ratio <= earlier.ratio for earlier, later in pairwise(lower))


def test_where_time_is_scarce_the_cheapest_answers_or_none_and_not_the_shortest_queue() -> None:
    variants = [candidate("fp32", 1.0, 8), candidate("int8", 0.99, 2)]
    waits = {"fp32": 0.0, "int8": 20.0}

    def at(is_scarce: bool, time_left: float = 100.0, is_open: bool = True) -> Decision:
        load = Load(
            time_left, lambda c: waits[c.name] + c.predict_ms(1), 20.0, None, is_scarce, lambda c: is_open
        )
        return routing.choose(slo(0.9, deadline_ms=100), 1, variants, load)

    assert at(False).version.startswith("fp32@")
    assert at(True).version.startswith("int8@")
    with pytest.raises(UnavailableError, match=r"waits already takes 20 ms and this request 2\.0 ms"):
        at(True, time_left=15.0)  # FP32 would be in time, at the cost of four others
    assert at(True, time_left=15.0, is_open=False).version.startswith("fp32@")  # late for the opening alone


def sloped(name: str, ratio: float, first_ms: float, more_ms: float) -> Candidate:
    """A variant whose batches take some time, and some more for each further row."""

    def predict_ms(rows: int) -> float:
        return first_ms + more_ms * (rows - 1)

    return Candidate(f"{name}@0123456789ab", name, ratio, predict_ms, predict_ms)


SOON, CHEAP = sloped("soon", 0.99, 0.4, 0.3), sloped("cheap", 1.0, 0.5, 0.2)


@pytest.mark.parametrize(("share", "answers"), [(0.0, SOON), (0.2, SOON), (0.3, CHEAP), (0.8, CHEAP)])
def test_what_is_dear_in_batches_answers_while_the_device_has_leisure(
    share: float, answers: Candidate
) -> None:
    load = Load(10.0, lambda c: c.predict_ms(1), 0.0, share=share)
    assert routing.choose(slo(0.9), 1, [SOON, CHEAP], load).version == answers.version


def test_the_cheapest_does_not_answer_late_for_it() -> None:
    load = Load(0.45, lambda c: c.predict_ms(1), 0.0, share=0.8)
    assert routing.choose(slo(0.9, deadline_ms=0.45), 1, [SOON, CHEAP], load).version == SOON.version


def test_as_cheap_is_no_reason_to_change() -> None:
    nearly = sloped("nearly", 0.95, 0.5, 0.29)
    load = Load(10.0, lambda c: c.predict_ms(1), 0.0, share=0.8)
    assert routing.choose(slo(0.9), 1, [SOON, nearly], load).version == SOON.version
