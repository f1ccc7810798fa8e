"""What operators do over the API: models, rollouts, jobs, keys, feedback."""

import logging
from typing import Any

import pytest

from service.access.principal import Role
from service.rollout.evidence import ArmEvidence
from service.state.evidence import Batch
from service.state.jobs import State
from service.state.sealed import Served
from service.state.tables import metadata
from tests.service.admin.conftest import Admin

CANARY = {
    "kind": "canary",
    "candidate": "int8-static",
    "primary": "fp32",
    "steps": [5, 25, 50, 100],
    "guards": ["agreement>=0.99@95%,n=500", "p99<=1.2x", "errors<=0.1%"],
}


def start(admin: Admin, **changes: Any) -> dict[str, Any]:
    started = admin.client().post("/admin/models/digits/rollouts", json=CANARY | changes)
    assert started.status_code == 201, started.text
    return dict(started.json())


def test_models_are_listed_and_shown(admin: Admin) -> None:
    client = admin.client()
    (line,) = client.get("/admin/models").json()
    document = client.get("/admin/models/digits").json()
    assert (line["model"], line["metric"], line["rollout"]) == ("digits", "accuracy", None)
    assert line["variants"] == len(document["variants"])
    assert 0 < line["serving"] <= line["variants"]
    assert document["tiers"].keys() == {"accurate", "balanced", "fast"}
    assert client.get("/admin/models/none").status_code == 404
    assert "digits" in client.get("/admin/models/none").json()["error"]


def test_a_variant_is_retired_and_released_again(admin: Admin) -> None:
    client = admin.client()
    retired = client.post("/admin/models/digits/variants/int8-static/retire")
    assert (retired.json()["was"], retired.json()["life"]) == ("released", "retired")
    lives = {v["name"]: v["life"] for v in client.get("/admin/models/digits").json()["variants"]}
    assert lives["int8-static"] == "retired"
    assert client.post("/admin/models/digits/variants/int8-static/load").json()["life"] == "candidate"
    assert client.post("/admin/models/digits/variants/int8-static/release").json()["was"] == "candidate"
    again = client.post("/admin/models/digits/variants/int8-static/load").json()
    assert (again["was"], again["life"]) == ("released", "released")  # it is loaded, and stays in traffic
    variant = retired.json()["variant"]
    assert admin.audited() == [f"loopback: {verb} {variant}" for verb in ("release", "load", "retire")]


def test_a_card_that_another_changes_is_not_waited_for_without_end(
    admin: Admin, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("service.admin.models._WAIT_S", 0.1)
    with admin.desk.catalog.lock("digits"):  # the handler has a thread of its own
        busy = admin.client().post("/admin/models/digits/variants/int8-static/retire")
    assert busy.status_code == 503
    assert busy.headers["retry-after"]
    assert busy.json()["error"].startswith("nothing was changed: the card of digits is being changed by")
    assert not admin.audited()


@pytest.mark.parametrize(
    ("variant", "status"), [("nothing", 404), ("fp32@000000000000", 404), ("NOT A NAME", 400)]
)
def test_a_variant_that_is_not_there_is_named(admin: Admin, variant: str, status: int) -> None:
    refused = admin.client().post(f"/admin/models/digits/variants/{variant}/release")
    assert refused.status_code == status
    assert variant in refused.json()["error"]


def test_a_rollout_goes_from_start_to_abort_with_its_history(admin: Admin) -> None:
    client = admin.client()
    started = start(admin)
    assert (started["phase"], started["kind"], started["version"]) == ("initializing", "canary", 1)
    assert [arm["name"] for arm in started["arms"]] == ["primary", "candidate"]
    assert client.get("/admin/models").json()[0]["rollout"] == started["id"]
    assert client.get(f"/admin/rollouts/{started['id']}").json()["guards"][0]["samples"] == 0
    aborted = client.post(f"/admin/rollouts/{started['id']}/abort", json={"version": 1})
    assert aborted.status_code == 200, aborted.text
    assert aborted.json()["version"] == 2
    history = client.get(f"/admin/rollouts/{started['id']}/history").json()
    assert [line["version"] for line in history] == [1, 2]
    assert history[1]["who"] == "loopback"
    assert [rollout["id"] for rollout in client.get("/admin/models/digits/rollouts").json()] == [
        started["id"]
    ]
    assert [line.split(": ")[1].split()[0] for line in admin.audited()] == ["abort", "start"]


def test_of_two_operators_one_is_told_how_it_stands_now(admin: Admin) -> None:
    started, client = start(admin), admin.client()
    assert client.post(f"/admin/rollouts/{started['id']}/abort", json={"version": 1}).status_code == 200
    late = client.post(f"/admin/rollouts/{started['id']}/abort", json={"version": 1})
    assert late.status_code == 409
    assert late.json()["current"]["version"] == 2


def test_the_evidence_is_in_the_document(admin: Admin) -> None:
    started = start(admin)
    seen = {(started["id"], "candidate"): ArmEvidence(requests=10, errors=1)}
    admin.desk.evidence.write("w", Batch(1, seen))
    arms = admin.client().get(f"/admin/rollouts/{started['id']}").json()["arms"]
    assert (arms[1]["evidence"]["requests"], arms[1]["evidence"]["errors"]) == (10, 1)


@pytest.mark.parametrize(
    ("changes", "status", "named"),
    [
        ({"candidate": "nothing"}, 400, "candidate"),
        ({"primary": "nothing"}, 400, "primary"),
        ({"guards": ["speed>=1"]}, 400, "guards.0"),
        ({"guards": ["loss<=0.1"]}, 400, "loss"),
        ({"steps": [50, 5]}, 400, "steps"),
        ({"kind": "dance"}, 400, "kind"),
        ({"tier": "slow"}, 400, "tier"),
        ({"kind": "ab", "steps": None, "weights": {"primary": 50, "candidate": 60}}, 400, "sum to 110"),
        ({"surprise": 1}, 400, "surprise"),
    ],
)
def test_a_rollout_that_cannot_be_is_refused_by_its_field(
    admin: Admin, changes: dict[str, Any], status: int, named: str
) -> None:
    refused = admin.client().post("/admin/models/digits/rollouts", json=CANARY | changes)
    assert refused.status_code == status, refused.text
    assert named in refused.json()["error"]
    assert admin.audited() == []


def test_a_second_rollout_of_the_same_requests_is_refused(admin: Admin) -> None:
    first = start(admin)
    second = admin.client().post("/admin/models/digits/rollouts", json=CANARY | {"tier": "balanced"})
    assert second.status_code == 409
    assert first["id"] in second.json()["error"]


@pytest.mark.parametrize("body", [b"", b"{", b"[]", b'"canary"'])
def test_a_body_that_is_no_object_is_refused(admin: Admin, body: bytes) -> None:
    sent = admin.client(**{"content-type": "application/json"})
    assert sent.post("/admin/models/digits/rollouts", content=body).status_code == 400


def test_bodies_of_other_types_and_sizes_are_refused(admin: Admin) -> None:
    plain = admin.client(**{"content-type": "text/plain"})
    assert plain.post("/admin/keys", content=b'{"name": "x", "role": "admin"}').status_code == 415
    large = admin.client(**{"content-type": "application/json"})
    assert large.post("/admin/keys", content=b" " * 2_000_000).status_code == 413


def test_building_needs_a_builder_and_then_waits_for_it(admin: Admin) -> None:
    client = admin.client()
    body = {"name": "half", "steps": [{"pass": "prune-structured", "settings": {"ratio": 0.5}}]}
    nobody = client.post("/admin/models/digits/builds", json=body)
    assert nobody.status_code == 501
    assert "mipgate builder" in nobody.json()["error"]
    admin.desk.leases.take("builder/1", "1", 60)
    queued = client.post("/admin/models/digits/builds", json=body)
    assert queued.status_code == 202
    job = queued.json()
    assert (job["kind"], job["state"]) == ("build", "queued")
    assert admin.desk.jobs.find(job["id"]).arguments == body
    assert client.post("/admin/models/digits/builds", json={"recipe": "fp16"}).status_code == 202
    search = {"min_accuracy": 0.98, "objective": "size", "trials": 3}
    assert client.post("/admin/models/digits/searches", json=search).json()["kind"] == "search"
    assert client.post("/admin/models/digits/profile").json()["kind"] == "profile"
    assert len(client.get("/admin/jobs?model=digits").json()) == 4
    assert client.post(f"/admin/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
    assert client.post(f"/admin/jobs/{job['id']}/cancel").status_code == 409
    assert client.get("/admin/jobs/none").status_code == 404


@pytest.mark.parametrize(
    "body",
    [
        {},
        {"recipe": "a", "name": "b", "steps": [{"pass": "x"}]},
        {"name": "b"},
        {"steps": [{"pass": "x"}]},
        {"name": "b", "steps": []},
        {"name": "b", "steps": [{"pass": "x", "surprise": 1}]},
        {"name": "../b", "steps": [{"pass": "x"}]},
        {"recipe": 7},
    ],
)
def test_a_build_that_cannot_be_is_refused(admin: Admin, body: dict[str, Any]) -> None:
    admin.desk.leases.take("builder/1", "1", 60)
    assert admin.client().post("/admin/models/digits/builds", json=body).status_code == 400


def test_keys_are_made_listed_and_revoked(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        made = admin.client().post("/admin/keys", json={"name": "root", "role": "admin"}).json()
        client = admin.client(made["key"])
        other = client.post("/admin/keys", json={"name": "ci", "role": "infer", "rate_per_s": 5}).json()
        listed = client.get("/admin/keys")
        assert {key["name"]: key["rate_per_s"] for key in listed.json()} == {"root": None, "ci": 5}
        assert admin.client().get("/admin/keys").status_code == 401  # from now on
        assert client.delete(f"/admin/keys/{other['id']}").status_code == 200
        assert client.delete(f"/admin/keys/{other['id']}").status_code == 404
        assert admin.client(other["key"]).get("/admin/models").status_code == 401
        audit = client.get("/admin/audit")
    for key in (made["key"], other["key"]):
        secret = key.split("_", 2)[2]
        assert secret not in listed.text + audit.text + caplog.text
        assert secret not in _whole_database(admin)
    assert [line["what"] for line in audit.json()] == ["revoke key", "create key", "create key"]
    assert audit.json()[0]["who"] == f"key root ({made['id']})"
    assert audit.json()[0]["before"]["name"] == "ci"


def _whole_database(admin: Admin) -> str:
    with admin.desk.database.reading() as connection:
        return repr([connection.execute(table.select()).all() for table in metadata.sorted_tables])


@pytest.mark.parametrize(
    "body",
    [
        {"name": "x"},
        {"name": "x", "role": "root"},
        {"name": "", "role": "admin"},
        {"name": "a\nb", "role": "admin"},
        {"name": "x", "role": "admin", "rate_per_s": 0},
        {"name": "x", "role": "admin", "rate_per_s": "many"},
        {"name": "x", "role": "admin", "more": 1},
    ],
)
def test_a_key_that_cannot_be_is_refused(admin: Admin, body: dict[str, Any]) -> None:
    refused = admin.client().post("/admin/keys", json=body)
    assert refused.status_code == 400
    assert '"' in refused.json()["error"]


def test_a_key_beyond_its_rate_is_told_when_to_come_back(admin: Admin) -> None:
    client = admin.client(admin.key(Role.INFER, rate_per_s=2))
    statuses = [client.get("/admin/session").status_code for _ in range(3)]
    assert statuses == [200, 200, 429]
    assert client.get("/admin/session").headers["retry-after"] == "1"


def test_feedback_is_taken_once(admin: Admin) -> None:
    now = admin.desk.now()
    answers = [Served(name, "digits", "fp32@0", "balanced", "", "", [3], now) for name in ("a", "b", "c")]
    admin.desk.evidence.write("w", Batch(1, served=answers))
    client = admin.client()
    assert client.post("/v1/feedback", json={"request_id": "a", "label": 3}).json() == {"accepted": 1}
    several = [{"request_id": "b", "label": 3}, {"request_id": "c", "label": [4]}]
    assert client.post("/v1/feedback", json=several).status_code == 202
    again = client.post("/v1/feedback", json={"request_id": "a", "label": 3})
    assert again.status_code == 409
    unknown = client.post("/v1/feedback", json={"request_id": "z", "label": 3})
    assert unknown.status_code == 404
    assert '"z"' in unknown.json()["error"]


@pytest.mark.parametrize(
    "body",
    [
        {},
        [],
        {"request_id": "a"},
        {"request_id": 7, "label": 1},
        {"request_id": "", "label": 1},
        {"request_id": "a" * 257, "label": 1},
        {"request_id": "a\0", "label": 1},
        [{"request_id": "a", "label": 1}, {"request_id": "a", "label": 2}],
        [{"request_id": "a", "label": 1, "more": 1}],
        "a",
    ],
)
def test_feedback_that_cannot_be_is_refused(admin: Admin, body: object) -> None:
    refused = admin.client().post("/v1/feedback", json=body)
    assert refused.status_code == 400
    assert refused.json()["error"]


def test_a_job_that_ended_is_told_at_once(admin: Admin) -> None:
    admin.desk.leases.take("builder/1", "1", 60)
    client = admin.client()
    job = client.post("/admin/models/digits/profile").json()
    client.post(f"/admin/jobs/{job['id']}/cancel")
    told = client.get(f"/admin/jobs/{job['id']}/events")
    assert told.headers["content-type"].startswith("text/event-stream")
    assert "event: done" in told.text
    assert State.CANCELLED.value in told.text
