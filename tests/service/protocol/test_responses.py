"""What a response says: Triton's fields, and outputs in JSON or in binary."""

from __future__ import annotations

import struct
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton

from compression.signature import Array
from service.errors import BadRequestError
from service.metadata import metadata
from service.protocol import InferRequest, RequestedOutput, encode
from tests.service.protocol.exchanges import DIGITS, MIXED, assert_same, byte_array


def everything(**changes: Any) -> InferRequest:
    return InferRequest(
        **{"id": None, "inputs": {}, "rows": 1, "outputs": (), "binary_output": False, "parameters": {}}
        | changes
    )


def test_a_json_response_has_tritons_fields_in_tritons_order() -> None:
    logits = np.array([[1, 0.1, -2]], np.float32)
    body, header_length = encode(
        "digits", "int8", "7", everything(), {"logits": logits}, DIGITS, {"tier": "fast", "degraded": False}
    )
    assert header_length is None
    assert body == (
        b'{"model_name":"digits","model_version":"int8","id":"7","parameters":{"tier":"fast","degraded":false},'
        b'"outputs":[{"name":"logits","datatype":"FP32","shape":[1,3],"data":[1.0,0.1,-2.0]}]}'
    )


def test_a_response_may_mix_json_and_binary() -> None:
    outputs = (RequestedOutput("label", False), RequestedOutput("score", True))
    arrays = {"score": np.array([0.5], np.float32), "label": np.array([["yes"]], dtype=object)}
    body, header_length = encode("m", "v", None, everything(outputs=outputs), arrays, MIXED)
    assert header_length is not None
    assert orjson.loads(body[:header_length]) == {
        "model_name": "m",
        "model_version": "v",
        "outputs": [
            {"name": "label", "datatype": "BYTES", "shape": [1, 1], "data": ["yes"]},
            {"name": "score", "datatype": "FP32", "shape": [1], "parameters": {"binary_data_size": 4}},
        ],
    }
    assert body[header_length:] == struct.pack("<f", 0.5)


def test_non_finite_outputs_are_null_in_json_and_exact_in_binary() -> None:
    arrays = {"logits": np.array([[np.nan, np.inf, 1]], np.float32)}
    body, _ = encode("m", "v", None, everything(), arrays, DIGITS)
    assert orjson.loads(body)["outputs"][0]["data"] == [None, None, 1.0]
    body, header_length = encode("m", "v", None, everything(binary_output=True), arrays, DIGITS)
    assert body[header_length:] == arrays["logits"].tobytes()


@pytest.mark.parametrize("binary_output", [False, True])
def test_outputs_are_written_row_major_in_the_declared_dtype(binary_output: bool) -> None:
    logits = np.arange(6, dtype=np.float16).reshape(3, 2).T
    body, header_length = encode(
        "m", "v", None, everything(binary_output=binary_output), {"logits": logits}, DIGITS
    )
    result = triton.InferenceServerClient.parse_response_body(body, header_length=header_length)
    assert_same(result.as_numpy("logits"), logits.astype(np.float32))
    with pytest.raises(TypeError):
        encode(
            "m",
            "v",
            None,
            everything(binary_output=binary_output),
            {"logits": logits.astype(complex)},
            DIGITS,
        )


def test_bytes_that_are_not_utf8_need_a_binary_output() -> None:
    arrays = {"score": np.ones(1, np.float32), "label": byte_array([b"\xff"], (1, 1))}
    with pytest.raises(BadRequestError, match="not UTF-8"):
        encode("m", "v", None, everything(), arrays, MIXED)


@pytest.mark.parametrize(
    "label", [np.array([[b"ab\x00c"]]), np.array([["ab\x00c"]]), np.array([["ab\x00c"]], object)]
)
def test_text_outputs_come_as_bytes_or_strings_of_any_kind(label: Array) -> None:
    arrays = {"score": np.ones(1, np.float32), "label": label}
    body, _ = encode("m", "v", None, everything(), arrays, MIXED)
    assert orjson.loads(body)["outputs"][1]["data"] == ["ab\x00c"]


def test_metadata_writes_symbolic_axes_as_minus_one() -> None:
    assert metadata("m", ["int8", "fp32"], MIXED, "onnxruntime") == {
        "name": "m",
        "versions": ["int8", "fp32"],
        "platform": "onnxruntime",
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [-1, -1]},
            {"name": "mask", "datatype": "BOOL", "shape": [-1, -1]},
            {"name": "text", "datatype": "BYTES", "shape": [-1, 1]},
        ],
        "outputs": [
            {"name": "score", "datatype": "FP32", "shape": [-1]},
            {"name": "label", "datatype": "BYTES", "shape": [-1, 1]},
        ],
    }
