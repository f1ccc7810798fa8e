"""The one question of every request: who sends it, and may they?"""

from __future__ import annotations

import hmac
import logging
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from service.access.keys import ApiKey, KeyRing, bootstrap_key, token_parent
from service.access.limits import Bucket
from service.access.peer import (
    Headers,
    in_container,
    one_header,
    require_local_host,
    require_loopback,
    require_same_origin,
)
from service.access.principal import ANYONE, LOOPBACK, Principal, Role
from service.access.tokens import Provider, Tokens
from service.config import Config, ConfigError
from service.errors import ForbiddenError, RateLimitError, UnauthorizedError

log = logging.getLogger("mipgate.access")

_SHORTEST_SECRET = 16
_COMPLAIN_EVERY_S = 10.0
_USUAL_BEARER = b"Bearer %b"
_NO_KEY = "this needs a key. Send it as `Authorization: Bearer KEY`."

Peer = tuple[str, int] | None


@dataclass(frozen=True)
class Rules:
    """What the configuration says about access.

    Attributes:
        bootstrap: The configured key, or None.
        inference: Whether inference needs a key; `auto` as soon as there is any.
        is_container: Whether loopback proves nothing here.
        provider: Whose tokens are taken, or None.
    """

    bootstrap: ApiKey | None
    inference: Literal["auto", "always", "never"]
    is_container: bool
    provider: Provider | None


@dataclass(frozen=True, slots=True)
class _Found:
    """Whose key a header holds: who was found once is compared with it, without a digest, while keys stay."""

    authorization: bytes
    key: ApiKey
    principal: Principal


class Access:
    """Tells who sends a request and whether they may. Cheap: it is asked for every inference.

    Args:
        rules: What the configuration says.
        limits: Folder of the buckets that this host's workers share.
        clock: Unix time.
    """

    def __init__(self, rules: Rules, limits: Path, clock: Callable[[], float] = time.time) -> None:
        self._rules = rules
        self._limits = limits
        self._clock = clock
        self._tokens = Tokens(rules.provider) if rules.provider else None
        self._provider = rules.provider.mark if rules.provider else ""
        self._buckets: dict[str, Bucket] = {}
        self._principals: dict[str, Principal] = {}
        self._found: dict[int, _Found] = {}
        self._complained = float("-inf")
        self._refused = 0
        self._ring = KeyRing((), rules.bootstrap, clock(), self._provider)
        self._has_keys = True  # closed until the keys are known
        self._is_open = rules.inference == "never"

    def follow(self, keys: Iterable[ApiKey], had_keys: bool = False) -> None:
        """Takes these keys, and none that was there before, as the valid ones.

        Args:
            keys: As they are in the database.
            had_keys: Whether there ever was one: what it closed does not open when the last is revoked.
        """
        known = list(keys)
        self._ring = KeyRing(known, self._rules.bootstrap, self._clock(), self._provider)
        self._found.clear()
        self._has_keys = self._ring.opens or self._tokens is not None or had_keys
        self._is_open = self._rules.inference == "never" or (
            self._rules.inference == "auto" and not self._has_keys
        )
        rates = {key.id: key.rate_per_s for key in known if key.rate_per_s is not None}
        for gone in [k for k, bucket in self._buckets.items() if rates.get(k) != bucket.rate_per_s]:
            del self._buckets[gone]
        for key_id in rates.keys() - self._buckets.keys():
            self._buckets[key_id] = Bucket(self._limits / key_id, rates[key_id])

    def refresh(self) -> None:
        """Reads the provider's public keys when it is time. Blocks."""
        if self._tokens is not None:
            self._tokens.refresh(time.monotonic())

    @property
    def needs_key(self) -> bool:
        """Whether inference is closed to callers without a key."""
        return not self._is_open

    @property
    def has_keys(self) -> bool:
        """Whether a key or provider is or was set, so that nothing but inference may be open without one."""
        return self._has_keys

    def check(self, headers: Headers, peer: Peer, role: Role, counts: bool = True) -> Principal:
        """Lets an inference, a load or an unload pass, or not.

        Args:
            headers: Names in lower case and values, as ASGI gives them.
            peer: Address and port of the other end, None where there is none.
            role: What it takes to do what is asked for.
            counts: Whether this is one of the requests that the key's rate bounds.

        Raises:
            BadRequestError: A header that decides is there twice.
            UnauthorizedError: No key where one is needed, or one that is not known.
            ForbiddenError: The caller is known, and may not do this; or only this machine may.
            RateLimitError: The key was used too often.
        """
        if role is not Role.INFER:
            return self.check_operation(headers, peer, role, counts)
        sent = one_header(headers, b"authorization")
        return self.check_inference(None if sent is None else sent.encode("latin-1"), counts)

    def check_inference(self, authorization: bytes | None, counts: bool = True) -> Principal:
        """Lets an inference pass, or not, whose headers were read.

        Args:
            authorization: The value of that header, which was there once, or None.
            counts: As for `check`.

        Raises:
            ServiceError: As for `check`.
        """
        if self._is_open:
            return ANYONE
        if authorization is None:
            raise UnauthorizedError(_NO_KEY)
        # The place is a hash with a seed of this process, which tells a guesser nothing.
        place = hash(authorization)
        found = self._found.get(place)
        if (
            found is not None
            and hmac.compare_digest(authorization, found.authorization)
            and found.key.is_valid(self._clock())
        ):
            if counts and self._buckets:
                self._count(found.key)
            return found.principal
        sent = _bearer(authorization)
        principal = self.identify(sent, Role.INFER, counts)
        key = None if principal.key is None else self._ring.get(principal.key)
        if key is not None and authorization == _USUAL_BEARER % sent:  # one way to write it, one place
            self._found[place] = _Found(authorization, key, principal)
        return principal

    def check_operation(self, headers: Headers, peer: Peer, role: Role, counts: bool = True) -> Principal:
        """Lets a request to the admin API pass, or not: even looking is for nobody from elsewhere.

        Args:
            headers: As for `check`.
            peer: As for `check`.
            role: What it takes to do what is asked for.
            counts: As for `check`.

        Raises:
            ServiceError: As for `check`.
        """
        sent = one_header(headers, b"authorization")
        if sent is not None:
            return self.identify(_bearer(sent.encode("latin-1")), role, counts)
        if self._has_keys:
            raise UnauthorizedError(_NO_KEY)
        self._require_this_machine(headers, peer)
        return LOOPBACK

    def check_session(
        self, headers: Headers, cookie: str, role: Role, is_change: bool, counts: bool = True
    ) -> Principal:
        """Lets a request of the console's page pass, which has its session in a cookie.

        Args:
            headers: As for `check`.
            cookie: The session.
            role: What it takes to do what is asked for.
            is_change: Whether the request may change something.
            counts: As for `check`.

        Raises:
            ServiceError: As for `check`; and a page of another site may change nothing.
        """
        require_same_origin(headers)
        if is_change and one_header(headers, b"x-mipgate-console") is None:
            raise ForbiddenError(
                "a change by a signed-in page needs the header X-Mipgate-Console. Send it, with any value."
            )
        return self.identify(cookie.encode(), role, counts)

    def identify(self, sent: bytes, role: Role, counts: bool = True) -> Principal:
        """Whose key or token this is.

        Args:
            sent: The key or the token.
            role: What it takes to do what is asked for.
            counts: As for `check`.

        Raises:
            UnauthorizedError: It is not known.
            ForbiddenError: It is, and may not do this.
            RateLimitError: It was used too often.
        """
        now = self._clock()
        key = self._ring.find(sent, now)
        if key is not None:
            principal = self._principal(key)
        elif self._tokens is not None and sent.count(b".") == 2:
            principal = self._tokens.verify(sent, now)
        else:
            self._complain()
            raise UnauthorizedError("this key is not known, or was revoked. Make one: `mipgate keys create`.")
        if not principal.role.covers(role):
            raise ForbiddenError(
                f"this needs the role {role.value}; the key has {principal.role.value}. Use another key."
            )
        if key is not None and counts:
            self._count(key)
        return principal

    def parent(self, who: Principal) -> str:
        """What a session of this caller ends with: its key, or the provider that vouches for it."""
        return who.key or token_parent(self._provider, who.who)

    def _count(self, key: ApiKey) -> None:
        """Takes a request out of a key's bucket; a session has its key's."""
        bucket = self._buckets.get(key.parent or key.id)
        if bucket is not None and (wait_s := bucket.take(time.monotonic())):
            raise RateLimitError(
                f"the key may send {bucket.rate_per_s:g} requests a second. Send fewer.", wait_s
            )

    def _principal(self, key: ApiKey) -> Principal:
        principal = self._principals.get(key.id)
        if principal is None:
            kind = "key" if key.parent is None else "session"
            principal = self._principals[key.id] = Principal(
                f"{kind} {key.name} ({key.id})", key.role, key.id
            )
        return principal

    def _require_this_machine(self, headers: Headers, peer: Peer) -> None:
        """Without keys, operations are open to programs of this machine and to its own pages."""
        if self._rules.is_container:
            raise ForbiddenError(
                "in a container this needs a key. Set MIPGATE_ADMIN_KEY, or run "
                "`mipgate keys create NAME --role admin` in it."
            )
        require_loopback(headers, peer)
        require_local_host(headers)
        require_same_origin(headers)

    def _complain(self) -> None:
        """Tells of wrong keys, not of each one: whoever guesses fills no disk."""
        self._refused += 1
        if time.monotonic() - self._complained > _COMPLAIN_EVERY_S:
            log.warning("%d requests came with a key that is not known", self._refused)
            self._complained, self._refused = time.monotonic(), 0


def read_rules(settings: Config, now: float) -> Rules:
    """What the configuration says about access.

    Args:
        settings: The configuration.
        now: Unix time.

    Raises:
        ConfigError: The settings contradict each other.
    """
    bootstrap = None
    if settings.admin_key is not None and settings.admin_key.get_secret_value():
        secret = _secret(settings.admin_key.get_secret_value())
        if len(secret) < _SHORTEST_SECRET:
            raise ConfigError(
                f"MIPGATE_ADMIN_KEY has fewer than {_SHORTEST_SECRET} characters. Make one with "
                "`openssl rand -hex 32`."
            )
        bootstrap = bootstrap_key(secret, now)
    is_container = in_container() if settings.container == "auto" else settings.container == "yes"
    return Rules(bootstrap, settings.require_keys, is_container, _provider(settings))


def _secret(value: str) -> str:
    """The key itself: the content of the file of this name, if there is one."""
    try:
        path = Path(value)
        return path.read_text().strip() if path.is_file() else value.strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError("the file that MIPGATE_ADMIN_KEY names cannot be read. Change it.") from error


def _provider(settings: Config) -> Provider | None:
    needed = {
        "MIPGATE_JWT_ISSUER": settings.jwt_issuer,
        "MIPGATE_JWT_AUDIENCE": settings.jwt_audience,
        "MIPGATE_JWT_JWKS": settings.jwt_jwks,
    }
    missing = [name for name, value in needed.items() if not value]
    if len(missing) == len(needed):
        return None
    if missing:
        raise ConfigError(f"{missing[0]} is not set, and the others of MIPGATE_JWT_* are. Set all or none.")
    if settings.jwt_jwks.startswith("http://"):
        raise ConfigError("MIPGATE_JWT_JWKS is fetched without TLS. Give an https address, or a file.")
    roles = {value: Role(role) for value, role in settings.jwt_roles.items()}
    return Provider(
        settings.jwt_issuer, settings.jwt_audience, settings.jwt_jwks, settings.jwt_role_claim, roles
    )


def _bearer(sent: bytes) -> bytes:
    scheme, _, credential = sent.partition(b" ")
    credential = credential.strip()
    if scheme.lower() != b"bearer" or not credential:
        raise UnauthorizedError("the Authorization header is not read. Send `Authorization: Bearer KEY`.")
    return credential
