"""Huffman coding of small alphabets, in streams that numpy decodes side by side. Torch-free.

Huffman 1952, "A Method for the Construction of Minimum-Redundancy Codes". The codes are canonical, so that
the lengths of the code words are all that a reader needs. Every stream holds `STREAM_SYMBOLS` symbols and
begins at a known bit: one table look-up per step then decodes a symbol of every stream at once.
"""

from __future__ import annotations

import heapq
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

ALPHABET = 256
LONGEST_WORD = 15
STREAM_SYMBOLS = 512

# A window of bits lies within this many bytes wherever it begins.
_WINDOW_BYTES = 3

Symbols = NDArray[np.uint8]


class HuffmanError(Exception):
    """A coded stream is not what an encoder wrote."""


@dataclass(frozen=True)
class Coded:
    """Symbols as an encoder wrote them.

    Attributes:
        words: Length in bits of each symbol's code word, `(ALPHABET,)`; 0 for symbols that do not occur.
        stream_bits: Length in bits of each stream.
        bits: The streams one behind the other, most significant bit first, padded to a byte.
        count: How many symbols there are.
    """

    words: NDArray[np.uint8]
    stream_bits: NDArray[np.uint16]
    bits: bytes
    count: int


def encode(symbols: Symbols) -> Coded:
    """Codes symbols `(count,)` with the shortest code for their frequencies."""
    words = word_lengths(np.bincount(symbols, minlength=ALPHABET))
    lengths = words[symbols].astype(np.int64)
    starts = np.cumsum(lengths) - lengths
    values = _code_words(words)[symbols]
    bits = np.zeros(int(lengths.sum()), np.uint8)
    for position in range(int(words.max(initial=0))):
        has = lengths > position
        bits[starts[has] + position] = values[has] >> (lengths[has] - 1 - position) & 1
    streams = np.arange(0, len(symbols), STREAM_SYMBOLS)
    stream_bits = np.add.reduceat(lengths, streams) if len(symbols) else lengths
    return Coded(words, stream_bits.astype(np.uint16), np.packbits(bits).tobytes(), len(symbols))


def decode(coded: Coded) -> Symbols:
    """The symbols `(count,)` that were coded.

    Raises:
        HuffmanError: The code words overlap, or the streams do not have the lengths that they should.
    """
    table, table_lengths, longest = _table(coded.words)
    ends = np.cumsum(coded.stream_bits, dtype=np.int64)
    streams = -(-coded.count // STREAM_SYMBOLS)
    if len(ends) != streams or -(-int(ends[-1] if streams else 0) // 8) != len(coded.bits):
        raise HuffmanError(f"{len(coded.bits)} bytes do not hold {coded.count} symbols")
    if not streams:
        return np.zeros(0, np.uint8)
    windows = _windows(coded.bits)
    at = ends - coded.stream_bits
    last = coded.count - (streams - 1) * STREAM_SYMBOLS
    symbols = np.empty((min(STREAM_SYMBOLS, coded.count), streams), np.uint8)
    found = at.copy()  # where each stream ended
    for step in range(len(symbols)):
        window = windows[at >> 3] >> (8 * _WINDOW_BYTES - longest - (at & 7))
        window &= (1 << longest) - 1
        symbols[step] = table[window]
        at += table_lengths[window]
        if step == last - 1:
            found[-1] = at[-1]
    found[:-1] = at[:-1]
    if not np.array_equal(found, ends):
        raise HuffmanError("a stream does not end where it should")
    return np.ascontiguousarray(symbols.T).reshape(-1)[: coded.count]


def word_lengths(counts: NDArray[np.int64]) -> NDArray[np.uint8]:
    """Length of each symbol's code word, at most `LONGEST_WORD`; 0 for symbols that do not occur."""
    weights = counts.copy()
    while True:
        lengths = _huffman_lengths(weights)
        if lengths.max(initial=0) <= LONGEST_WORD:
            return lengths
        weights = (weights + 1) >> 1  # flatter frequencies have shorter longest words


def _huffman_lengths(weights: NDArray[np.int64]) -> NDArray[np.uint8]:
    lengths = np.zeros(ALPHABET, np.uint8)
    present = np.flatnonzero(weights)
    # The second entry breaks ties, so that equal frequencies always give the same code.
    queue = [(int(weights[symbol]), int(symbol), [int(symbol)]) for symbol in present]
    heapq.heapify(queue)
    if len(queue) == 1:
        lengths[present] = 1
    while len(queue) > 1:
        light, order, left = heapq.heappop(queue)
        heavy, _, right = heapq.heappop(queue)
        lengths[left + right] += 1
        heapq.heappush(queue, (light + heavy, order, left + right))
    return lengths


def _in_code_order(words: NDArray[np.uint8]) -> NDArray[np.intp]:
    """The symbols that occur, in the order of their canonical code words."""
    order = np.lexsort((np.arange(ALPHABET), words))
    return order[words[order] > 0]


def _code_words(words: NDArray[np.uint8]) -> NDArray[np.int64]:
    order = _in_code_order(words)
    shares = 1 << (LONGEST_WORD - words[order].astype(np.int64))
    values = np.zeros(ALPHABET, np.int64)
    values[order] = (np.cumsum(shares) - shares) >> (LONGEST_WORD - words[order].astype(np.int64))
    return values


def _table(words: NDArray[np.uint8]) -> tuple[Symbols, NDArray[np.uint8], int]:
    """Symbol and word length for every window of as many bits as the longest word has."""
    longest = int(words.max(initial=0))
    if len(words) != ALPHABET or longest > LONGEST_WORD:
        raise HuffmanError("the table of code words is malformed")
    order = _in_code_order(words)
    shares = 1 << (longest - words[order].astype(np.int64))
    spare = (1 << longest) - int(shares.sum())
    if spare < 0:
        raise HuffmanError("code words overlap")
    # A window that begins with no code word stays where it is, and its stream does not reach its end.
    table = np.repeat(np.append(order, 0), np.append(shares, spare)).astype(np.uint8)
    return table, np.repeat(np.append(words[order], 0), np.append(shares, spare)), longest


def _windows(bits: bytes) -> NDArray[np.int32]:
    """The bytes from each position on, as one number; zeros follow the end, farther than a stream reads."""
    padding = LONGEST_WORD * STREAM_SYMBOLS // 8 + _WINDOW_BYTES + 1
    padded = np.frombuffer(bits + bytes(padding), np.uint8).astype(np.int32)
    return padded[:-2] << 16 | padded[1:-1] << 8 | padded[2:]
