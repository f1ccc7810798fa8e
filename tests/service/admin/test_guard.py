"""Who gets through to which route."""

import asyncio
import re

import pytest
from starlette.types import Message

from service.access.principal import Role
from service.admin.app import routes
from service.admin.events import Changes
from tests.service.admin.conftest import LOCAL, REMOTE, Admin, Make

ROUTES = [(method, path, role) for method, path, role, _ in routes(Changes(dict)) if role is not None]
IDS = [f"{method} {path}" for method, path, _ in ROUTES]
# Open for as long as somebody listens: whether they get through is asked of their neighbours.
STREAMS = {"/admin/events"}
HERE = {"model": "digits", "variant": "none", "rollout": "none", "job": "none", "key": "none"}


def _path(path: str) -> str:
    return re.sub(r"\{(\w+)\}", lambda match: HERE[match[1]], path)


def _asked(
    admin: Admin, method: str, path: str, peer: tuple[str, int], key: str | None, **headers: str
) -> int:
    return admin.client(key, peer, **headers).request(method, _path(path)).status_code


@pytest.mark.parametrize("has", Role)
def test_each_route_takes_its_role_and_those_above_it(make: Make, has: Role) -> None:
    admin = make(is_container=True)
    key = admin.key(has)
    for method, path, needs in ROUTES:
        if path in STREAMS:
            continue
        for peer in (LOCAL, REMOTE):
            status = _asked(admin, method, path, peer, key)
            assert (status not in (401, 403)) is has.covers(needs), (method, path, status)
            assert status < 500 or status == 501, (method, path, status)  # 501: nobody builds here


def test_with_a_key_set_nobody_gets_in_without_one(make: Make) -> None:
    admin = make()
    admin.key(Role.INFER)
    for method, path, _ in ROUTES:
        assert _asked(admin, method, path, LOCAL, None) == 401, (method, path)
        assert _asked(admin, method, path, REMOTE, "mipgate_0123_wrong") == 401, (method, path)


def test_without_any_key_this_machine_gets_in_and_nobody_else(admin: Admin) -> None:
    for method, path, _ in ROUTES:
        if not path.startswith("/admin") or path in STREAMS:
            continue
        assert _asked(admin, method, path, LOCAL, None) not in (401, 403, 500), (method, path)
        assert _asked(admin, method, path, REMOTE, None) == 403, (method, path)
        assert _asked(admin, method, path, LOCAL, None, **{"x-forwarded-for": "127.0.0.1"}) == 403
        assert _asked(admin, method, path, LOCAL, None, host="evil.example") == 403
        assert _asked(admin, method, path, LOCAL, None, origin="http://evil.example") == 403


def test_in_a_container_not_even_this_machine_gets_in_without_a_key(make: Make) -> None:
    admin = make(is_container=True)
    for method, path, _ in ROUTES:
        if path.startswith("/admin"):
            assert _asked(admin, method, path, LOCAL, None) == 403, (method, path)


def test_feedback_is_as_open_as_inference(make: Make) -> None:
    body = {"request_id": "unknown", "label": 3}
    assert make().client(peer=REMOTE).post("/v1/feedback", json=body).status_code == 404
    assert make(inference="always").client(peer=REMOTE).post("/v1/feedback", json=body).status_code == 401


def test_a_new_key_is_known_at_once_to_a_worker_that_has_not_heard_of_it(admin: Admin, make: Make) -> None:
    other = make()  # the same database
    key = other.key(Role.ADMIN)
    admin.desk.follower._asked = float("-inf")
    assert admin.client(key, REMOTE).get("/admin/keys").status_code == 200


def test_a_revoked_key_is_closed_for_another_worker_once_it_looks(admin: Admin, make: Make) -> None:
    key = admin.key(Role.ADMIN)
    admin.key(Role.ADMIN)
    other = make()
    assert other.client(key, REMOTE).get("/admin/audit").status_code == 200
    admin.client(key).delete(f"/admin/keys/{key.split('_')[1]}")
    assert admin.client(key).get("/admin/audit").status_code == 401
    other.desk.follower.start()
    assert other.client(key, REMOTE).get("/admin/audit").status_code == 401


def test_unknown_paths_and_methods_say_so(admin: Admin) -> None:
    client = admin.client()
    assert client.get("/admin/nothing").status_code == 404
    wrong = client.put("/admin/models")
    assert wrong.status_code == 405
    assert "PUT" in wrong.json()["error"]


@pytest.mark.parametrize(
    ("path", "status"),
    [
        *((f"/admin/models/{name}", 404) for name in ("m" * 201, "m" * 64, "é" * 120, "..", "digits.fp32")),
        ("/admin/models/%00", 400),
        ("/admin/rollouts/a%00", 400),
        ("/admin/jobs/%00", 400),
        ("/admin/jobs?model=a%00b", 400),
        ("/admin/audit?limit=" + "9" * 5000, 400),
        ("/admin/audit?limit=1001", 400),
        ("/admin/audit?limit=%D9%A3", 400),
        ("/admin/audit?limit=0", 400),
        ("/admin/audit?limit=1000", 200),
    ],
)
def test_an_address_that_cannot_be_is_the_caller_s_mistake(admin: Admin, path: str, status: int) -> None:
    assert admin.client().get(path).status_code == status


def test_whoever_leaves_within_a_body_is_no_failure(admin: Admin, caplog: pytest.LogCaptureFixture) -> None:
    async def run() -> None:
        messages: list[Message] = [{"type": "http.request", "body": b"{", "more_body": True}]

        async def receive() -> Message:
            return messages.pop() if messages else {"type": "http.disconnect"}

        async def send(message: Message) -> None:
            assert message.get("status") != 500

        scope = {"type": "http", "method": "POST", "path": "/admin/keys", "query_string": b"",
                 "headers": [(b"host", b"localhost")], "client": LOCAL, "scheme": "http",
                 "server": LOCAL, "root_path": ""}  # fmt: skip
        await admin.app(scope, receive, send)

    asyncio.run(run())
    assert "failed" not in caplog.text


def test_answers_are_kept_by_nobody(admin: Admin) -> None:
    headers = admin.client().get("/admin/models").headers
    assert headers["cache-control"] == "no-store"
    assert headers["x-content-type-options"] == "nosniff"


def test_a_bug_is_told_without_its_internals(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*_: object) -> None:
        raise RuntimeError("secret internals")

    monkeypatch.setattr(type(admin.desk.keys), "audited", broken)
    failed = admin.client().get("/admin/audit")
    assert failed.status_code == 500
    assert "secret" not in failed.text
