"""What an operator or caller is refused, each with its own clear answer that names the field."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import httpx
import numpy as np
import pytest

from tests.conftest import Homes
from tests.gateway import Gateway, request, running
from tests.rollouts.conftest import ARMS, PATIENT, Operator, wait_for
from variants.catalog import Catalog

ROW = np.zeros(64, np.float32)
CANARY = ARMS | {"kind": "canary", "guards": ["errors<=1%"]}
AB = ARMS | {"kind": "ab"}
BANDIT = ARMS | {"kind": "bandit"}


@pytest.fixture(scope="module")
def gateway(digits: Catalog, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gateway]:
    with running(Homes.copied(tmp_path_factory.mktemp("homes")), workers=2) as started:
        yield started


@pytest.fixture
def operator(gateway: Gateway) -> Iterator[Operator]:
    operator = Operator(gateway)
    yield operator
    for rollout in operator.rollouts():
        if operator.change(rollout, "abort").status_code == 200:
            operator.wait_for(rollout, "failed")


def answered(gateway: Gateway, arm: str | None = None) -> str:
    """The id of an answer that a rollout gave."""
    while True:
        answer = httpx.post(f"{gateway.url}/v2/models/digits/infer", json=request(ROW, **PATIENT)).json()
        if answer["parameters"].get("arm"):
            return str(answer["id"])


def label(gateway: Gateway, body: Any) -> httpx.Response:
    return httpx.post(f"{gateway.url}/v1/feedback", json=body, timeout=30)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (CANARY | {"candidate": "int3"}, ["candidate", '"int3"', "int8-static"]),
        (CANARY | {"candidate": "int8-static@000000000000"}, ["candidate", "no variant"]),
        (AB | {"primary": "nothing"}, ["primary", '"nothing"']),
        (AB | {"primary": "int8-static"}, ["candidate", "primary already"]),
        (AB | {"weights": {"primary": 60, "candidate": 50}}, ["weights", "sum to 110"]),
        (AB | {"weights": {"primary": 60}}, ["weights", "candidate, primary"]),
        (AB | {"weight": 101}, ["weight"]),
        (AB | {"candidate": ["fp16", "int8-static"], "weight": 60}, ["weight", "100"]),
        (CANARY | {"steps": [50, 25]}, ["steps", "25", "50"]),
        (CANARY | {"steps": []}, ["steps"]),
        (CANARY | {"guards": []}, ["guards"]),
        (CANARY | {"guards": ["errors<=1%", "joy>=0.9"]}, ["guards.1", "joy"]),
        (CANARY | {"guards": ["loss<=0.3"]}, ["guards.0", "nobody measures loss", "accuracy"]),
        (CANARY | {"guards": ["agreement>=0.9"], "fraction": 0}, ["guards.0", "nobody measures agreement"]),
        (CANARY | {"kind": "shadow", "guards": ["accuracy>=0.9"]}, ["guards.0", "shadow"]),
        (CANARY | {"tier": "slow"}, ["tier", '"slow"', "balanced"]),
        (CANARY | {"kind": "rainbow"}, ["kind"]),
        (CANARY | {"candidates": "fp16"}, ["candidates"]),
        (BANDIT, ["reward"]),
        (BANDIT | {"reward": "fame"}, ["reward", "fame"]),
        ([], ["body"]),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_by_its_field(
    operator: Operator, body: Any, said: list[str]
) -> None:
    answer = operator.start(**body) if isinstance(body, dict) else operator.post(body)
    assert answer.status_code == 400, answer.text
    for text in said:
        assert text in answer.json()["error"]
    assert answer.json()["error"].startswith(said[0])
    assert not operator.running()


def test_a_second_rollout_of_the_same_requests_is_refused(operator: Operator) -> None:
    rollout = operator.started(**CANARY, tier="fast")
    again = operator.start(**AB, tier="fast")
    assert again.status_code == 409
    assert again.json()["error"].startswith("tier")
    assert rollout in again.json()["error"]
    assert operator.start(**AB).status_code == 409  # all tiers, so this one too
    other = operator.started(**AB, tier="accurate")
    assert set(operator.running()) == {rollout, other}


def test_an_operator_is_told_what_answers_are_compared_with(operator: Operator) -> None:
    shadow = {"kind": "shadow", "tier": "fast", "guards": ["agreement>=0.9"]}
    asked = [shadow | {"candidate": "fp16"}, shadow | {"candidate": "fp16", "primary": "int8-static"}]
    told = []
    for body in asked:
        started = operator.start(**body).json()
        told.append([note for note in started["notes"] if "compared" in note])
        assert operator.change(started["id"], "abort").status_code == 200
        operator.wait_for(started["id"], "failed")
    ((note,), nothing) = told
    assert "of test rows as the reference does. With the primary fp32" in note
    assert not nothing  # whoever names the primary knows


def test_of_two_operators_one_is_told_the_current_state(operator: Operator) -> None:
    rollout = operator.started(**AB)
    seen = operator.wait_for(rollout, "progressing", "waiting")["version"]
    wait_for(lambda: operator.find(rollout)["phase"] == "progressing")
    with ThreadPoolExecutor(2) as pool:
        answers = list(
            pool.map(lambda verb: operator.change(rollout, verb, version=seen), ["pause", "abort"])
        )
    assert sorted(answer.status_code for answer in answers) == [200, 409]
    (won,) = (answer.json() for answer in answers if answer.status_code == 200)
    (lost,) = (answer.json() for answer in answers if answer.status_code == 409)
    assert won["version"] == seen + 1
    assert lost["current"]["id"] == rollout
    assert lost["current"]["version"] >= won["version"]
    assert "has changed" in lost["error"]
    assert operator.change(rollout, "pause", version="one").status_code == 400
    assert operator.change("nothing", "pause").status_code == 404


def test_labels_without_an_answer_and_second_labels_are_refused(gateway: Gateway, operator: Operator) -> None:
    unknown = label(gateway, {"request_id": "never", "label": 1})
    assert unknown.status_code == 404
    assert '"never"' in unknown.json()["error"]
    rollout = operator.started(**AB)
    operator.wait_for(rollout, "progressing")
    answer = answered(gateway)
    for wrong in ("a cat", [1, 2], None):
        refused = label(gateway, {"request_id": answer, "label": wrong})
        assert refused.status_code == 400, refused.text
        assert "label" in refused.json()["error"]
    assert label(gateway, {"request_id": answer}).status_code == 400
    assert label(gateway, {"request_id": answer, "label": 0}).status_code == 202
    again = label(gateway, {"request_id": answer, "label": 0})
    assert again.status_code == 409
    assert "has its label already" in again.json()["error"]
    together = label(
        gateway, [{"request_id": answered(gateway), "label": 0}, {"request_id": answer, "label": 0}]
    )
    assert together.status_code == 409  # all of them or none
    wait_for(lambda: sum(arm["labelled"] for arm in operator.evidence(rollout).values()) == 1)


@pytest.mark.parametrize("key", ["", "k" * 257, 7, ["a"]])
def test_a_sticky_key_that_is_none_is_refused(gateway: Gateway, key: Any) -> None:
    body = request(ROW, **PATIENT | {"sticky_key": key})
    refused = httpx.post(f"{gateway.url}/v2/models/digits/infer", json=body)
    assert refused.status_code == 400
    assert "sticky_key" in refused.json()["error"]


def test_a_tiers_rollout_is_for_its_tier_alone(gateway: Gateway, operator: Operator) -> None:
    rollout = operator.started(**AB, tier="accurate")
    operator.wait_for(rollout, "progressing")

    def arms(tier: str) -> set[str | None]:
        answers = [gateway.infer(ROW, tier=tier, **PATIENT).json()["parameters"] for _ in range(30)]
        return {answer.get("arm") for answer in answers}

    wait_for(lambda: arms("accurate") == {"primary", "candidate"})
    assert arms("balanced") == {None}
    call = {"model": "digits", "inputs": {"image": [ROW.tolist()]}, "tier": "accurate"} | PATIENT
    told = httpx.post(f"{gateway.url}/predict", json=call)
    assert told.headers["x-mipgate-request-id"] == told.json()["request_id"]
    assert label(gateway, {"request_id": told.headers["x-mipgate-request-id"], "label": 0}).status_code == 202
