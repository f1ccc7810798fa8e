"""Who may do what: every role, from everywhere, with and without keys."""

import logging
from pathlib import Path

import pytest

from service.access.access import Access, Rules, read_rules
from service.access.keys import ApiKey, bootstrap_key, new_key
from service.access.principal import Role
from service.access.tokens import Provider
from service.config import Config, ConfigError
from service.errors import (
    BadRequestError,
    ForbiddenError,
    RateLimitError,
    ServiceError,
    UnauthorizedError,
)

LOCAL = ("127.0.0.1", 40000)
REMOTE = ("192.0.2.7", 40000)
HOST = (b"host", b"localhost:3000")
NOW = 1_000.0

Header = tuple[bytes, bytes]


def rules(**changes: object) -> Rules:
    given: dict[str, object] = {
        "bootstrap": None,
        "inference": "auto",
        "is_container": False,
        "provider": None,
    }
    return Rules(**(given | changes))  # type: ignore[arg-type]


def access(tmp_path: Path, *keys: ApiKey, **changes: object) -> Access:
    made = Access(rules(**changes), tmp_path, lambda: NOW)
    made.follow(keys)
    return made


def bearer(shown: str) -> Header:
    return b"authorization", f"Bearer {shown}".encode()


def outcome(made: Access, headers: list[Header], peer: tuple[str, int] | None, role: Role) -> int:
    try:
        made.check(headers, peer, role)
    except ServiceError as error:
        return error.status
    return 200


def said(made: Access, sent: str, role: Role) -> str:
    try:
        return repr(made.check([bearer(sent)], REMOTE, role))
    except ServiceError as error:
        return str(error)


@pytest.mark.parametrize("has", Role)
@pytest.mark.parametrize("needed", Role)
@pytest.mark.parametrize("peer", [LOCAL, REMOTE, None])
@pytest.mark.parametrize("container", [False, True])
def test_a_key_is_worth_its_role_from_everywhere(
    tmp_path: Path, has: Role, needed: Role, peer: tuple[str, int] | None, container: bool
) -> None:
    shown, key = new_key("k", has, NOW)
    made = access(tmp_path, key, is_container=container)
    forwarded = (b"x-forwarded-for", b"203.0.113.9")
    expected = 200 if list(Role).index(has) >= list(Role).index(needed) else 403
    assert outcome(made, [HOST, bearer(shown)], peer, needed) == expected
    assert outcome(made, [HOST, bearer(shown), forwarded], peer, needed) == expected
    assert outcome(made, [HOST], peer, needed) == 401
    assert outcome(made, [HOST, bearer("mipgate_0_wrong")], peer, needed) == 401


@pytest.mark.parametrize(
    ("peer", "headers", "container", "status"),
    [
        (LOCAL, [HOST], False, 200),
        (("::1", 1), [(b"host", b"[::1]:3000")], False, 200),
        (("127.8.8.8", 1), [(b"host", b"127.0.0.1")], False, 200),
        (("::ffff:127.0.0.1", 1), [HOST], False, 200),
        (LOCAL, [HOST], True, 403),
        (REMOTE, [HOST], False, 403),
        (None, [HOST], False, 403),
        (("testclient", 1), [HOST], False, 403),
        (LOCAL, [HOST, (b"x-forwarded-for", b"127.0.0.1")], False, 403),
        (LOCAL, [HOST, (b"x-forwarded-host", b"localhost")], False, 403),
        (LOCAL, [HOST, (b"forwarded", b"for=127.0.0.1")], False, 403),
        (LOCAL, [HOST, (b"x-real-ip", b"127.0.0.1")], False, 403),
        (LOCAL, [HOST, (b"via", b"1.1 proxy")], False, 403),
        (LOCAL, [(b"host", b"evil.example")], False, 403),
        (LOCAL, [(b"host", b"localhost.evil.example:3000")], False, 403),
        (LOCAL, [(b"host", b"127.0.0.1.nip.io")], False, 403),
        (LOCAL, [], False, 403),
        (LOCAL, [HOST, HOST], False, 400),
        (LOCAL, [HOST, (b"origin", b"http://localhost:3000")], False, 200),
        (LOCAL, [HOST, (b"origin", b"http://localhost:9999")], False, 403),
        (LOCAL, [HOST, (b"origin", b"http://evil.example")], False, 403),
        (LOCAL, [HOST, (b"origin", b"null")], False, 403),
        (LOCAL, [HOST, (b"sec-fetch-site", b"cross-site")], False, 403),
        (LOCAL, [HOST, (b"sec-fetch-site", b"same-site")], False, 403),
        (LOCAL, [HOST, (b"sec-fetch-site", b"same-origin")], False, 200),
        (LOCAL, [HOST, (b"sec-fetch-site", b"none")], False, 200),
    ],
)
def test_without_any_key_operations_are_open_to_this_machine_alone(
    tmp_path: Path, peer: tuple[str, int] | None, headers: list[Header], container: bool, status: int
) -> None:
    made = access(tmp_path, is_container=container)
    assert outcome(made, headers, peer, Role.OPERATE) == status
    assert outcome(made, headers, peer, Role.ADMIN) == status
    assert outcome(made, headers, peer, Role.INFER) == 200


@pytest.mark.parametrize(
    ("inference", "with_key", "status"),
    [
        ("auto", False, 200),
        ("auto", True, 401),
        ("always", False, 401),
        ("always", True, 401),
        ("never", False, 200),
        ("never", True, 200),
    ],
)
def test_inference_is_closed_as_configured(
    tmp_path: Path, inference: str, with_key: bool, status: int
) -> None:
    keys = [new_key("k", Role.ADMIN, NOW)[1]] if with_key else []
    assert outcome(access(tmp_path, *keys, inference=inference), [HOST], REMOTE, Role.INFER) == status


def test_once_a_key_is_set_loopback_needs_one_too(tmp_path: Path) -> None:
    made = access(tmp_path, new_key("k", Role.INFER, NOW)[1])
    assert outcome(made, [HOST], LOCAL, Role.OPERATE) == 401


def test_a_revoked_key_is_closed_as_soon_as_it_is_heard_of(tmp_path: Path) -> None:
    shown, key = new_key("k", Role.ADMIN, NOW)
    _, other = new_key("other", Role.ADMIN, NOW)
    made = access(tmp_path, key, other)
    assert outcome(made, [bearer(shown)], REMOTE, Role.ADMIN) == 200
    made.follow([other])
    assert outcome(made, [bearer(shown)], REMOTE, Role.ADMIN) == 401


def test_who_was_found_before_is_found_no_longer_than_the_key_lasts(tmp_path: Path) -> None:
    now = [NOW]
    shown, key = new_key("k", Role.INFER, NOW, expires=NOW + 10)
    made = Access(rules(bootstrap=bootstrap_key("s" * 32, NOW)), tmp_path, lambda: now[0])
    made.follow([key])
    for sent in (shown, "s" * 32):
        assert {outcome(made, [bearer(sent)], REMOTE, Role.INFER) for _ in range(3)} == {200}
    assert outcome(made, [bearer(shown[:-1] + "?")], REMOTE, Role.INFER) == 401
    now[0] += 10
    assert outcome(made, [bearer(shown)], REMOTE, Role.INFER) == 401
    assert outcome(made, [bearer("s" * 32)], REMOTE, Role.INFER) == 200


def test_a_key_is_remembered_once_however_it_is_written(tmp_path: Path) -> None:
    shown, key = new_key("k", Role.INFER, NOW)
    made = access(tmp_path, key)
    for spaces in range(1, 50):
        sent = (b"authorization", b"Bearer" + b" " * spaces + shown.encode())
        assert outcome(made, [sent], REMOTE, Role.INFER) == 200
    assert len(made._found) == 1
    made.follow([])
    assert not made._found


def test_who_was_found_before_still_draws_on_the_key_s_rate(tmp_path: Path) -> None:
    shown, key = new_key("k", Role.INFER, NOW, rate_per_s=2)
    made = access(tmp_path, key)
    assert [outcome(made, [bearer(shown)], REMOTE, Role.INFER) for _ in range(3)] == [200, 200, 429]


def test_two_authorization_headers_are_refused_even_if_both_are_right(tmp_path: Path) -> None:
    shown, key = new_key("k", Role.ADMIN, NOW)
    made = access(tmp_path, key)
    with pytest.raises(BadRequestError, match="2 authorization headers"):
        made.check([bearer(shown), bearer(shown)], REMOTE, Role.INFER)


@pytest.mark.parametrize("sent", ["", "Bearer", "Bearer ", "Basic abc", "bearer\tx", "Token x"])
def test_other_schemes_are_refused_with_a_challenge(tmp_path: Path, sent: str) -> None:
    made = access(tmp_path, new_key("k", Role.ADMIN, NOW)[1])
    with pytest.raises(UnauthorizedError) as raised:
        made.check([(b"authorization", sent.encode())], REMOTE, Role.INFER)
    assert dict(raised.value.headers())[b"www-authenticate"].startswith(b"Bearer")


def test_the_scheme_is_read_in_any_case(tmp_path: Path) -> None:
    shown, key = new_key("k", Role.INFER, NOW)
    principal = access(tmp_path, key).check(
        [(b"authorization", f"bEARER {shown}".encode())], None, Role.INFER
    )
    assert principal.who == f"key k ({key.id})"


def test_a_key_has_its_rate_and_others_do_not_feel_it(tmp_path: Path) -> None:
    shown, key = new_key("slow", Role.INFER, NOW, rate_per_s=2)
    free, other = new_key("free", Role.INFER, NOW)
    made = access(tmp_path, key, other)
    assert [outcome(made, [bearer(shown)], REMOTE, Role.INFER) for _ in range(3)] == [200, 200, 429]
    with pytest.raises(RateLimitError) as raised:
        made.check([bearer(shown)], REMOTE, Role.INFER)
    assert dict(raised.value.headers()) == {b"retry-after": b"1"}
    assert outcome(made, [bearer(free)], REMOTE, Role.INFER) == 200


def test_sessions_share_the_rate_of_their_key(tmp_path: Path) -> None:
    shown, key = new_key("slow", Role.INFER, NOW, rate_per_s=3)
    pages = [new_key("page", Role.INFER, NOW, expires=NOW + 60, parent=key.id) for _ in range(2)]
    made = access(tmp_path, key, *(session for _, session in pages))
    senders = [shown, pages[0][0], pages[1][0], pages[0][0], pages[1][0], shown]
    answers = [outcome(made, [bearer(sender)], REMOTE, Role.INFER) for sender in senders]
    assert answers == [200, 200, 200, 429, 429, 429]


def test_what_does_not_count_uses_up_no_rate(tmp_path: Path) -> None:
    shown, key = new_key("slow", Role.ADMIN, NOW, rate_per_s=1)
    made = access(tmp_path, key)
    for role in (*Role, *Role):
        assert made.check([bearer(shown)], REMOTE, role, counts=False)
    assert [outcome(made, [bearer(shown)], REMOTE, Role.INFER) for _ in range(2)] == [200, 429]
    assert made.check([bearer(shown)], REMOTE, Role.INFER, counts=False)  # nor is it refused beyond it


def test_what_the_first_key_closed_stays_closed_without_any(tmp_path: Path) -> None:
    made = access(tmp_path)
    assert outcome(made, [HOST], REMOTE, Role.INFER) == 200
    made.follow([], had_keys=True)
    for role in Role:
        assert outcome(made, [HOST], LOCAL, role) == 401
    never = access(tmp_path, inference="never")
    never.follow([], had_keys=True)
    assert outcome(never, [HOST], REMOTE, Role.INFER) == 200


def test_a_provider_is_marked_by_whom_and_what_it_vouches_for() -> None:
    given = {"issuer": "i", "audience": "a", "jwks": "j", "role_claim": "role", "roles": {"ml": Role.INFER}}
    changes = [{}, {"issuer": "o"}, {"audience": "b"}, {"role_claim": "r"}, {"roles": {"ml": Role.ADMIN}}]
    marks = [Provider(**(given | change)).mark for change in changes]  # type: ignore[arg-type]
    assert len(set(marks)) == len(changes)
    assert Provider(**(given | {"jwks": "elsewhere"})).mark == marks[0]  # type: ignore[arg-type]


def test_a_rate_follows_its_key(tmp_path: Path) -> None:
    shown, key = new_key("slow", Role.INFER, NOW, rate_per_s=1)
    made = access(tmp_path, key)
    made.follow([])
    made.follow([key])
    assert outcome(made, [bearer(shown)], REMOTE, Role.INFER) == 200


def test_guessing_gets_nowhere_and_fills_neither_memory_nor_log(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    shown, key = new_key("k", Role.ADMIN, NOW)
    made = access(tmp_path, key)
    before = len(vars(made))
    with caplog.at_level(logging.DEBUG):
        for guess in range(2000):
            assert outcome(made, [bearer(f"mipgate_{key.id}_{guess}")], REMOTE, Role.INFER) == 401
    assert len(caplog.records) <= 2
    assert len(vars(made)) == before
    assert len(made._principals) == 0
    assert outcome(made, [bearer(shown)], REMOTE, Role.ADMIN) == 200


def test_no_key_reaches_the_log_or_an_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    shown, key = new_key("k", Role.INFER, NOW)
    made = access(tmp_path, key, bootstrap=bootstrap_key("the-configured-secret", NOW))
    with caplog.at_level(logging.DEBUG):
        for sent in (shown, shown[:-2] + "xx", "the-configured-secret-not"):
            for role in Role:
                assert sent not in said(made, sent, role)
    assert key.id not in caplog.text
    assert "the-configured" not in caplog.text


def test_a_signed_in_page_must_be_our_own(tmp_path: Path) -> None:
    _, parent = new_key("ops", Role.OPERATE, NOW)
    shown, session = new_key("ops", Role.OPERATE, NOW, expires=NOW + 60, parent=parent.id)
    made = access(tmp_path, parent, session)
    ours = [(b"host", b"gate.example"), (b"origin", b"https://gate.example"), (b"x-mipgate-console", b"1")]
    assert made.check_session(ours, shown, Role.OPERATE, True).role is Role.OPERATE
    assert made.check_session([(b"host", b"gate.example")], shown, Role.OPERATE, False)
    for headers in (
        ours[:2],
        [ours[0], (b"origin", b"https://evil.example"), ours[2]],
        [*ours, (b"sec-fetch-site", b"cross-site")],
    ):
        with pytest.raises(ForbiddenError):
            made.check_session(headers, shown, Role.OPERATE, True)
    with pytest.raises(ForbiddenError, match="role admin"):
        made.check_session(ours, shown, Role.ADMIN, True)
    with pytest.raises(UnauthorizedError):
        made.check_session(ours, shown + "x", Role.INFER, False)


def test_the_configured_key_is_a_value_or_a_file(tmp_path: Path) -> None:
    file = tmp_path / "key"
    file.write_text("a-secret-of-the-operator\n")
    for given in ("a-secret-of-the-operator", str(file)):
        read = read_rules(Config.model_validate({"admin_key": given}), NOW)
        made = Access(read, tmp_path, lambda: NOW)
        assert outcome(made, [bearer("a-secret-of-the-operator")], REMOTE, Role.ADMIN) == 200


def test_settings_that_cannot_be_are_refused_without_showing_the_key() -> None:
    with pytest.raises(ConfigError, match="16 characters") as raised:
        read_rules(Config.model_validate({"admin_key": "short-one"}), NOW)
    assert "short-one" not in str(raised.value)
    with pytest.raises(ConfigError, match="MIPGATE_JWT_JWKS"):
        read_rules(Config.model_validate({"jwt_issuer": "i", "jwt_audience": "a"}), NOW)
    settings = {"jwt_issuer": "i", "jwt_audience": "a", "jwt_jwks": "http://idp/keys"}
    with pytest.raises(ConfigError, match="TLS"):
        read_rules(Config.model_validate(settings), NOW)
    assert "secret" not in repr(Config.model_validate({"admin_key": "a-secret-of-the-operator"}))


@pytest.mark.parametrize("container", ["yes", "no"])
def test_the_setting_beats_what_is_found(container: str) -> None:
    assert read_rules(Config.model_validate({"container": container}), NOW).is_container is (
        container == "yes"
    )


def test_kubernetes_is_a_container(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KUBERNETES_SERVICE_HOST", "10.0.0.1")
    assert read_rules(Config(), NOW).is_container
