"""Tokens of an OpenID provider (JWT, RFC 7519) instead of a key; signed with RS256 or ES256, nothing else."""

from __future__ import annotations

import logging
import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import blake2b
from pathlib import Path
from typing import Any, Final

import httpx
import jwt

from service.access.principal import Principal, Role
from service.errors import ForbiddenError, UnauthorizedError

log = logging.getLogger("mipgate.access")

_ALGORITHMS: Final = ["RS256", "ES256"]
_LEEWAY_S = 30
_REMEMBERED = 4096
_FETCH_EVERY_S = 300.0
_FETCH_AT_MOST_EVERY_S = 10.0
_FETCH_WITHIN_S = 5.0


@dataclass(frozen=True)
class Provider:
    """Whose tokens are believed.

    Attributes:
        issuer: Must be the claim `iss`.
        audience: Must be in the claim `aud`.
        jwks: Its public keys, as a JSON Web Key Set: a file, or an address.
        role_claim: Where the role is found; `a.b` is the claim `b` inside `a`.
        roles: What the claim's values mean here; empty when they are the names of our roles.
    """

    issuer: str
    audience: str
    jwks: str
    role_claim: str
    roles: Mapping[str, Role]

    @property
    def mark(self) -> str:
        """Tells it from a provider of other tokens, or with other roles: 8 hex digits."""
        told = repr((self.issuer, self.audience, self.role_claim, sorted(self.roles.items())))
        return blake2b(told.encode(), digest_size=4).hexdigest()


class Tokens:
    """Verifies tokens of one provider, and remembers those that it has verified until they expire."""

    def __init__(self, provider: Provider) -> None:
        self._provider = provider
        self._keys: dict[str, jwt.PyJWK] = {}
        self._pepper = secrets.token_bytes(32)
        self._verified: dict[bytes, Principal] = {}
        self._fetched = float("-inf")
        self._is_missing_a_key = True
        self._content = b""

    def verify(self, token: bytes, now: float) -> Principal:
        """Who sent this token.

        Args:
            token: As it was sent.
            now: Unix time.

        Raises:
            UnauthorizedError: It is not valid; the message says why.
            ForbiddenError: It is, but gives no role.
        """
        mark = blake2b(token, key=self._pepper, digest_size=16).digest()
        known = self._verified.get(mark)
        if known is None or (known.expires or 0.0) <= now:
            known = self._verify(token)
            if len(self._verified) >= _REMEMBERED:
                self._verified.clear()
            self._verified[mark] = known
        return known

    def refresh(self, now: float) -> None:
        """Reads the provider's keys again when it is time, or when a token named one that is unknown.

        Blocks; what is known stays when they cannot be read.

        Args:
            now: Seconds on a monotonic clock.
        """
        pause_s = _FETCH_AT_MOST_EVERY_S if self._is_missing_a_key else _FETCH_EVERY_S
        is_address = "://" in self._provider.jwks
        if is_address and now - self._fetched < pause_s:
            return
        self._fetched = now
        try:
            content = _fetched(self._provider.jwks) if is_address else Path(self._provider.jwks).read_bytes()
            if content == self._content:
                return
            self._keys = _usable(content)
        except (OSError, httpx.HTTPError, ValueError, jwt.PyJWTError) as error:
            log.error(
                "keys of %s cannot be read from %s: %s", self._provider.issuer, self._provider.jwks, error
            )
            return
        self._content = content
        self._is_missing_a_key = False
        self._verified = {}  # the key that vouched for them may be gone

    def _verify(self, token: bytes) -> Principal:
        provider = self._provider
        try:
            claims = jwt.decode(
                token,
                self._key(token),
                algorithms=_ALGORITHMS,
                issuer=provider.issuer,
                audience=provider.audience,
                leeway=_LEEWAY_S,
                options={"require": ["exp", "iss", "aud", "sub"], "enforce_minimum_key_length": True},
            )
        except jwt.PyJWTError as error:
            raise UnauthorizedError(f"the token is not valid: {error}. Get a new one.") from error
        role = self._role(claims)
        who = f"token {str(claims['sub'])[:80]}"
        return Principal(who, role, expires=float(claims["exp"]) + _LEEWAY_S)

    def _key(self, token: bytes) -> jwt.PyJWK:
        name = jwt.get_unverified_header(token).get("kid")
        if name is None and len(self._keys) == 1:
            return next(iter(self._keys.values()))
        key = self._keys.get(str(name))
        if key is None:
            self._is_missing_a_key = True
            raise jwt.InvalidKeyError("it is signed with a key that the provider does not show")
        return key

    def _role(self, claims: dict[str, Any]) -> Role:
        """The highest role among the claim's values."""
        value: Any = claims
        for part in self._provider.role_claim.split("."):
            value = value.get(part) if isinstance(value, dict) else None
        given = value if isinstance(value, list) else [value]
        known = self._provider.roles or {role.value: role for role in Role}
        found = [known[each] for each in given if isinstance(each, str) and each in known]
        for role in reversed(Role):
            if role in found:
                return role
        raise ForbiddenError(
            f'the token\'s claim "{self._provider.role_claim}" gives no role here. '
            f"It must have one of {', '.join(known)}."
        )


def _fetched(url: str) -> bytes:
    answer = httpx.get(url, timeout=_FETCH_WITHIN_S, follow_redirects=False).raise_for_status()
    return answer.content


def _usable(content: bytes) -> dict[str, jwt.PyJWK]:
    """The keys of the algorithms that are taken, by their id."""
    keys = jwt.PyJWKSet.from_json(content.decode()).keys
    return {str(key.key_id): key for key in keys if key.algorithm_name in _ALGORITHMS}
