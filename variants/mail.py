"""E-mails as rows of text: headers stripped, bodies decoded, near-duplicates told.

A mailing in five copies makes any split look good: copies must stand on one side of it.
"""

from __future__ import annotations

import email
import html
import re
from collections.abc import Sequence
from email.message import Message

import numpy as np
from datasketch import MinHash, MinHashLSH

from compression.signature import Array

# Texts that share about this many of their shingles are taken for copies of one.
SIMILARITY = 0.5
_SHINGLE_WORDS = 4
_WORDS_COMPARED = 120  # about as much as a model reads: copies often end differently
_PERMUTATIONS = 64
_UNSEEN = re.compile(r"<(script|style|head)\b.*?</\1\s*>|<!--.*?-->", re.DOTALL | re.IGNORECASE)
_TAG = re.compile(r"<[^>]*>")


def body_text(raw: str) -> str:
    """The text of a message without its headers: the plain parts, else the visible text of the HTML parts.

    Args:
        raw: The whole message (RFC 5322), with or without the line that mailboxes begin with.

    Returns:
        Words with single spaces between them; empty when the message has no text.
    """
    plain: list[str] = []
    marked_up: list[str] = []
    for part in email.message_from_string(raw).walk():
        kind = part.get_content_type()
        if kind == "text/plain":
            plain.append(_decoded(part))
        elif kind == "text/html":
            marked_up.append(_visible(_decoded(part)))
    return " ".join(" ".join(plain).split()) or " ".join(" ".join(marked_up).split())


def _decoded(part: Message) -> str:
    content = part.get_payload(decode=True)
    if not isinstance(content, bytes):
        return ""
    try:
        return content.decode(part.get_content_charset("utf-8"), errors="replace")
    except LookupError:  # a character set that nobody knows
        return content.decode("latin-1")


def _visible(page: str) -> str:
    return html.unescape(_TAG.sub(" ", _UNSEEN.sub(" ", page)))


def near_duplicates(texts: Sequence[str], similarity: float = SIMILARITY) -> Array:
    """A group number per text `(rows,)`: its members are near-duplicates, directly or by way of others.

    MinHash over word shingles with banded locality-sensitive hashing (Broder 1997, "On the resemblance and
    containment of documents"; Leskovec, Rajaraman and Ullman, "Mining of Massive Datasets", chapter 3).

    Args:
        texts: The texts.
        similarity: Share of common shingles from which on two texts count as copies of one.
    """
    index = MinHashLSH(threshold=similarity, num_perm=_PERMUTATIONS)
    groups = list(range(len(texts)))

    def root(row: int) -> int:
        while groups[row] != row:
            groups[row] = groups[groups[row]]
            row = groups[row]
        return row

    for row, text in enumerate(texts):
        sketch = MinHash(num_perm=_PERMUTATIONS)
        sketch.update_batch(_shingles(text))
        for other in index.query(sketch):
            groups[root(row)] = root(int(other))
        index.insert(row, sketch)
    return np.array([root(row) for row in range(len(texts))])


def _shingles(text: str) -> list[bytes]:
    words = re.findall(r"\w+", text.lower())[:_WORDS_COMPARED]
    starts = range(max(1, len(words) - _SHINGLE_WORDS + 1))
    return [" ".join(words[start : start + _SHINGLE_WORDS]).encode() for start in starts]
