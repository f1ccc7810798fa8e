"""Ids that carry all that a label will need, so that nothing is written of an answer until its label comes.

An id is the answer's facts as JSON behind a keyed digest (BLAKE2b, RFC 7693), in URL-safe base64. Nobody
without the key that gateways share through the database can make one up or change what it says.
"""

from __future__ import annotations

from base64 import urlsafe_b64decode
from binascii import Error, b2a_base64
from functools import lru_cache
from hashlib import blake2b
from hmac import compare_digest
from typing import Any, NamedTuple

import orjson

from service.protocol import MAX_ID_LENGTH

_MARK = "s."
_DIGEST_BYTES = 12
_MOST_FACTS = (MAX_ID_LENGTH - len(_MARK)) // 4 * 3 - _DIGEST_BYTES  # bytes
_URL_SAFE = bytes.maketrans(b"+/", b"-_")


class Served(NamedTuple):
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


@lru_cache(1024)
def who_answered(model: str, variant: str, tier: str, rollout: str, arm: str) -> bytes:
    """The part of a sealed answer that many have in common, as `Served` has it."""
    return orjson.dumps((model, variant, tier, rollout, arm))[1:-1]


def _written(content: bytes) -> str:
    return _MARK + b2a_base64(content, newline=False).translate(_URL_SAFE).decode()


class Seal:
    """Makes and reads such ids.

    Args:
        secret: What all gateways of a database know, and nobody else; at most 64 bytes.
    """

    def __init__(self, secret: bytes) -> None:
        self._keyed = blake2b(key=secret, digest_size=_DIGEST_BYTES)

    def close(self, request: str, who: bytes, prediction: Any, at: float) -> str | None:
        """The id of an answer, or None where it would be too long.

        Args:
            request: A name of the request that is unique, and is JSON between quotes.
            who: What `who_answered` gives.
            prediction: As `Served` has it.
            at: As `Served` has it.
        """
        facts = b'["%b",%b,%b,%d]' % (request.encode(), who, orjson.dumps(prediction), at * 1e3)
        return None if len(facts) > _MOST_FACTS else _written(self._digest(facts) + facts)

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
        if not compare_digest(digest, self._digest(facts)) or request != _written(content):
            return None
        _, model, variant, tier, rollout, arm, prediction, at_ms = orjson.loads(facts)
        return Served(request, model, variant, tier, rollout, arm, prediction, at_ms / 1e3)

    def _digest(self, facts: bytes) -> bytes:
        digest = self._keyed.copy()
        digest.update(facts)
        return digest.digest()
