"""Tokens of an OpenID provider, signed for real."""

import json
import time
from pathlib import Path
from typing import Any

import jwt
import pytest
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from jwt.algorithms import ECAlgorithm, RSAAlgorithm

from service.access.principal import Role
from service.access.tokens import Provider, Tokens
from service.errors import ForbiddenError, UnauthorizedError

RSA = rsa.generate_private_key(public_exponent=65537, key_size=2048)
EC = ec.generate_private_key(ec.SECP256R1())
STRANGER = rsa.generate_private_key(public_exponent=65537, key_size=2048)


def jwks(*keys: dict[str, Any]) -> str:
    return json.dumps({"keys": list(keys)})


def public(key: Any, kid: str) -> dict[str, Any]:
    algorithm = RSAAlgorithm if isinstance(key, rsa.RSAPrivateKey) else ECAlgorithm
    return json.loads(algorithm.to_jwk(key.public_key())) | {"kid": kid, "use": "sig"}


@pytest.fixture
def tokens(tmp_path: Path) -> Tokens:
    (tmp_path / "jwks.json").write_text(jwks(public(RSA, "r1"), public(EC, "e1")))
    made = Tokens(
        Provider("https://idp", "mipgate", str(tmp_path / "jwks.json"), "realm.roles", {"ml": Role.OPERATE})
    )
    made.refresh(0.0)
    return made


def token(key: Any = RSA, algorithm: str = "RS256", kid: str | None = "r1", **changes: Any) -> bytes:
    claims = {
        "iss": "https://idp",
        "aud": "mipgate",
        "sub": "alice",
        "exp": time.time() + 60,
        "realm": {"roles": ["other", "ml"]},
    } | changes
    kept = {name: value for name, value in claims.items() if value is not None}
    return jwt.encode(kept, key, algorithm, headers={"kid": kid} if kid else {}).encode()


def test_a_token_of_the_provider_is_believed(tokens: Tokens) -> None:
    for sent in (token(), token(EC, "ES256", "e1")):
        principal = tokens.verify(sent, time.time())
        assert (principal.who, principal.role) == ("token alice", Role.OPERATE)
        assert principal.expires is not None
        assert principal.expires > time.time()


@pytest.mark.parametrize(
    "sent",
    [
        token(exp=time.time() - 60),
        token(iss="https://evil"),
        token(aud="other"),
        token(sub=None),
        token(exp=None),
        token(nbf=time.time() + 600),
        token(STRANGER),
        token(kid="unknown"),
        token(kid=None),
        token(algorithm="RS512"),
        token("secret-of-enough-length-for-an-hmac", "HS256"),
        token("", "none"),
        b"a.b.c",
        b"..",
    ],
)
def test_others_are_not(tokens: Tokens, sent: bytes) -> None:
    with pytest.raises(UnauthorizedError):
        tokens.verify(sent, time.time())


def test_a_public_key_is_no_secret_of_an_hmac(tokens: Tokens, tmp_path: Path) -> None:
    header = jwt.encode({}, RSA, "RS256", headers={"kid": "r1"}).split(".")[0]
    confused = header.replace("=", "").encode() + b".e30." + b"A" * 43
    with pytest.raises(UnauthorizedError):
        tokens.verify(confused, time.time())


@pytest.mark.parametrize("realm", [{}, {"roles": []}, {"roles": "admin"}, {"roles": [7]}, "ml", None])
def test_a_token_without_a_role_here_is_forbidden(tokens: Tokens, realm: Any) -> None:
    with pytest.raises(ForbiddenError, match=r"realm\.roles"):
        tokens.verify(token(realm=realm), time.time())


def test_a_remembered_token_is_asked_again_once_it_ended(
    tokens: Tokens, monkeypatch: pytest.MonkeyPatch
) -> None:
    sent = token()
    ends = tokens.verify(sent, time.time()).expires
    assert ends is not None
    monkeypatch.setattr("service.access.tokens.jwt.decode", _ended)
    assert tokens.verify(sent, ends - 1)
    with pytest.raises(UnauthorizedError, match="ended"):
        tokens.verify(sent, ends)


def _ended(*_: object, **__: object) -> None:
    raise jwt.ExpiredSignatureError("it ended")


def test_changed_keys_are_followed_and_forget_what_the_old_ones_vouched_for(
    tokens: Tokens, tmp_path: Path
) -> None:
    sent = token()
    tokens.verify(sent, time.time())
    (tmp_path / "jwks.json").write_text(jwks(public(STRANGER, "s1")))
    tokens.refresh(1.0)
    with pytest.raises(UnauthorizedError):
        tokens.verify(sent, time.time())
    assert tokens.verify(token(STRANGER, kid="s1"), time.time())


@pytest.mark.parametrize("content", ["", "{", '{"keys": []}', '{"keys": 7}'])
def test_keys_that_cannot_be_read_leave_those_that_are_known(
    tokens: Tokens, tmp_path: Path, content: str
) -> None:
    (tmp_path / "jwks.json").write_text(content)
    tokens.refresh(1.0)
    assert tokens.verify(token(), time.time())
