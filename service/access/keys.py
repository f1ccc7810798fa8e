"""API keys: made once, shown once, kept as a digest.

`mipgate_<id>_<secret>`: the id finds the key, the secret is 256 random bits. Nobody guesses those, so that a
plain SHA-256 keeps them as well as a slow password hash would, in a microsecond instead of 100 ms.
"""

from __future__ import annotations

import hmac
import secrets
from collections.abc import Iterable
from dataclasses import dataclass
from hashlib import blake2b, scrypt, sha256
from typing import Any

from service.access.principal import Role

_SCHEME = "mipgate"
_ID_BYTES = 6
_SECRET_BYTES = 32
_BOOTSTRAP = "bootstrap"
_TOKEN = "token"


@dataclass(frozen=True, slots=True)
class ApiKey:
    """What is kept of a key; times are seconds of Unix time.

    Attributes:
        id: Public; finds the key.
        name: Whom or what it is for.
        role: What it may do.
        digest: SHA-256 of the key.
        rate_per_s: Requests a second that it may send, or None for any number.
        created: When it was made.
        expires: When it ends, or None.
        parent: The key or provider that a console's session came from, and ends with; else None.
        revoked: When it was revoked, or None.
    """

    id: str
    name: str
    role: Role
    digest: bytes
    rate_per_s: float | None
    created: float
    expires: float | None = None
    parent: str | None = None
    revoked: float | None = None

    def to_json(self) -> dict[str, Any]:
        """What may be seen of it: all but the digest."""
        return {
            "id": self.id,
            "name": self.name,
            "role": self.role.value,
            "rate_per_s": self.rate_per_s,
            "created": self.created,
            "expires": self.expires,
            "session_of": self.parent,
        }

    def is_valid(self, now: float) -> bool:
        """Whether it opens anything now."""
        return self.revoked is None and (self.expires is None or now < self.expires)


def new_key(
    name: str,
    role: Role,
    now: float,
    rate_per_s: float | None = None,
    expires: float | None = None,
    parent: str | None = None,
) -> tuple[str, ApiKey]:
    """A key to show once, and what is kept of it."""
    key_id = secrets.token_hex(_ID_BYTES)
    shown = f"{_SCHEME}_{key_id}_{secrets.token_urlsafe(_SECRET_BYTES)}"
    return shown, ApiKey(key_id, name, role, digest(shown.encode()), rate_per_s, now, expires, parent)


def digest(shown: bytes) -> bytes:
    """What is kept of a key."""
    return sha256(shown).digest()


def bootstrap_key(secret: str, now: float) -> ApiKey:
    """The key that the configuration brings.

    Its id, which sessions name as their parent, is another for another secret. It reaches the database, and
    the secret may be a word: four bytes of a slow digest tell two apart, and are of little use to a guesser.
    """
    mark = scrypt(secret.encode(), salt=b"mipgate", n=2**14, r=8, p=1, dklen=4).hex()
    return ApiKey(f"{_BOOTSTRAP}-{mark}", _BOOTSTRAP, Role.ADMIN, digest(secret.encode()), None, now)


def token_parent(provider: str, who: str) -> str:
    """The parent of sessions that came from tokens.

    Args:
        provider: The mark of whoever signed them.
        who: Whom they name.
    """
    return f"{_TOKEN}-{provider}-{blake2b(who.encode(), digest_size=8).hexdigest()}"


class KeyRing:
    """The keys that are valid, found by what a caller sent.

    Args:
        keys: All there are.
        bootstrap: The key that the configuration brings, or None.
        now: Unix time.
        provider: The mark of whoever signs tokens, empty without: sessions from another one's have ended.
    """

    def __init__(
        self, keys: Iterable[ApiKey], bootstrap: ApiKey | None, now: float, provider: str = ""
    ) -> None:
        valid = [key for key in keys if key.is_valid(now)]
        stems = {key.id for key in valid if key.parent is None}
        if bootstrap is not None:
            stems.add(bootstrap.id)
        vouched = f"{_TOKEN}-{provider}-"
        self._keys = {
            key.id: key
            for key in valid
            if key.parent is None or key.parent in stems or (provider and key.parent.startswith(vouched))
        }
        self._otherwise = bootstrap or _NOBODY
        self.opens = bootstrap is not None or any(key.parent is None for key in valid)

    def get(self, key_id: str) -> ApiKey | None:
        """The key of this id."""
        return self._keys.get(key_id, self._otherwise if key_id == self._otherwise.id else None)

    def find(self, shown: bytes, now: float) -> ApiKey | None:
        """The key that was sent, or None. A wrong secret takes as long as a right one."""
        key = self._keys.get(_id_of(shown), self._otherwise)
        matches = hmac.compare_digest(digest(shown), key.digest)
        return key if matches and key.is_valid(now) else None


_NOBODY = ApiKey("", "", Role.INFER, bytes(32), None, 0.0, revoked=0.0)


def _id_of(shown: bytes) -> str:
    parts = shown.split(b"_", 2)
    return parts[1].decode("latin-1") if len(parts) == 3 else ""
