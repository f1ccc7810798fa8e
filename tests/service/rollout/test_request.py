"""A rollout is only begun when it could be decided; else the answer names the field."""

from __future__ import annotations

from typing import Any

import pytest

from service.errors import BadRequestError, ConflictError
from service.rollout.request import ModelFacts, VariantFacts, begin, read_request
from service.rollout.rollout import Kind, Phase, Rollout
from tests.service.rollout.rollouts import FP32, INT8, PRUNED, rollout

RETRAINED = "fp32@aaaaaaaaaaaa"
FACTS = ModelFacts(
    model="digits",
    metric="accuracy",
    default_tier="balanced",
    primaries={"balanced": FP32, "fast": INT8, "nightly": None},
    reference=FP32,
    variants=(
        VariantFacts(RETRAINED, "candidate"),
        VariantFacts(INT8, "released"),
        VariantFacts(FP32, "released"),
        VariantFacts(PRUNED, "retired"),
        VariantFacts("broken@0123456789ab", "candidate", "its golden rows are off. Build it again."),
    ),
)
CANARY = {"kind": "canary", "candidate": "int8-static", "guards": ["errors<=1%"]}
AB = {"kind": "ab", "candidate": "int8-static"}
SHADOW = {"kind": "shadow", "candidate": "int8-static", "guards": ["errors<=1%"]}
BANDIT = {"kind": "bandit", "candidate": "int8-static", "reward": "accuracy"}


def started(body: dict[str, Any], facts: ModelFacts = FACTS) -> Rollout:
    return begin(read_request(body), facts, "r7", 50.0)


def facts(**changes: Any) -> ModelFacts:
    return ModelFacts(**{name: getattr(FACTS, name) for name in ModelFacts.__dataclass_fields__} | changes)


def test_the_canary_of_the_handbook() -> None:
    guards = ["agreement>=0.99@95%,n=500", "p99<=1.2x", "errors<=0.1%"]
    new = started(CANARY | {"guards": guards, "steps": [5, 25, 50, 100]})
    assert (new.phase, new.version, new.created, new.deadline) == (Phase.INITIALIZING, 1, 50.0, 3650.0)
    assert [arm.variant for arm in new.arms] == [FP32, INT8]
    assert new.weights == {"primary": 100, "candidate": 0}
    assert [arm.planned for arm in new.arms] == [95, 5]
    assert [guard.text for guard in new.guards] == guards
    assert new.fraction == 0.1  # answers are compared, so some are copied
    assert Rollout.from_json(new.to_json()) == new


@pytest.mark.parametrize(
    ("body", "planned"),
    [
        (AB, [50, 50]),
        (AB | {"weight": 20}, [80, 20]),
        (AB | {"candidate": ["int8-static", RETRAINED]}, [pytest.approx(100 / 3)] * 3),
        (
            AB | {"candidate": ["int8-static", RETRAINED],
                  "weights": {"primary": 20, "candidate": 30, "candidate-2": 50}},
            [20, 30, 50],
        ),
        (CANARY, [95, 5]),
        (SHADOW, [100, 0]),
        (BANDIT, [50, 50]),
    ],
)  # fmt: skip
def test_first_weights(body: dict[str, Any], planned: list[float]) -> None:
    assert [arm.planned for arm in started(body).arms] == planned


def test_a_recipe_is_its_newest_candidate_and_a_primary_its_release() -> None:
    assert started(AB | {"candidate": "fp32"}).arms[1].variant == RETRAINED
    new = started(AB | {"candidate": "int8-static", "primary": "fp32", "tier": "fast"})
    assert [arm.variant for arm in new.arms] == [FP32, INT8]
    assert started(AB | {"candidate": RETRAINED, "tier": "fast"}).primary.variant == INT8


def test_what_the_router_chooses_already_is_held_against_the_reference() -> None:
    new = started(CANARY | {"tier": "fast"})
    assert [arm.variant for arm in new.arms] == [FP32, INT8]
    assert new.keeps_primary
    assert not started(CANARY).keeps_primary
    assert started(CANARY | {"primary": "fp32"}).keeps_primary


def test_copies_are_made_where_answers_are_compared_and_nowhere_else() -> None:
    assert started(CANARY).fraction == 0
    assert started(SHADOW).fraction == 0.1
    assert started(SHADOW | {"fraction": 0.5}).fraction == 0.5
    assert started(AB | {"guards": ["cosine>=0.9"]}).fraction == 0.1


@pytest.mark.parametrize(
    ("body", "field", "problem"),
    [
        ([], "body", "valid dictionary"),
        ({}, "kind", "field required"),
        (AB | {"kind": "blue-green"}, "kind", "ab.*canary"),
        (AB | {"wieght": 5}, "wieght", "not permitted"),
        (AB | {"candidate": []}, "candidate", "."),
        (AB | {"weight": 0}, "weight", "greater than 0"),
        (AB | {"weight": float("nan")}, "weight", "."),
        (CANARY | {"steps": []}, "steps", "at least 1"),
        (CANARY | {"steps": [5, 120]}, "steps", "less than or equal to 100"),
        (CANARY | {"steps": [5, 50, 50]}, "steps", "50 does not lie above 50"),
        (CANARY | {"max_duration_s": -1}, "max_duration_s", "greater than 0"),
        (AB | {"steps": [5]}, "steps", "kind canary, not ab"),
        (CANARY | {"weight": 5}, "weight", "kind ab, not canary"),
        (AB | {"reward": "accuracy"}, "reward", "kind bandit"),
        (BANDIT | {"reward": None}, "reward", "a bandit needs one"),
        (BANDIT | {"reward": "happiness"}, "reward", "is none"),
        (AB | {"weight": 5, "weights": {"primary": 95, "candidate": 5}}, "weights", "weight is given too"),
        (AB | {"weights": {"primary": 60, "candidate": 50}}, "weights", "sum to 110, not to 100"),
        (AB | {"weights": {"primary": 50, "canary": 50}}, "weights", "exactly the arms candidate, primary"),
        (AB | {"weight": 60, "candidate": ["int8-static", RETRAINED]}, "weight", "more than 100"),
        (AB | {"tier": "slow"}, "tier", 'no tier "slow".*balanced, fast'),
        (AB | {"tier": "nightly"}, "primary", "no variant of digits serves"),
        (AB | {"candidate": "int7"}, "candidate", 'no variant "int7".*int8-static'),
        (AB | {"candidate": "pruned"}, "candidate", "is retired"),
        (AB | {"candidate": "broken"}, "candidate", "golden rows"),
        (AB | {"candidate": FP32}, "candidate", "is the primary already"),
        (AB | {"primary": "int8-static"}, "candidate", "is the primary already"),
        (AB | {"candidate": ["int8-static", INT8]}, "candidate", "named twice"),
        (CANARY | {"candidate": ["int8-static", RETRAINED]}, "candidate", "a canary has one"),
        (CANARY | {"guards": []}, "guards", "never decided"),
        (CANARY | {"guards": ["errors<=1%", "speed<=1"]}, "guards.1", "speed"),
        (CANARY | {"guards": ["loss<=1.1x"]}, "guards.0", "nobody measures loss"),
        (CANARY | {"guards": ["agreement>=0.9"], "fraction": 0}, "guards.0", "nobody measures.*copies"),
        (SHADOW | {"fraction": 0}, "fraction", "copies nothing"),
        (SHADOW | {"guards": ["accuracy>=0.9"]}, "guards.0", "nobody measures accuracy of a shadow"),
        (SHADOW | {"guards": ["misses<=1%"]}, "guards.0", "nobody measures misses of a shadow"),
    ],
)  # fmt: skip
def test_what_cannot_be_is_refused_and_the_field_named(body: Any, field: str, problem: str) -> None:
    with pytest.raises(BadRequestError, match=rf"^{field}: .*{problem}"):
        started(body)


@pytest.mark.parametrize("guard", ["agreement>=0.99", "accuracy>=-1pt"])
def test_nobody_measures_classes_of_a_model_of_numbers(guard: str) -> None:
    with pytest.raises(BadRequestError, match="judged by fidelity"):
        started(CANARY | {"guards": [guard]}, facts(metric="fidelity"))
    with pytest.raises(BadRequestError, match=r"^reward: "):
        started(BANDIT, facts(metric="mse"))
    assert started(CANARY | {"guards": ["loss<=1.1x", "cosine>=0.9"]}, facts(metric="mse"))


@pytest.mark.parametrize("body", [CANARY | {"guards": ["accuracy>=0.99x"]}, BANDIT])
def test_without_feedback_nobody_measures_what_is_right(body: dict[str, Any]) -> None:
    with pytest.raises(BadRequestError, match="takes no feedback"):
        started(body, facts(feedback=False))


@pytest.mark.parametrize(
    ("running", "wanted"), [(None, None), (None, "fast"), ("fast", None), ("fast", "fast")]
)
def test_two_rollouts_cannot_share_requests(running: str | None, wanted: str | None) -> None:
    other = rollout(Kind.AB, tier=running, phase=Phase.WAITING)
    with pytest.raises(ConflictError, match=r"^tier: rollout r1 of digits .* is waiting"):
        started(AB | {"tier": wanted, "primary": "fp32"}, facts(rollouts=(other,)))


def test_other_tiers_are_free() -> None:
    other = rollout(Kind.AB, tier="fast")
    assert started(AB | {"tier": "balanced"}, facts(rollouts=(other,))).tier == "balanced"
