"""What a request asks for: its tier, or floors and deadlines of its own, or a 400."""

from __future__ import annotations

from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.signature import Signature, TensorSpec
from service import routing
from service.errors import BadRequestError
from service.queues import Priority
from service.routing import SLO_HEADERS, Slo, SloReader
from variants.serving_spec import ServingSpec, TierSpec

SIGNATURE = Signature((TensorSpec("x", "float32", ("batch", 2)),), (TensorSpec("y", "float32", ("batch",)),))
TIERS = (TierSpec("accurate", 0.999, 200), TierSpec("balanced", 0.99, 100), TierSpec("fast", 0.97, 50))
HUGE = 10**400
NUMBERS = ("min_accuracy", "max_latency_ms")


def reader(**changes: Any) -> SloReader:
    settings = {"tiers": TIERS, "degrade_floor": 0.9} | changes
    return SloReader(ServingSpec("m", SIGNATURE, "accuracy", "fp32", **settings))


def test_a_request_that_asks_for_nothing_gets_the_default_tier() -> None:
    read = reader()
    assert read.read({}) == read.default == Slo(TIERS[1], 0.99, 100.0, None)


@pytest.mark.parametrize("tier", TIERS, ids=lambda tier: tier.name)
def test_a_tier_brings_its_floor_and_deadline(tier: TierSpec) -> None:
    assert reader().read({"tier": tier.name}) == Slo(tier, tier.min_quality_ratio, tier.deadline_ms, None)


def test_the_models_own_tiers_replace_the_usual_ones() -> None:
    mine = TierSpec("nightly", 0.5, 9_000)
    read = reader(tiers=(mine,), default_tier="nightly")
    assert read.default.tier is mine
    assert read.read({"tier": "nightly"}).floor == 0.5
    with pytest.raises(BadRequestError, match=r'no tier "balanced".*nightly'):
        read.read({"tier": "balanced"})


@given(tier=st.sampled_from(TIERS), minimum=st.floats(0, 1))
def test_the_floor_is_the_larger_of_the_tiers_and_the_requests(tier: TierSpec, minimum: float) -> None:
    read = reader().read({"tier": tier.name, "min_accuracy": minimum})
    assert read.floor == max(tier.min_quality_ratio, minimum)
    assert read.deadline_ms == tier.deadline_ms


@given(tier=st.sampled_from(TIERS), minimum=st.none() | st.floats(0, 1), floor=st.floats(0, 1))
def test_degrading_sinks_to_the_given_minimum_or_the_models_floor_and_never_rises(
    tier: TierSpec, minimum: float | None, floor: float
) -> None:
    parameters = {"tier": tier.name, "allow_degrade": True, "min_accuracy": minimum}
    read = reader(degrade_floor=floor).read(parameters)
    assert read.degraded_floor == min(read.floor, floor if minimum is None else minimum)


def test_degrading_is_off_unless_asked_for() -> None:
    assert reader().read({"min_accuracy": 0.5}).degraded_floor is None
    assert reader().read({"allow_degrade": False}).degraded_floor is None
    assert reader().read({"allow_degrade": "0"}).degraded_floor is None


def test_headers_bring_strings_that_read_like_parameters() -> None:
    texts = {"tier": "fast", "min_accuracy": "0.98", "max_latency_ms": "12.5", "allow_degrade": "TRUE"}
    values = {"tier": "fast", "min_accuracy": 0.98, "max_latency_ms": 12.5, "allow_degrade": True}
    assert reader().read(texts) == reader().read(values)
    assert set(SLO_HEADERS.values()) == {*texts, "sticky_key", "priority"}


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize(
    "value",
    [True, False, "", "fast", "nan", "NaN", "inf", "-inf", "1e999", "0x1", "--1", float("nan"), float("inf"),
     float("-inf"), -0.1, -1, "-1", 1e300, HUGE, -HUGE, [0.5], {}, "9" * 5000],
    ids=lambda value: repr(value)[:12],
)  # fmt: skip
def test_numbers_that_are_none_are_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(BadRequestError, match=name) as caught:
        reader().read({name: value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", [1.0001, 2, "1.5"])
def test_an_accuracy_above_one_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match="min_accuracy"):
        reader().read({"min_accuracy": value})


@pytest.mark.parametrize("value", [0, 0.0, -0.0, "0", 3_600_001])
def test_a_deadline_of_nothing_or_of_hours_is_refused(value: Any) -> None:
    with pytest.raises(BadRequestError, match="max_latency_ms"):
        reader().read({"max_latency_ms": value})


@pytest.mark.parametrize("value", ["yes", "", "2", 1, 0, 1.0, [], {}], ids=repr)
def test_booleans_are_booleans(value: Any) -> None:
    with pytest.raises(BadRequestError, match=r"allow_degrade.*true or false"):
        reader().read({"allow_degrade": value})


@pytest.mark.parametrize("value", ["Fast", "", "fast ", 1, True, None, ["fast"], {}, "x" * 10_000], ids=repr)
def test_an_unknown_tier_says_which_there_are(value: Any) -> None:
    with pytest.raises(BadRequestError, match="accurate, balanced, fast") as caught:
        reader().read({"tier": value})
    assert len(str(caught.value)) < 300


@pytest.mark.parametrize("value", ["", "k" * 257, 7, True, ["k"]], ids=lambda value: repr(value)[:12])
def test_a_sticky_key_is_a_short_string(value: Any) -> None:
    with pytest.raises(BadRequestError, match="sticky_key"):
        reader().read({"sticky_key": value})


def test_a_sticky_key_changes_no_objective() -> None:
    assert reader().read({"sticky_key": "k" * 256}) == reader().default


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=2) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=3,
)


@given(st.dictionaries(st.sampled_from([*SLO_HEADERS.values(), "other"]), JSON))
def test_whatever_parameters_say_they_are_read_or_refused(parameters: dict[str, Any]) -> None:
    try:
        read = reader().read(parameters)
    except BadRequestError:
        return
    assert 0 <= read.floor <= 1
    assert 0 < read.deadline_ms <= 3_600_000
    assert read.degraded_floor is None or 0 <= read.degraded_floor <= read.floor


def test_a_request_is_interactive_unless_it_says_batch_and_then_has_time() -> None:
    assert reader().default.priority is Priority.INTERACTIVE
    patient = reader().read({"priority": "batch"})
    assert (patient.priority, patient.deadline_ms) == (Priority.BATCH, routing.BATCH_DEADLINE_MS)
    assert reader().read({"priority": "batch", "max_latency_ms": 40}).deadline_ms == 40
    assert reader().read({"priority": "interactive"}) == reader().default


@pytest.mark.parametrize("value", ["urgent", "", -1, "-1", "9" * 5000, 1.5, True, None, "BATCH"])
def test_an_unknown_priority_says_which_there_are(value: Any) -> None:
    with pytest.raises(BadRequestError, match=r"priority is .*interactive or batch"):
        reader().read({"priority": value})


def test_what_tritons_clients_call_priority_and_timeout_is_understood() -> None:
    assert reader().read({"priority": 1}) == reader().read({"priority": 0}) == reader().default
    assert reader().read({"priority": 2}).priority is Priority.BATCH
    assert reader().read({"priority": "1"}) == reader().default, "a header"
    assert reader().read({"priority": "2"}).priority is Priority.BATCH
    assert reader().read({"timeout": 40_000}).deadline_ms == 40
    assert reader().read({"timeout": 7_200e6}).deadline_ms == 3_600e3
    assert reader().read({"timeout": 40_000, "max_latency_ms": 10}).deadline_ms == 10
    assert reader().read({"timeout": 0}) == reader().default
    with pytest.raises(BadRequestError, match="timeout"):
        reader().read({"timeout": "soon"})
