"""The packed model file `.mpk`: an ONNX file stored small, and expanded byte by byte to what it was at load.

Torch-free and onnx-free: serving reads it. The ONNX file is cut into spans that hold weights and the bytes
between them. A span is stored as the third stage of Han, Mao and Dally 2016, "Deep Compression", section 4:
the gaps between its nonzero weights and the weights' places in a codebook, both Huffman coded. The bytes
between are deflated.

    magic, 8 bytes | length of the expansion, u64 | its sha256, 32 bytes
    length of the index, u32 | length of the deflated part, u32
    deflated: index as JSON, tables of all spans, bytes between
    coded bits of all spans

Numbers are little-endian. A file declares how long its expansion is before a byte of it is made; a reader
stops at what was declared and refuses to begin where that is more than it allows.
"""

from __future__ import annotations

import hashlib
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal

import numpy as np
from numpy.typing import NDArray
from pydantic import BaseModel, ConfigDict, Field, TypeAdapter, ValidationError

from compression.huffman import ALPHABET, STREAM_SYMBOLS, Coded, HuffmanError, decode, encode

PACKED_SUFFIX = ".mpk"
# No ONNX file in one piece is longer: protobuf's limit.
MOST_EXPANDED_BYTES = 2**31 - 1

_MAGIC = b"MIPGATE\x01"
_HEADER = struct.Struct("<8sQ32sII")
# A gap of so many zeros ends without a weight; a shorter one ends with one.
_LONGEST_GAP = ALPHABET - 1
# Tables of tiny tensors may outweigh what they code, never by this much.
_MOST_TABLE_BYTES = 1 << 20
_DEFLATE_LEVEL = 6  # higher ones take several times as long for a hundredth

Items = NDArray[Any]


class ContainerError(Exception):
    """A packed file is damaged, or would expand to more than is allowed."""


@dataclass(frozen=True)
class Span:
    """Where a tensor's weights lie in an ONNX file.

    Attributes:
        offset: Position of the first byte.
        items: How many weights there are.
        width: Bytes of each: 1, 2, 4 or 8.
    """

    offset: int
    items: int
    width: int

    @property
    def end(self) -> int:
        """Position behind the last byte."""
        return self.offset + self.items * self.width


_Count = Annotated[int, Field(ge=0, le=MOST_EXPANDED_BYTES)]


class _Entry(BaseModel):
    """One span in the index.

    Attributes:
        lead: Bytes between the span before and this one.
        items: Weights.
        width: Bytes of each weight.
        gaps: Gaps between nonzero weights, or None when every weight is coded.
        coded: Weights that are coded.
        codebook: Values that these have.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    lead: _Count
    items: _Count
    width: Literal[1, 2, 4, 8]
    gaps: _Count | None
    coded: _Count
    codebook: Annotated[int, Field(ge=0, le=ALPHABET)]


_INDEX = TypeAdapter(list[_Entry])


@dataclass(frozen=True)
class _Packed:
    """A span as it is stored."""

    span: Span
    codebook: Items
    gaps: Coded | None
    values: Coded

    def streams(self) -> list[Coded]:
        return [self.values] if self.gaps is None else [self.gaps, self.values]

    def tables(self) -> Iterator[bytes]:
        yield self.codebook.tobytes()
        for coded in self.streams():
            yield coded.words.tobytes()
            yield coded.stream_bits.astype("<u2").tobytes()

    def stored_bytes(self) -> int:
        tables = zlib.compress(b"".join(self.tables()), _DEFLATE_LEVEL)
        return len(tables) + sum(len(coded.bits) for coded in self.streams())


def pack(plain: bytes, spans: Sequence[Span]) -> bytes:
    """Stores an ONNX file small.

    Args:
        plain: The file.
        spans: Where its weights lie, in order and apart; those that do not get smaller are left as they are.

    Returns:
        What `expand` turns back into the same bytes.
    """
    index: list[_Entry] = []
    tables: list[bytes] = []
    literals: list[bytes] = []
    bits: list[bytes] = []
    position = 0
    for packed in filter(None, (_pack_span(plain, span) for span in spans)):
        span, gaps = packed.span, packed.gaps
        index.append(
            _Entry(
                lead=span.offset - position,
                items=span.items,
                width=span.width,
                gaps=None if gaps is None else gaps.count,
                coded=packed.values.count,
                codebook=len(packed.codebook),
            )
        )
        tables += packed.tables()
        bits += [coded.bits for coded in packed.streams()]
        literals.append(plain[position : span.offset])
        position = span.end
    literals.append(plain[position:])
    contents = _INDEX.dump_json(index)
    deflated = zlib.compress(b"".join([contents, *tables, *literals]), _DEFLATE_LEVEL)
    digest = hashlib.sha256(plain).digest()
    header = _HEADER.pack(_MAGIC, len(plain), digest, len(contents), len(deflated))
    return b"".join([header, deflated, *bits])


def expand(packed: bytes, limit: int = MOST_EXPANDED_BYTES) -> bytes:
    """The ONNX file that was packed, byte by byte.

    Args:
        packed: A packed file.
        limit: Most bytes that the expansion may have.

    Raises:
        ContainerError: The file is no packed model, is cut off or altered, or declares or holds more than
            may be expanded.
    """
    size, digest, index_bytes, deflated_bytes = _header(packed, limit)
    body = memoryview(packed)[_HEADER.size :]
    if deflated_bytes > len(body):
        raise ContainerError(f"the packed file is cut off at {len(packed)} bytes. Copy it again.")
    try:
        inflated = _inflate(body[:deflated_bytes], 2 * size + _MOST_TABLE_BYTES)
        entries = _INDEX.validate_json(inflated[:index_bytes])
        plain = _assembled(entries, inflated[index_bytes:], bytes(body[deflated_bytes:]), size)
    except (HuffmanError, ValidationError, zlib.error, ValueError, IndexError) as error:
        raise ContainerError(f"the packed file is damaged: {_first_line(error)}. Copy it again.") from error
    if hashlib.sha256(plain).digest() != digest:
        raise ContainerError(
            "the packed file is damaged: its expansion has another sha256 than it declares. Copy it again."
        )
    return plain


def _header(packed: bytes, limit: int) -> tuple[int, bytes, int, int]:
    if len(packed) < _HEADER.size or not packed.startswith(_MAGIC):
        raise ContainerError(f"the file is no packed model: it does not begin with {_MAGIC!r}.")
    _, size, digest, index_bytes, deflated_bytes = _HEADER.unpack_from(packed)
    if size > limit:
        raise ContainerError(f"the packed file expands to {size} bytes; {limit} are allowed.")
    return size, digest, index_bytes, deflated_bytes


def _pack_span(plain: bytes, span: Span) -> _Packed | None:
    """The smaller of the two ways to store a span, or None when deflating its bytes does as well."""
    items = np.frombuffer(plain, f"<u{span.width}", span.items, span.offset)
    ways = (_every_weight(span, items), _nonzero_weights(span, items))
    smallest = min(filter(None, ways), key=_Packed.stored_bytes, default=None)
    if smallest is None:
        return None
    deflated = zlib.compress(items.tobytes(), _DEFLATE_LEVEL)
    return smallest if smallest.stored_bytes() < len(deflated) else None


def _every_weight(span: Span, items: Items) -> _Packed | None:
    codebook, codes = np.unique(items, return_inverse=True)
    if len(codebook) > ALPHABET:
        return None
    return _Packed(span, codebook, None, encode(codes.astype(np.uint8)))


def _nonzero_weights(span: Span, items: Items) -> _Packed | None:
    nonzero = np.flatnonzero(items)
    codebook, codes = np.unique(items[nonzero], return_inverse=True)
    if len(codebook) > ALPHABET:
        return None
    gaps = np.diff(nonzero, prepend=-1) - 1
    long, short = np.divmod(gaps, _LONGEST_GAP)
    symbols = np.full(len(nonzero) + int(long.sum()), _LONGEST_GAP, np.uint8)
    symbols[np.arange(len(nonzero)) + np.cumsum(long)] = short
    return _Packed(span, codebook, encode(symbols), encode(codes.astype(np.uint8)))


def _inflate(deflated: memoryview, most: int) -> bytes:
    stream = zlib.decompressobj()
    inflated = stream.decompress(deflated, most)
    if not stream.eof or stream.unused_data:
        raise ContainerError("the packed file is damaged: its tables are cut off or too long.")
    return inflated


class _Reader:
    """Reads one thing behind the other, and never past the end."""

    def __init__(self, content: bytes) -> None:
        self._content = content
        self._at = 0

    def take(self, length: int) -> bytes:
        """The next bytes."""
        taken = self._content[self._at : self._at + length]
        if len(taken) != length:
            raise ContainerError(
                f"the packed file is cut off: {length} bytes are expected and {len(taken)} left. "
                "Copy it again."
            )
        self._at += length
        return taken

    def array(self, dtype: str, items: int) -> Items:
        """The next numbers."""
        return np.frombuffer(self.take(items * np.dtype(dtype).itemsize), dtype)

    def rest(self) -> bytes:
        """Everything that is left."""
        return self.take(len(self._content) - self._at)


def _assembled(entries: Sequence[_Entry], inflated: bytes, bits: bytes, size: int) -> bytes:
    between = size - sum(entry.items * entry.width for entry in entries)
    # A gap covers at least one weight: so much is decoded at most, however it is coded.
    most = all(max(entry.gaps or 0, entry.coded) <= entry.items for entry in entries)
    if between < sum(entry.lead for entry in entries) or not most:
        raise ContainerError(f"the packed file is damaged: its spans do not fit into {size} bytes.")
    tables, coded = _Reader(inflated), _Reader(bits)
    spans = [_expand_span(entry, tables, coded) for entry in entries]
    if coded.rest():
        raise ContainerError("the packed file is damaged: bytes are left over.")
    literals = _Reader(tables.rest())
    return b"".join(_interleaved(entries, spans, literals))


def _interleaved(entries: Sequence[_Entry], spans: Sequence[bytes], literals: _Reader) -> Iterable[bytes]:
    for entry, span in zip(entries, spans, strict=True):
        yield literals.take(entry.lead)
        yield span
    yield literals.rest()


def _expand_span(entry: _Entry, tables: _Reader, bits: _Reader) -> bytes:
    codebook = tables.array(f"<u{entry.width}", entry.codebook)
    gaps = None if entry.gaps is None else _symbols(entry.gaps, tables, bits)
    values = codebook[_symbols(entry.coded, tables, bits)]
    if gaps is None:
        if entry.coded != entry.items:
            raise ContainerError("the packed file is damaged: weights are missing.")
        return values.tobytes()
    reached = np.cumsum(np.where(gaps == _LONGEST_GAP, _LONGEST_GAP, gaps.astype(np.int64) + 1))
    places = reached[gaps != _LONGEST_GAP] - 1
    items = np.zeros(entry.items, f"<u{entry.width}")
    items[places] = values
    return items.tobytes()


def _symbols(count: int, tables: _Reader, bits: _Reader) -> NDArray[np.uint8]:
    words = tables.array("u1", ALPHABET)
    stream_bits = tables.array("<u2", -(-count // STREAM_SYMBOLS))
    stored = bits.take(-(-int(stream_bits.sum(dtype=np.int64)) // 8))
    return decode(Coded(words, stream_bits, stored, count))


def _first_line(error: Exception) -> str:
    return str(error).partition("\n")[0].rstrip(".")
