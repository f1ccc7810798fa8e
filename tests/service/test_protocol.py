"""The codec: what fits comes through bit for bit, and whatever does not fit ends as a 400."""

from __future__ import annotations

import json
import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.signature import Array, Signature, TensorSpec
from service.errors import BadRequestError
from service.metadata import metadata
from service.protocol import InferRequest, RequestDecoder, RequestedOutput, encode
from service.tensors import DATATYPES, DTYPE_DATATYPES

# A busy machine is no reason to fail.
unhurried = settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])

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


@st.composite
def tensors(draw: st.DrawFn, rows: int, utf8: bool) -> tuple[str, tuple[int | str, ...], Array]:
    """A dtype, a spec's shape with some symbolic axes, and an array that fits both."""
    lengths = [rows, *draw(st.lists(st.integers(1, 3), max_size=3))]
    axes: list[int | str] = ["batch"]
    for at, length in enumerate(lengths[1:]):
        axes.append(f"axis{at}_{length}" if draw(st.booleans()) else length)
    dtype = draw(st.sampled_from(list(DATATYPES.values())))
    if dtype == "bytes":
        element = st.text(max_size=5).map(str.encode) if utf8 else st.binary(max_size=5)
        count = math.prod(lengths)
        array = byte_array(draw(st.lists(element, min_size=count, max_size=count)), tuple(lengths))
    else:
        finite = {"allow_nan": False, "allow_infinity": False} if "float" in dtype else {}
        array = draw(hnp.arrays(dtype, tuple(lengths), elements=finite or None))
    return dtype, tuple(axes), array


@st.composite
def models(draw: st.DrawFn, utf8: bool = True) -> tuple[Signature, dict[str, Array]]:
    """A signature whose outputs are its inputs, and arrays for it."""
    rows = draw(st.integers(1, 3))
    names = draw(st.lists(st.text(min_size=1, max_size=5), min_size=1, max_size=3, unique=True))
    drawn = {name: draw(tensors(rows, utf8)) for name in names}
    specs = tuple(TensorSpec(name, dtype, axes) for name, (dtype, axes, _) in drawn.items())
    return Signature(specs, specs), {name: array for name, (_, _, array) in drawn.items()}


def binary(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array.reshape(-1))


def as_json(array: Array) -> Array:
    return array if array.dtype != object else np.vectorize(bytes.decode, otypes=[object])(array)


@st.composite
def requests(
    draw: st.DrawFn, only_binary: bool = False
) -> tuple[Signature, dict[str, Array], bytes, int | None]:
    """A model, arrays for it, and a valid request that carries them, each in JSON or in binary."""
    signature, arrays = draw(models())
    inputs, tail = [], b""
    for name in draw(st.permutations(list(arrays))):
        array = arrays[name]
        dtype = "bytes" if array.dtype == object else array.dtype.name
        tensor: dict[str, Any] = {
            "name": name,
            "datatype": DTYPE_DATATYPES[dtype],
            "shape": list(array.shape),
        }
        if only_binary or draw(st.booleans()):
            raw = binary(array)
            tail += raw
            tensor["parameters"] = {"binary_data_size": len(raw)}
        else:
            values = as_json(array)
            tensor["data"] = (values if draw(st.booleans()) else values.reshape(-1)).tolist()
        inputs.append(tensor)
    # An odd length now and then, so that binary data is not always aligned.
    header = orjson.dumps({"inputs": inputs}) + b" " * draw(st.integers(0, 7))
    needs_length = any("parameters" in tensor for tensor in inputs) or draw(st.booleans())
    return signature, arrays, header + tail, len(header) if needs_length else None


JSON_VALUES = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=8,
)
FIELDS = ["id", "inputs", "outputs", "parameters", "name", "datatype", "shape", "data"]
PARAMETERS = ["binary_data", "binary_data_size", "binary_data_output", "tier"]


# ---- round trips


@unhurried
@given(requests())
def test_decodes_any_arrays_in_json_binary_or_both(
    case: tuple[Signature, dict[str, Array], bytes, int],
) -> None:
    signature, arrays, body, header_length = case
    request = RequestDecoder(signature).decode(body, header_length)
    assert request.inputs.keys() == arrays.keys()
    assert request.rows == next(iter(arrays.values())).shape[0]
    for name, array in arrays.items():
        assert_same(request.inputs[name], array)


@unhurried
@given(requests(), st.booleans())
def test_reads_a_memoryview_like_bytes(
    case: tuple[Signature, dict[str, Array], bytes, int], odd: bool
) -> None:
    signature, arrays, body, header_length = case
    view = memoryview(b"x" * odd + body)[odd:]
    request = RequestDecoder(signature).decode(view, header_length)
    for name, array in arrays.items():
        assert_same(request.inputs[name], array)


@unhurried
@given(requests(only_binary=True), st.data())
def test_any_truncation_of_a_binary_body_is_a_400(
    case: tuple[Signature, dict[str, Array], bytes, int], data: st.DataObject
) -> None:
    signature, _, body, header_length = case
    kept = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(BadRequestError):
        RequestDecoder(signature).decode(body[:kept], header_length)


@unhurried
@given(requests(only_binary=True), st.binary(min_size=1, max_size=4))
def test_anything_behind_the_last_input_is_a_400(
    case: tuple[Signature, dict[str, Array], bytes, int], extra: bytes
) -> None:
    signature, _, body, header_length = case
    with pytest.raises(BadRequestError, match="left over"):
        RequestDecoder(signature).decode(body + extra, header_length)


@unhurried
@given(models(utf8=False), st.data())
def test_tritonclient_reads_what_we_encode_in_binary(
    model: tuple[Signature, dict[str, Array]], data: st.DataObject
) -> None:
    signature, arrays = model
    names = data.draw(st.lists(st.sampled_from(list(arrays)), unique=True))
    outputs = tuple(RequestedOutput(name, True) for name in names)
    request = InferRequest(None, {}, 1, outputs, True, {})
    body, header_length = encode("m", "v", "1", request, arrays, signature)
    result = triton.InferenceServerClient.parse_response_body(body, header_length=header_length)
    for name in names or list(arrays):
        assert_same(result.as_numpy(name), arrays[name])


@unhurried
@given(models())
def test_tritonclient_reads_what_we_encode_in_json(model: tuple[Signature, dict[str, Array]]) -> None:
    signature, arrays = model
    body, header_length = encode("m", "v", None, InferRequest(None, {}, 1, (), False, {}), arrays, signature)
    assert header_length is None
    result = triton.InferenceServerClient.parse_response_body(body)
    for name, array in arrays.items():
        # tritonclient gives JSON strings back as str.
        assert_same(result.as_numpy(name), as_json(array))


@unhurried
@given(models(), st.booleans())
def test_decodes_what_tritonclient_writes(model: tuple[Signature, dict[str, Array]], in_binary: bool) -> None:
    signature, arrays = model
    inputs = []
    for spec in signature.inputs:
        array = arrays[spec.name]
        tensor = triton.InferInput(spec.name, list(array.shape), DTYPE_DATATYPES[spec.dtype])
        inputs.append(tensor.set_data_from_numpy(array, binary_data=in_binary))
    body, header_length = triton.InferenceServerClient.generate_request_body(
        inputs, request_id="7", parameters={"tier": "fast"}
    )
    request = RequestDecoder(signature).decode(body, header_length)
    assert (request.id, request.binary_output, request.parameters) == ("7", True, {"tier": "fast"})
    for name, array in arrays.items():
        assert_same(request.inputs[name], array)


@pytest.mark.parametrize("in_binary", [True, False])
def test_tritonclients_requested_outputs_are_honoured(in_binary: bool) -> None:
    tensor = triton.InferInput("image", [1, 4], "FP32").set_data_from_numpy(np.ones((1, 4), np.float32))
    wanted = [triton.InferRequestedOutput("logits", binary_data=in_binary)]
    body, header_length = triton.InferenceServerClient.generate_request_body([tensor], wanted)
    assert RequestDecoder(DIGITS).decode(body, header_length).outputs == (
        RequestedOutput("logits", in_binary),
    )


# ---- nothing but BadRequestError


@unhurried
@given(st.binary(max_size=200), st.none() | st.integers(-3, 210))
def test_arbitrary_bytes_are_a_400(body: bytes, header_length: int | None) -> None:
    with pytest.raises(BadRequestError):
        RequestDecoder(DIGITS).decode(body, header_length)


@unhurried
@given(JSON_VALUES, st.none() | st.binary(max_size=20))
def test_arbitrary_json_is_a_400(document: object, tail: bytes | None) -> None:
    with pytest.raises(BadRequestError):
        decode(document, tail=tail)


@unhurried
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


@unhurried
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


# ---- messages: which, expected, given, and the remedy


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


# ---- what a request means


def test_axes_of_one_name_must_agree() -> None:
    ids = {"name": "ids", "datatype": "INT64", "shape": [1, 2], "data": [1, 2]}
    mask = {"name": "mask", "datatype": "BOOL", "shape": [1, 3], "data": [True, True, False]}
    text = {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": ["é"]}
    with pytest.raises(BadRequestError, match='disagree on axis "tokens"'):
        decode({"inputs": [ids, mask, text]}, MIXED)
    with pytest.raises(BadRequestError, match='input "mask" is missing'):
        decode({"inputs": [ids, text]}, MIXED)
    request = decode({"inputs": [text, mask | {"shape": [1, 2], "data": [[True, False]]}, ids]}, MIXED)
    assert request.inputs["text"].tolist() == [["é".encode()]]
    assert request.inputs["mask"].tolist() == [[True, False]]


def test_a_shape_that_fitted_once_is_no_pass_for_another() -> None:
    decoder = RequestDecoder(DIGITS)
    good, bad = (orjson.dumps({"inputs": [image(shape=shape)]}) for shape in ([1, 4], [4, 1]))
    for _ in range(2):
        assert decoder.decode(good).rows == 1
        with pytest.raises(BadRequestError, match="has shape"):
            decoder.decode(bad)


def test_allowed_non_finite_numbers_come_in_binary() -> None:
    body = orjson.dumps({"inputs": [image(data=None, parameters={"binary_data_size": 16})]})
    values = np.array([np.nan, np.inf, -np.inf, 1], np.float32)
    request = RequestDecoder(DIGITS, allow_non_finite=True).decode(body + values.tobytes(), len(body))
    assert_same(request.inputs["image"], values.reshape(1, 4))


def test_aligned_binary_data_is_not_copied() -> None:
    header = orjson.dumps({"inputs": [image(data=None, parameters={"binary_data_size": 16})]})
    header += b" " * (-len(header) % 64)
    body = header + b"\x00" * 16
    array = RequestDecoder(DIGITS).decode(body, len(header)).inputs["image"]
    assert np.shares_memory(array, np.frombuffer(body, np.uint8))


def test_binary_data_output_is_the_default_of_outputs_that_do_not_say() -> None:
    document = {
        "inputs": [
            {"name": "ids", "datatype": "INT64", "shape": [1, 1], "data": [1]},
            {"name": "mask", "datatype": "BOOL", "shape": [1, 1], "data": [True]},
            {"name": "text", "datatype": "BYTES", "shape": [1, 1], "data": [""]},
        ],
        "outputs": [{"name": "label", "parameters": {"binary_data": False}}, {"name": "score"}],
        "parameters": {"binary_data_output": True, "min_accuracy": 0.9},
    }
    request = decode(document, MIXED)
    assert request.outputs == (RequestedOutput("label", False), RequestedOutput("score", True))
    assert request.parameters == {"min_accuracy": 0.9}


@pytest.mark.parametrize("fields", [{}, {"id": ""}])
def test_no_id_and_an_empty_one_are_none(fields: dict[str, str]) -> None:
    assert decode({"inputs": [image()]} | fields).id is None


# ---- what a response says


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
