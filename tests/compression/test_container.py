from __future__ import annotations

import hashlib
import json
import struct
import tracemalloc
import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from compression.container import ContainerError, Span, expand, pack

HEADER = struct.Struct("<8sQ32sII")


def sparse_weights(seed: int, count: int, values: int, zeros: float, dtype: str = "float32") -> np.ndarray:
    generator = np.random.default_rng(seed)
    codebook = generator.normal(size=values).astype(np.float32)
    weights = codebook[generator.integers(0, values, count)]
    return np.where(generator.random(count) < zeros, 0, weights).astype(dtype)


@st.composite
def files(draw: st.DrawFn) -> tuple[bytes, list[Span]]:
    """Files of weights, many of them zero, between other bytes."""
    plain, spans = b"", []
    for _ in range(draw(st.integers(0, 3))):
        plain += draw(st.binary(max_size=20))
        weights = sparse_weights(
            draw(st.integers(0, 9)),
            draw(st.integers(1, 3000)),
            draw(st.sampled_from([1, 2, 16, 255, 256, 2000])),
            draw(st.sampled_from([0.0, 0.5, 0.95, 0.999, 1.0])),
            draw(st.sampled_from(["float32", "float16", "float64", "int8"])),
        )
        spans.append(Span(len(plain), weights.size, weights.itemsize))
        plain += weights.tobytes()
    return plain + draw(st.binary(max_size=20)), spans


@given(files())
def test_a_file_comes_back_byte_by_byte(file: tuple[bytes, list[Span]]) -> None:
    plain, spans = file
    assert expand(pack(plain, spans), limit=len(plain)) == plain


def test_every_bit_comes_back() -> None:
    odd = np.array([np.nan, -0.0, np.inf, 1e-45, 0.0] * 50, np.float32)
    packed = pack(odd.tobytes(), [Span(0, odd.size, 4)])
    assert expand(packed) == odd.tobytes()
    assert len(packed) < odd.nbytes


def test_clustered_weights_cost_what_deep_compression_promises() -> None:
    """Of 90% zeros and 16 values: about 4 bits for a value and 4.7 for its place, a tenth of the weights."""
    weights = sparse_weights(0, 200_000, 16, 0.9)
    packed = pack(weights.tobytes(), [Span(0, weights.size, 4)])
    assert weights.nbytes / len(packed) > 34
    assert len(packed) < len(zlib.compress(weights.tobytes(), 9)) / 1.3


def test_dense_weights_of_few_values_are_coded_without_gaps() -> None:
    weights = sparse_weights(0, 100_000, 16, 0.0)
    packed = pack(weights.tobytes(), [Span(0, weights.size, 4)])
    assert weights.nbytes / len(packed) > 7.8


def test_weights_that_coding_does_not_shrink_are_left_alone() -> None:
    weights = np.random.default_rng(0).normal(size=5000).astype(np.float32).tobytes()
    assert pack(weights, [Span(0, 5000, 4)]) == pack(weights, [])


@pytest.fixture(scope="module")
def packed() -> bytes:
    weights = sparse_weights(0, 4000, 16, 0.8)
    return pack(b"head" + weights.tobytes() + b"tail", [Span(4, weights.size, 4)])


def test_a_file_that_is_cut_off_anywhere_is_refused(packed: bytes) -> None:
    for length in [*range(0, len(packed), 97), len(packed) - 1]:
        with pytest.raises(ContainerError, match=r"cut off|damaged|no packed model"):
            expand(packed[:length])
    with pytest.raises(ContainerError, match="left over"):
        expand(packed + b"\0")


def test_a_changed_byte_anywhere_is_refused(packed: bytes) -> None:
    for position in range(0, len(packed), 31):
        changed = bytearray(packed)
        changed[position] ^= 0x10
        with pytest.raises(ContainerError):
            expand(bytes(changed), limit=100_000)


def test_another_file_is_no_packed_model() -> None:
    with pytest.raises(ContainerError, match="no packed model"):
        expand(b"\x08\x09" * 100)


def test_more_than_is_allowed_is_not_expanded(packed: bytes) -> None:
    assert len(expand(packed, limit=16_008)) == 16_008
    with pytest.raises(ContainerError, match="expands to 16008 bytes; 16007 are allowed"):
        expand(packed, limit=16_007)


def bomb(size: int, entries: list[dict[str, object]], tables: bytes) -> bytes:
    index = json.dumps(entries).encode()
    deflated = zlib.compress(index + tables, 9)
    digest = hashlib.sha256(bytes(size)).digest()
    return HEADER.pack(b"MIPGATE\x01", size, digest, len(index), len(deflated)) + deflated


def entry(**fields: object) -> dict[str, object]:
    return {"lead": 0, "items": 0, "width": 4, "gaps": None, "coded": 0, "codebook": 0} | fields


@pytest.mark.parametrize(
    "content",
    [
        bomb(1000, [], bytes(500_000_000)),
        bomb(1000, [entry(items=250, gaps=2**30)], bytes(2_000_000)),
        bomb(1000, [entry(items=250, gaps=250, coded=2**30)], bytes(2_000_000)),
        bomb(1000, [entry(items=2**30)], b""),
        bomb(1000, [entry(lead=2**30)], b""),
        bomb(1000, [entry(items=-5)], b""),
        bomb(1000, [entry(items=250, width=3)], b""),
        bomb(1000, [entry(items=250, extra=1)], b""),
        bomb(1000, [entry(items=250, coded=250, codebook=2)], bytes(3000)),
    ],
    ids=["tables", "gaps", "values", "items", "lead", "negative", "width", "unknown", "no codes"],
)
def test_what_holds_more_than_it_declares_stops_early(content: bytes) -> None:
    tracemalloc.start()
    with pytest.raises(ContainerError):
        expand(content, limit=1000)
    _, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    assert peak < 20_000_000
