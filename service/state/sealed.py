"""Ids that carry all that a label will need, so that nothing is written of an answer until its label comes.

An id is the answer's facts as JSON behind a keyed digest (BLAKE2b, RFC 7693), in URL-safe base64. Nobody
without the key that gateways share through the database can make one up or change what it says.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode, urlsafe_b64encode
from binascii import Error
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, NamedTuple

import orjson

from service.protocol import MAX_ID_LENGTH

_MARK = "s."
_DIGEST_BYTES = 12


class Served(NamedTuple):  # one is made for every answer: a frozen dataclass takes four times as long
    """An answer whose label may come later.

    Attributes:
        request: The id that the caller knows.
        model: Which model answered.
        variant: `recipe@build` that answered.
        tier: What was asked for.
        rollout: The rollout that it was a part of, or an empty string.
        arm: Its arm there, or an empty string.
        prediction: What a label is held against, as JSON.
        at: When, in Unix time.
    """

    request: str
    model: str
    variant: str
    tier: str
    rollout: str
    arm: str
    prediction: Any
    at: float


class Seal:
    """Makes and reads such ids.

    Args:
        secret: What all gateways of a database know, and nobody else; at most 64 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._keyed = blake2b(key=secret, digest_size=_DIGEST_BYTES)

    def close(self, answer: Served) -> str | None:
        """The id of an answer whose `request` is unique, or None where it would be too long."""
        facts = orjson.dumps((*answer[:-1], int(answer.at * 1e3)))
        if (_DIGEST_BYTES + len(facts)) * 4 // 3 + 3 + len(_MARK) > MAX_ID_LENGTH:
            return None
        return _MARK + urlsafe_b64encode(self._digest(facts) + facts).decode()

    def open(self, request: str) -> Served | None:
        """The answer that an id carries, under that id; None for ids that were not made here."""
        if not request.startswith(_MARK):
            return None
        try:
            content = urlsafe_b64decode(request[len(_MARK) :])
        except (Error, ValueError):
            return None
        digest, facts = content[:_DIGEST_BYTES], content[_DIGEST_BYTES:]
        # Of the ways to write the same bytes in base64 only ours counts, or a label would count twice.
        if not compare_digest(digest, self._digest(facts)) or request != self._written(content):
            return None
        _, model, variant, tier, rollout, arm, prediction, at_ms = orjson.loads(facts)
        return Served(request, model, variant, tier, rollout, arm, prediction, at_ms / 1e3)

    def _written(self, content: bytes) -> str:
        return _MARK + urlsafe_b64encode(content).decode()

    def _digest(self, facts: bytes) -> bytes:
        digest = self._keyed.copy()
        digest.update(facts)
        return digest.digest()
