from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from compression.huffman import (
    ALPHABET,
    LONGEST_WORD,
    STREAM_SYMBOLS,
    HuffmanError,
    decode,
    encode,
    word_lengths,
)

symbols = st.integers(1, 255).flatmap(
    lambda largest: arrays(np.uint8, st.integers(0, 3 * STREAM_SYMBOLS), elements=st.integers(0, largest))
)


@given(symbols)
def test_what_is_decoded_is_what_was_coded(given: np.ndarray) -> None:
    assert np.array_equal(decode(encode(given)), given)


@pytest.mark.parametrize("count", [1, STREAM_SYMBOLS - 1, STREAM_SYMBOLS, STREAM_SYMBOLS + 1, 100_000])
def test_the_code_is_within_a_bit_of_the_entropy(count: int) -> None:
    given = np.minimum(np.random.default_rng(0).geometric(0.3, count), 255).astype(np.uint8)
    coded = encode(given)
    assert np.array_equal(decode(coded), given)
    shares = np.bincount(given) / count
    entropy = -sum(share * np.log2(share) for share in shares[shares > 0])
    assert entropy * count <= 8 * len(coded.bits) <= (entropy + 1) * count + 8


@given(st.lists(st.integers(0, 2**40), max_size=30))
def test_words_are_short_and_never_overlap(first: list[int]) -> None:
    counts = first + [0] * (ALPHABET - len(first))
    words = word_lengths(np.array(counts))
    assert words.max() <= LONGEST_WORD
    assert [length > 0 for length in words] == [count > 0 for count in counts]
    assert sum(2.0 ** -int(length) for length in words if length) <= 1


def test_frequencies_that_ask_for_long_words_get_shorter_ones() -> None:
    fibonacci = [1, 1]
    while len(fibonacci) < 40:
        fibonacci.append(fibonacci[-1] + fibonacci[-2])
    words = word_lengths(np.array(fibonacci + [0] * (ALPHABET - 40)))
    assert words[0] == LONGEST_WORD
    assert words[39] <= 2


def test_what_no_encoder_wrote_is_refused() -> None:
    coded = encode(np.arange(200, dtype=np.uint8))
    with pytest.raises(HuffmanError, match="overlap"):
        decode(replace(coded, words=np.ones(ALPHABET, np.uint8)))
    with pytest.raises(HuffmanError, match="malformed"):
        decode(replace(coded, words=np.full(ALPHABET, LONGEST_WORD + 1, np.uint8)))
    with pytest.raises(HuffmanError, match="do not hold"):
        decode(replace(coded, bits=coded.bits[:-1]))
    with pytest.raises(HuffmanError, match="do not hold"):
        decode(replace(coded, count=coded.count + STREAM_SYMBOLS))
    with pytest.raises(HuffmanError, match="does not end"):
        decode(replace(coded, count=coded.count - 1))
