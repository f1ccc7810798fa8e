"""The console's session: a cookie that no other site can use."""

import pytest
from starlette.testclient import TestClient

from service.access.keys import bootstrap_key
from service.access.principal import Role
from tests.service.admin.conftest import LOCAL, REMOTE, Admin, Make

OURS = {"origin": "http://localhost:3000", "x-mipgate-console": "1", "sec-fetch-site": "same-origin"}
SECRET = "a-secret-of-the-operator"


def signed_in(admin: Admin, role: Role = Role.OPERATE) -> TestClient:
    client = admin.client(None, REMOTE, **OURS)
    given = client.post("/admin/session", json={"key": admin.key(role)})
    assert given.status_code == 201, given.text
    return client


def test_a_key_becomes_a_cookie_that_scripts_cannot_read(admin: Admin) -> None:
    client = admin.client(None, REMOTE, **OURS)
    key = admin.key(Role.OPERATE)
    given = client.post("/admin/session", json={"key": key})
    cookie = given.headers["set-cookie"]
    assert {"HttpOnly", "SameSite=strict", "Path=/"} <= {part.strip() for part in cookie.split(";")}
    assert key not in cookie + given.text
    assert client.get("/admin/session").json()["role"] == "operate"
    assert client.get("/admin/models").status_code == 200


def test_over_tls_the_cookie_stays_there(admin: Admin) -> None:
    client = TestClient(admin.app, base_url="https://gate.example", client=LOCAL)
    headers = OURS | {"origin": "https://gate.example"}
    given = client.post("/admin/session", json={"key": admin.key(Role.ADMIN)}, headers=headers)
    assert "Secure" in given.headers["set-cookie"]


def test_a_session_has_its_key_s_role_and_no_more(admin: Admin) -> None:
    client = signed_in(admin, Role.INFER)
    assert client.post("/admin/models/digits/variants/fp32/retire").status_code == 403
    assert client.get("/admin/keys").status_code == 403


def test_pages_of_other_sites_can_do_nothing_with_it(admin: Admin) -> None:
    client = signed_in(admin)
    target = "/admin/models/digits/variants/none/retire"
    assert client.post(target).status_code == 404
    for stolen in (
        {"origin": "http://evil.example"},
        {"origin": "null"},
        {"sec-fetch-site": "cross-site"},
        {"sec-fetch-site": "same-site"},
    ):
        assert client.post(target, headers=stolen).status_code == 403
        assert client.get("/admin/models", headers=stolen).status_code == 403
    del client.headers["x-mipgate-console"]  # a form cannot send it
    assert client.post(target).status_code == 403
    assert client.get("/admin/models").status_code == 200


def test_signing_in_is_for_our_own_page_and_for_known_keys(admin: Admin) -> None:
    key = admin.key(Role.ADMIN)
    assert admin.client(None, REMOTE).post("/admin/session", json={"key": key}).status_code == 403
    ours = admin.client(None, REMOTE, **OURS)
    elsewhere = OURS | {"origin": "http://evil.example"}
    assert ours.post("/admin/session", json={"key": key}, headers=elsewhere).status_code == 403
    wrong = ours.post("/admin/session", json={"key": key + "x"})
    assert wrong.status_code == 401
    assert key not in wrong.text
    unfit = ours.post("/admin/session", json={"key": [key]})
    assert unfit.status_code == 400
    assert key not in unfit.text


def test_signing_out_ends_it(admin: Admin) -> None:
    client = signed_in(admin)
    cookie = client.cookies["mipgate_session"]
    assert client.delete("/admin/session").status_code == 200
    client.cookies.set("mipgate_session", cookie)
    ended = client.get("/admin/models")
    assert ended.status_code == 401
    assert "mipgate_session=" in ended.headers["set-cookie"]  # and the browser forgets it


def test_signing_out_with_a_key_leaves_the_key(admin: Admin) -> None:
    key = admin.key(Role.OPERATE)
    client = admin.client(key)
    client.cookies.set("mipgate_session", "whatever")
    both = client.delete("/admin/session")
    assert both.status_code == 400
    assert "Send the session alone" in both.text
    assert admin.client(key).get("/admin/models").status_code == 200


def test_a_session_ends_with_its_key(admin: Admin) -> None:
    root = admin.client(admin.key(Role.ADMIN))
    client = signed_in(admin)
    (key,) = [key for key in root.get("/admin/keys").json() if key["name"] == "a-operate"]
    root.delete(f"/admin/keys/{key['id']}")
    assert client.get("/admin/models").status_code == 401


def test_a_session_has_its_key_s_rate(admin: Admin) -> None:
    key = admin.key(Role.INFER, rate_per_s=3)
    client = admin.client(None, REMOTE, **OURS)
    assert client.post("/admin/session", json={"key": key}).status_code == 201
    assert [client.get("/admin/session").status_code for _ in range(4)] == [200, 200, 429, 429]
    assert admin.client(key, REMOTE).get("/admin/session").status_code == 429


def test_of_many_sessions_the_oldest_ends(admin: Admin) -> None:
    key = admin.key(Role.OPERATE)
    clients = [admin.client(None, REMOTE, **OURS) for _ in range(21)]
    for client in clients:
        assert client.post("/admin/session", json={"key": key}).status_code == 201
    assert [client.get("/admin/session").status_code for client in clients] == [401] + [200] * 20


@pytest.mark.parametrize(("secret", "status"), [(SECRET, 200), ("another-secret-of-the-operator", 401)])
def test_a_session_ends_when_the_configured_key_is_another(make: Make, secret: str, status: int) -> None:
    first, now = make(bootstrap=bootstrap_key(SECRET, 0.0)), make(bootstrap=bootstrap_key(secret, 0.0))
    signed = first.client(None, REMOTE, **OURS)
    assert signed.post("/admin/session", json={"key": SECRET}).status_code == 201
    now.desk.follower.start()
    after = now.client(None, REMOTE, **OURS)
    after.cookies.set("mipgate_session", signed.cookies["mipgate_session"])
    assert after.get("/admin/session").status_code == status


def test_sessions_are_listed_under_their_key_and_audited(admin: Admin) -> None:
    root = admin.client(admin.key(Role.ADMIN))
    signed_in(admin)
    sessions = [key for key in root.get("/admin/keys").json() if key["session_of"]]
    assert len(sessions) == 1
    assert sessions[0]["expires"] - sessions[0]["created"] == 3600
    assert any("sign in" in line for line in admin.audited())
