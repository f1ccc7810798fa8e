"""Keys: what is shown, what is kept, what opens."""

import hmac
from unittest.mock import patch

import pytest

from service.access.keys import ApiKey, KeyRing, bootstrap_key, new_key, token_parent
from service.access.principal import Role

NOW = 1_000.0


def ring(*keys: ApiKey, bootstrap: ApiKey | None = None, now: float = NOW, provider: str = "") -> KeyRing:
    return KeyRing(keys, bootstrap, now, provider)


def test_a_key_opens_and_what_is_kept_of_it_does_not() -> None:
    shown, key = new_key("ci", Role.OPERATE, NOW)
    assert ring(key).find(shown.encode(), NOW) == key
    assert shown not in repr(key)
    assert ring(key).find(f"mipgate_{key.id}_{key.digest.hex()}".encode(), NOW) is None


def test_keys_are_long_and_never_the_same() -> None:
    made = {new_key("same", Role.INFER, NOW)[0] for _ in range(50)}
    assert len(made) == 50
    assert all(len(shown.split("_", 2)[2]) >= 43 for shown in made)


@pytest.mark.parametrize(
    "damage", [lambda s: s[:-1], lambda s: s + "x", lambda s: s.upper(), lambda s: s[8:]]
)
def test_nearly_a_key_is_no_key(damage: object) -> None:
    shown, key = new_key("ci", Role.OPERATE, NOW)
    assert ring(key).find(damage(shown).encode(), NOW) is None  # type: ignore[operator]


@pytest.mark.parametrize("sent", [b"", b"_", b"__", b"mipgate__", b"mipgate_\xff\xfe_x", b"\x00" * 70_000])
def test_rubbish_is_no_key(sent: bytes) -> None:
    assert ring().find(sent, NOW) is None
    assert ring(bootstrap=bootstrap_key("s" * 32, NOW)).find(sent, NOW) is None


def test_digests_are_compared_in_constant_time_whether_or_not_the_id_is_known() -> None:
    shown, key = new_key("ci", Role.INFER, NOW)
    for sent in (shown, f"mipgate_{key.id}_wrong", "mipgate_000000000000_wrong", "wrong"):
        with patch("service.access.keys.hmac.compare_digest", wraps=hmac.compare_digest) as compare:
            ring(key).find(sent.encode(), NOW)
        compare.assert_called_once()


def test_an_expired_or_revoked_key_opens_nothing() -> None:
    shown, key = new_key("ci", Role.INFER, NOW, expires=NOW + 10)
    known = ring(key)
    assert known.find(shown.encode(), NOW + 9) == key
    assert known.find(shown.encode(), NOW + 10) is None  # though the ring was made before
    assert ring(key, now=NOW + 10).find(shown.encode(), NOW + 9) is None


def test_a_session_ends_with_the_key_that_it_came_from() -> None:
    _, parent = new_key("ops", Role.ADMIN, NOW)
    shown, session = new_key("ops", Role.ADMIN, NOW, expires=NOW + 10, parent=parent.id)
    assert ring(parent, session).find(shown.encode(), NOW) == session
    assert ring(session).find(shown.encode(), NOW) is None


def test_sessions_of_the_configured_key_end_when_it_is_replaced() -> None:
    first, second = bootstrap_key("s" * 32, NOW), bootstrap_key("t" * 32, NOW)
    shown, session = new_key("x", Role.ADMIN, NOW, expires=NOW + 10, parent=first.id)
    assert ring(session, bootstrap=bootstrap_key("s" * 32, NOW + 5)).find(shown.encode(), NOW) == session
    assert ring(session, bootstrap=second).find(shown.encode(), NOW) is None
    assert ring(session).find(shown.encode(), NOW) is None
    assert len(first.id) <= 32
    assert first.digest.hex()[:8] not in first.id


def test_sessions_of_tokens_end_with_their_provider() -> None:
    parent = token_parent("aaaa1111", "token alice")
    shown, session = new_key("x", Role.ADMIN, NOW, expires=NOW + 10, parent=parent)
    assert ring(session, provider="aaaa1111").find(shown.encode(), NOW) == session
    assert ring(session, provider="bbbb2222").find(shown.encode(), NOW) is None
    assert ring(session).find(shown.encode(), NOW) is None
    assert parent != token_parent("aaaa1111", "token bob")
    assert len(parent) <= 32


@pytest.mark.parametrize("parent", ["bootstrap", "token", "token-", "token--"])
def test_sessions_of_nobody_in_particular_open_nothing(parent: str) -> None:
    shown, session = new_key("x", Role.ADMIN, NOW, expires=NOW + 10, parent=parent)
    for provider in ("", "aaaa1111"):
        known = ring(session, bootstrap=bootstrap_key("s" * 32, NOW), provider=provider)
        assert known.find(shown.encode(), NOW) is None


def test_a_session_alone_closes_nothing() -> None:
    _, session = new_key("x", Role.ADMIN, NOW, parent=token_parent("aaaa1111", "token alice"))
    assert not ring(session).opens
    assert ring(new_key("x", Role.INFER, NOW)[1]).opens


def test_the_configured_key_opens_by_its_own_words() -> None:
    known = ring(bootstrap=bootstrap_key("correct horse battery staple", NOW))
    found = known.find(b"correct horse battery staple", NOW)
    assert found is not None
    assert found.role is Role.ADMIN
