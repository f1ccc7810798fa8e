"""What fits comes through bit for bit, also with tritonclient at the other end."""

from __future__ import annotations

import math
import struct
from typing import Any

import numpy as np
import orjson
import pytest
import tritonclient.http as triton
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from compression.signature import Array, Signature, TensorSpec
from service.errors import BadRequestError
from service.protocol import InferRequest, RequestDecoder, RequestedOutput, encode
from service.tensors import DATATYPES, DTYPE_DATATYPES
from tests.service.protocol.exchanges import DIGITS, assert_same, byte_array


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


def as_json(array: Array) -> Array:
    return array if array.dtype != object else np.vectorize(bytes.decode, otypes=[object])(array)


def binary(array: Array) -> bytes:
    if array.dtype != object:
        return array.tobytes()
    return b"".join(struct.pack("<I", len(element)) + element for element in array.reshape(-1))


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


@given(requests(), st.booleans())
def test_reads_a_memoryview_like_bytes(
    case: tuple[Signature, dict[str, Array], bytes, int], odd: bool
) -> None:
    signature, arrays, body, header_length = case
    view = memoryview(b"x" * odd + body)[odd:]
    request = RequestDecoder(signature).decode(view, header_length)
    for name, array in arrays.items():
        assert_same(request.inputs[name], array)


@given(requests(only_binary=True), st.data())
def test_any_truncation_of_a_binary_body_is_a_400(
    case: tuple[Signature, dict[str, Array], bytes, int], data: st.DataObject
) -> None:
    signature, _, body, header_length = case
    kept = data.draw(st.integers(0, len(body) - 1))
    with pytest.raises(BadRequestError):
        RequestDecoder(signature).decode(body[:kept], header_length)


@given(requests(only_binary=True), st.binary(min_size=1, max_size=4))
def test_anything_behind_the_last_input_is_a_400(
    case: tuple[Signature, dict[str, Array], bytes, int], extra: bytes
) -> None:
    signature, _, body, header_length = case
    with pytest.raises(BadRequestError, match="left over"):
        RequestDecoder(signature).decode(body + extra, header_length)


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


@given(models())
def test_tritonclient_reads_what_we_encode_in_json(model: tuple[Signature, dict[str, Array]]) -> None:
    signature, arrays = model
    body, header_length = encode("m", "v", None, InferRequest(None, {}, 1, (), False, {}), arrays, signature)
    assert header_length is None
    result = triton.InferenceServerClient.parse_response_body(body)
    for name, array in arrays.items():
        # tritonclient gives JSON strings back as str.
        assert_same(result.as_numpy(name), as_json(array))


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
