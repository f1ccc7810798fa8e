"""What never goes into a log: keys, tokens, passwords, and what requests carry."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import lru_cache
from typing import Any

import numpy as np

HIDDEN = "(hidden)"

_LONGEST_TEXT = 2000
_LONGEST_TRACEBACK = 20_000
_MOST_ITEMS = 20
_DEEPEST = 6
_SECRET = (
    r"authorization|cookie|credential|passw(?:or)?d|secret|token"
    r"|(?:api|admin|access|private|mipgate|sticky)[-_]?key"
)
_SECRET_NAME = re.compile(_SECRET, re.IGNORECASE)
# In running text everything behind such a name goes: where the secret ends, only its owner knows.
_NAMED = re.compile(rf"((?:{_SECRET})[\w-]*[\"']?\s*[:=,]).*", re.IGNORECASE)
_BEARER = re.compile(r"\b(bearer|basic)\s+\S+", re.IGNORECASE)
# Our own keys, and JSON web tokens.
_KEY = re.compile(r"\bmipgate_[0-9a-f]{6,}_[\w-]+|\beyJ[\w-]+\.[\w-]+\.[\w-]*")
# Nothing of all that is in a text that has none of this: most have not.
_SUSPECT = re.compile(rf"{_SECRET}|bearer|basic|mipgate_|eyJ|://", re.IGNORECASE)
_URL_PASSWORD = re.compile(r"(\w://[^\s:/@]*):[^\s@]+@")


def redact(value: Any, depth: int = 0) -> Any:
    """The value without secrets and payloads: of bytes and arrays only the size, of keys nothing."""
    if value is None or isinstance(value, bool | int | float):
        return value
    if isinstance(value, str):
        return redact_text(value)
    if isinstance(value, bytes | bytearray | memoryview):
        return f"({len(value)} bytes)"
    if isinstance(value, np.ndarray):
        return f"({value.dtype} {list(value.shape)})"
    if depth >= _DEEPEST:
        return f"({type(value).__name__})"
    if isinstance(value, Mapping):
        items = [(_name(key), item) for key, item in value.items()]
        return {redact_text(name): redact_named(name, item, depth + 1) for name, item in items[:_MOST_ITEMS]}
    if isinstance(value, list | tuple | set | frozenset):
        return _redact_items(list(value), depth + 1) if len(value) <= _MOST_ITEMS else f"({len(value)} items)"
    return redact_text(str(value))


def redact_named(name: str, value: Any, depth: int = 0) -> Any:
    """The value, unless its name tells that it is a secret."""
    return HIDDEN if _is_secret(name) else redact(value, depth)


def redact_text(text: str, longest: int = _LONGEST_TEXT) -> str:
    """The text without what looks like a secret, and not too long."""
    if not _SUSPECT.search(text):
        return _cut(text, longest)
    text = _NAMED.sub(rf"\1 {HIDDEN}", text)
    text = _BEARER.sub(rf"\1 {HIDDEN}", text)
    text = _URL_PASSWORD.sub(rf"\1:{HIDDEN}@", _KEY.sub(HIDDEN, text))
    return _cut(text, longest)


def redact_event(_: Any, __: str, event: Any) -> Any:
    """A structlog processor: the event without secrets and payloads."""
    return {
        key: value
        if key.startswith("_")
        else redact_text(value, _LONGEST_TRACEBACK)
        if key == "exception"
        else redact_named(key, value)
        for key, value in event.items()
    }


def _cut(text: str, longest: int) -> str:
    return text if len(text) <= longest else f"{text[:longest]} (and {len(text) - longest} characters)"


@lru_cache(maxsize=1024)
def _is_secret(name: str) -> bool:
    return _SECRET_NAME.search(name) is not None


def _redact_items(items: list[Any], depth: int) -> Any:
    if len(items) == 2 and isinstance(items[0], str | bytes):  # a header
        name = _name(items[0])
        return [redact_text(name), redact_named(name, items[1], depth)]
    return [redact(item, depth) for item in items]


def _name(key: Any) -> str:
    return key.decode("latin-1") if isinstance(key, bytes) else str(key)
