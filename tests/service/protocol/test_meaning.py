"""What a request means once it is decoded."""

from __future__ import annotations

import numpy as np
import orjson
import pytest

from service.errors import BadRequestError
from service.protocol import RequestDecoder, RequestedOutput
from tests.service.protocol.exchanges import DIGITS, MIXED, assert_same, decode, image


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
