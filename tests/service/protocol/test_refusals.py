"""Whatever does not fit ends as a 400 that names the field, what is expected and what was given."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from compression.signature import Signature, TensorSpec
from service.errors import BadRequestError
from service.protocol import RequestDecoder, encode
from service.tensors import DATATYPES
from tests.service.protocol.exchanges import DIGITS, assert_same, decode, image

JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data"]
PARAMETERS = ["binary_data", "binary_data_size", "binary_data_output", "tier"]


@given(st.binary(max_size=200), st.none() | st.integers(-3, 210))
def test_arbitrary_bytes_are_a_400(body: bytes, header_length: int | None) -> None:
    with pytest.raises(BadRequestError):
        RequestDecoder(DIGITS).decode(body, header_length)


@given(JSON_VALUES, st.none() | st.binary(max_size=20))
def test_arbitrary_json_is_a_400(document: object, tail: bytes | None) -> None:
    with pytest.raises(BadRequestError):
        decode(document, tail=tail)


@given(st.data())
def test_a_good_request_with_anything_anywhere_is_decoded_or_a_400(data: st.DataObject) -> None:
    document: dict[str, Any] = {
        "id": "1",
        "inputs": [image(parameters={})],
        "outputs": [{"name": "logits", "parameters": {}}],
        "parameters": {},
    }
    places: list[Any] = [document, document["inputs"][0], document["outputs"][0]]
    for _ in range(data.draw(st.integers(1, 3))):
        place = data.draw(st.sampled_from(places))
        place[data.draw(st.sampled_from(FIELDS))] = data.draw(
            JSON_VALUES | st.dictionaries(st.sampled_from(PARAMETERS), JSON_VALUES, max_size=2)
        )
    tail = data.draw(st.none() | st.binary(max_size=20))
    try:
        request = decode(document, tail=tail)
    except BadRequestError:
        return
    DIGITS.check_inputs(request.inputs)
    encode("m", "v", request.id, request, {"logits": np.ones((request.rows, 3), np.float32)}, DIGITS)


@given(st.lists(JSON_VALUES, min_size=1, max_size=4), st.sampled_from(list(DATATYPES)))
@example([True], "FP32")
@example([1.0], "INT32")
@example([256], "UINT8")
@example([2**64], "UINT64")
@example([1e39], "FP32")
@example([65520], "FP16")
@example([0], "BOOL")
@example([None], "FP64")
@example(["\x00"], "BYTES")
def test_json_values_are_taken_exactly_or_not_at_all(values: list[Any], datatype: str) -> None:
    signature = Signature((TensorSpec("x", DATATYPES[datatype], ("batch",)),), ())
    document = {"inputs": [{"name": "x", "datatype": datatype, "shape": [len(values)], "data": values}]}
    body = json.dumps(document).encode()
    try:
        array = RequestDecoder(signature).decode(body, None).inputs["x"]
    except BadRequestError:
        return
    if datatype == "BYTES":
        assert array.tolist() == [value.encode() for value in values]
    elif datatype.startswith("FP"):
        assert all(type(value) in (int, float) for value in values)
        assert np.isfinite(array).all()
        assert_same(array, np.array(values, dtype=array.dtype))
    else:
        assert array.tolist() == values
        assert {type(value) for value in values} == {bool if datatype == "BOOL" else int}


@pytest.mark.parametrize("depth", [100, 1000, 100_000])
def test_deep_nesting_is_a_400(depth: int) -> None:
    for text in ("[" * depth, "[" * depth + "]" * depth, '{"inputs":' * depth + "1" + "}" * depth):
        with pytest.raises(BadRequestError):
            RequestDecoder(DIGITS).decode(text.encode())
    good = orjson.dumps({"inputs": [image(data=[])]})
    with pytest.raises(BadRequestError):
        RequestDecoder(DIGITS).decode(good.replace(b"[]", b"[" * depth + b"]" * depth))


@pytest.mark.parametrize(
    ("tensor", "message"),
    [
        (
            image(shape=[1, 3], data=[1, 2, 3]),
            'input "image" has shape [1, 3]; expected [-1, 4]. Send 4 value(s)',
        ),
        (image(shape=[4]), 'input "image" has shape [4]; expected [-1, 4]. Add the batch axis in front.'),
        (
            image(shape=[0, 4], data=[]),
            'input "image" has shape [0,4]; expected [-1, 4]. Send at least one row',
        ),
        (image(shape=[-1, 4]), "has shape [-1,4]"),
        (image(shape=[1.0, 4]), "has shape [1.0,4]; expected [-1, 4]. Send a list of whole numbers."),
        (image(shape=[True, 4]), "has shape [true,4]"),
        (image(shape=[1] * 99), "Send a list of whole numbers"),
        (image(shape=None), "has shape null"),
        (image(shape=[2, 4]), "has 4 value(s); expected 8 for its shape [2, 4]. Make data and shape agree."),
        (image(datatype="FP64"), 'has datatype "FP64"; expected "FP32".'),
        (image(datatype=None), 'has datatype none; expected "FP32".'),
        (image(name="picture"), 'unknown input "picture". This model takes image.'),
        (image(name=None), "unknown input null. This model takes image."),
        (image(name=["image"]), 'unknown input ["image"].'),
        ("image", 'an input is "image"; expected an object.'),
        (
            image(data=[1, "2", 3, 4]),
            'has "2" at value 1; expected FP32, numbers up to 3.403e+38 in magnitude.',
        ),
        (image(data=[1, 2, True, 4]), "has true at value 2"),
        (image(data=[1, 2, 3, None]), "has null at value 3"),
        (image(data=[1, 2, 3, 1e39]), "has 1e+39 at value 3"),
        (image(data=[[1, 2, 3], [4]]), "has ragged data, or data nested otherwise than its shape [1, 4]"),
        (image(data=[[1, 2], 3, 4]), "has ragged data"),
        (image(data=[[[1, 2, 3, 4]]]), "has ragged data"),
        (image(data=[[1], [2], [3], [4]]), "has ragged data"),
        (image(data=[[[1], [2], [3], [4]]]), "has ragged data"),
        (image(shape=[2, 4], data=[[1, 2, 3], [4, 5, 6, 7, 8]]), "has ragged data"),
        (image(data=1), "has 1 as data; expected a list"),
        (image(data=None), "has neither data nor binary_data_size"),
        (image(parameters={"binary_data_size": 16}), "has both data and binary_data_size"),
        (image(data=None, parameters={"binary_data_size": 16}), "Inference-Header-Content-Length"),
        (image(parameters=[]), "parameters is []; expected an object."),
        (image(parameters={"a": None}), 'parameter "a" is null; expected a string, a number or a boolean.'),
    ],
)
def test_a_bad_input_is_named(tensor: object, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode({"inputs": [tensor]})
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"inputs": []}, 'input "image" is missing. This model takes image.'),
        ({"inputs": None}, 'has no list "inputs"'),
        ({"inputs": [image(), image()]}, 'input "image" is there twice.'),
        ({"id": 7}, "id is 7; expected at most 256 characters of printable ASCII."),
        ({"id": None}, "id is null"),
        ({"id": "a" * 257}, "id is"),
        ({"id": "a\n"}, "id is"),
        ({"id": "é"}, "id is"),
        ({"parameters": []}, "parameters is []"),
        ({"parameters": {"tier": {}}}, 'parameter "tier" is {}'),
        ({"parameters": {"binary_data_output": 1}}, "binary_data_output is 1; expected a boolean."),
        ({"outputs": {}}, '"outputs" is {}; expected a list.'),
        ({"outputs": [{"name": "probs"}]}, 'unknown output "probs". This model gives logits.'),
        ({"outputs": ["logits"]}, 'unknown output "logits".'),
        ({"outputs": [{"name": "logits"}] * 2}, "asked for twice"),
        (
            {"outputs": [{"name": "logits", "parameters": {"binary_data": 1}}]},
            "has binary_data 1; expected a boolean.",
        ),
        ({"outputs": [{"name": "logits", "parameters": {"classification": 3}}]}, "asks for classification"),
    ],
)
def test_a_bad_field_is_named(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode({"inputs": [image()]} | changes)
    assert message in str(caught.value)


@pytest.mark.parametrize(
    ("size", "tail", "message"),
    [
        (-1, b"", "binary_data_size -1; expected its length in bytes"),
        (16.0, b"x" * 16, "binary_data_size 16.0"),
        (True, b"x", "binary_data_size true"),
        ("16", b"x" * 16, 'binary_data_size "16"'),
        (12, b"x" * 12, "has 12 bytes of binary data; expected 16 for shape [1, 4] of FP32."),
        (16, b"x" * 15, "binary_data_size 16, but 15 bytes follow. Send all of the binary data."),
        (16, b"x" * 17, "1 bytes are left over behind the last input."),
        (16, struct.pack("<4f", 0, 0, math.nan, 0), "has nan at value 2; expected finite numbers."),
        (16, struct.pack("<4f", 0, -math.inf, 0, 0), "has -inf at value 1"),
    ],
)
def test_bad_binary_data_is_named(size: object, tail: bytes, message: str) -> None:
    with pytest.raises(BadRequestError) as caught:
        decode({"inputs": [image(data=None, parameters={"binary_data_size": size})]}, tail=tail)
    assert message in str(caught.value)


@pytest.mark.parametrize("header_length", [-1, 10_000])
def test_a_header_length_beyond_the_body_is_a_400(header_length: int) -> None:
    with pytest.raises(BadRequestError, match="Inference-Header-Content-Length is"):
        RequestDecoder(DIGITS).decode(b"{}", header_length)


def test_booleans_in_binary_are_0_or_1() -> None:
    signature = Signature((TensorSpec("x", "bool", ("batch",)),), ())
    tensor = {"name": "x", "datatype": "BOOL", "shape": [2], "parameters": {"binary_data_size": 2}}
    assert decode({"inputs": [tensor]}, signature, b"\x00\x01").inputs["x"].tolist() == [False, True]
    with pytest.raises(BadRequestError, match="has the byte 2 among its BOOL"):
        decode({"inputs": [tensor]}, signature, b"\x00\x02")


@pytest.mark.parametrize(
    "raw", [b"", b"\x01", b"\x05\x00\x00\x00abcd", b"\x00" * 8, b"\xff\xff\xff\xff", b"\x00\x00\x00\x00a"]
)
def test_byte_strings_must_fill_their_tensor_exactly(raw: bytes) -> None:
    signature = Signature((TensorSpec("x", "bytes", ("batch",)),), ())
    tensor = {"name": "x", "datatype": "BYTES", "shape": [1], "parameters": {"binary_data_size": len(raw)}}
    with pytest.raises(BadRequestError, match=r"not 1 BYTES element\(s\)"):
        decode({"inputs": [tensor]}, signature, raw)


def test_a_message_does_not_repeat_all_that_a_client_sent() -> None:
    with pytest.raises(BadRequestError) as caught:
        decode({"inputs": [image(name="x" * 100_000)]})
    assert len(str(caught.value)) < 200
