"""Requests and answers of the protocol: two signatures, and any arrays in JSON, in binary or both."""

from __future__ import annotations

from typing import Any

import numpy as np
import orjson

from compression.signature import Array, Signature, TensorSpec
from service.protocol import InferRequest, RequestDecoder

DIGITS = Signature(
    (TensorSpec("image", "float32", ("batch", 4)),), (TensorSpec("logits", "float32", ("batch", 3)),)
)
MIXED = Signature(
    (
        TensorSpec("ids", "int64", ("batch", "tokens")),
        TensorSpec("mask", "bool", ("batch", "tokens")),
        TensorSpec("text", "bytes", ("batch", 1)),
    ),
    (TensorSpec("score", "float32", ("batch",)), TensorSpec("label", "bytes", ("batch", 1))),
)


def image(**changes: Any) -> dict[str, Any]:
    """A good tensor for DIGITS, with changes; `None` removes a field."""
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [1, 2.5, 3, 4]} | changes
    return {key: value for key, value in tensor.items() if value is not None}


def decode(document: object, signature: Signature = DIGITS, tail: bytes | None = None) -> InferRequest:
    body = orjson.dumps(document)
    if tail is None:
        return RequestDecoder(signature).decode(body, None)
    return RequestDecoder(signature).decode(body + tail, len(body))


def assert_same(given: Array, expected: Array) -> None:
    assert given.dtype == expected.dtype
    assert given.shape == expected.shape
    if expected.dtype == object:
        assert given.tolist() == expected.tolist()
    else:
        assert given.tobytes() == np.ascontiguousarray(expected).tobytes()


def byte_array(elements: list[bytes], shape: tuple[int, ...]) -> Array:
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array.reshape(shape)


# ---- strategies
