"""The OpenAPI document: tools accept it, and it says of a body what the codec does."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import jsonschema_rs
import numpy as np
import orjson
import pytest
import schemathesis
from hypothesis import given, settings
from hypothesis import strategies as st

from compression.signature import Signature, TensorSpec
from service.metadata import metadata
from service.openapi import BINARY, JSON, DocumentedModel, document, example_request
from service.protocol import InferRequest, RequestDecoder, encode
from service.tensors import DATATYPES

DIGITS = DocumentedModel(
    "digits",
    Signature(
        (TensorSpec("image", "float32", ("batch", 4)),), (TensorSpec("logits", "float32", ("batch", 3)),)
    ),
    ("fp32", "int8-static", "int8-static@3f2a9c0d1e4b"),
    ("accurate", "balanced", "fast"),
)
TEXT = DocumentedModel(
    "text v1",
    Signature(
        (
            TensorSpec("ids", "int64", ("batch", "tokens")),
            TensorSpec("mask", "bool", ("batch", "tokens")),
            TensorSpec("text", "bytes", ("batch", 1)),
        ),
        (TensorSpec("score", "float16", ("batch",)), TensorSpec("label", "bytes", ("batch", 1))),
    ),
    ("fp32",),
    (),
)
DOCUMENT = document([DIGITS, TEXT], "1.2.3")
INFER = DOCUMENT["paths"]["/v2/models/{model}/infer"]["post"]


def fits(schema: str, body: object) -> bool:
    return jsonschema_rs.is_valid(DOCUMENT["components"]["schemas"][schema], body)


def references(node: object) -> Iterator[str]:
    if isinstance(node, dict):
        if "$ref" in node:
            yield node["$ref"]
        for value in node.values():
            yield from references(value)
    elif isinstance(node, list):
        for value in node:
            yield from references(value)


def resolve(reference: str, whole: dict[str, Any]) -> Any:
    node: Any = whole
    for part in reference.removeprefix("#/").split("/"):
        node = node[part]
    return node


@pytest.mark.parametrize("models", [[], [DIGITS], [DIGITS, TEXT]])
def test_it_is_a_valid_document_whatever_is_loaded(models: list[DocumentedModel]) -> None:
    whole = orjson.loads(orjson.dumps(document(models)))
    schema = schemathesis.openapi.from_dict(whole)
    schema.validate()
    assert len([operation.ok() for operation in schema.get_all_operations()]) == 16
    for reference in references(whole):
        assert resolve(reference, whole)


def test_it_names_every_path_of_the_protocol() -> None:
    model, variant = "/v2/models/{model}", "/v2/models/{model}/versions/{variant}"
    assert {
        (method, path) for path, item in DOCUMENT["paths"].items() for method in item.keys() & {"get", "post"}
    } == {
        ("get", "/v2"),
        ("get", "/v2/health/live"),
        ("get", "/v2/health/ready"),
        ("get", "/v2/models/stats"),
        ("get", "/v2/openapi.json"),
        *[("get", f"{path}{of}") for path in (model, variant) for of in ("", "/ready", "/stats")],
        *[("post", f"{path}/infer") for path in (model, variant)],
        *[
            ("post", f"/v2/repository/{of}")
            for of in ("index", "models/{model}/load", "models/{model}/unload")
        ],
    }


def test_operation_ids_are_unique() -> None:
    ids = [
        item[method]["operationId"]
        for item in DOCUMENT["paths"].values()
        for method in item.keys() & {"get", "post"}
    ]
    assert len(ids) == len(set(ids))


def test_names_are_those_of_what_is_loaded() -> None:
    parameters = DOCUMENT["components"]["parameters"]
    assert parameters["Model"]["schema"]["enum"] == ["digits", "text v1"]
    assert parameters["Variant"]["schema"]["enum"] == ["fp32", "int8-static", "int8-static@3f2a9c0d1e4b"]
    assert parameters["Tier"]["schema"]["enum"] == ["accurate", "balanced", "fast"]


def test_an_inference_may_end_in_every_status_that_the_gateway_has_for_it() -> None:
    statuses = {200, 400, 401, 403, 404, 413, 414, 415, 422, 429, 500, 503, 504}
    assert INFER["responses"].keys() == {str(status) for status in statuses}
    assert INFER["requestBody"]["content"].keys() == {JSON, BINARY}
    assert INFER["responses"]["200"]["content"].keys() == {JSON, BINARY}
    assert INFER["responses"]["200"]["headers"].keys() >= {
        "X-Mipgate-Variant",
        "X-Mipgate-Tier",
        "X-Mipgate-Degraded",
        "X-Mipgate-Request-Id",
        "Server-Timing",
    }


def test_errors_have_one_form_and_say_when_to_try_again() -> None:
    for key, response in DOCUMENT["components"]["responses"].items():
        schema = resolve(response["content"][JSON]["schema"]["$ref"], DOCUMENT)
        assert jsonschema_rs.is_valid(schema, {"error": "fact. remedy"})
        assert not jsonschema_rs.is_valid(schema, {"detail": "?"})
        assert ("Retry-After" in response["headers"]) == (key in {"Error429", "Error503"})


@pytest.mark.parametrize("model", [DIGITS, TEXT])
def test_an_example_request_is_accepted_by_its_schema_and_by_the_codec(model: DocumentedModel) -> None:
    example = INFER["requestBody"]["content"][JSON]["examples"][model.name]["value"]
    assert fits(f"{model.name.replace(' ', '_')}.InferRequest", example)
    assert RequestDecoder(model.signature).decode(orjson.dumps(example)).rows == 1


def test_a_model_with_a_large_input_has_no_example() -> None:
    signature = Signature((TensorSpec("image", "float32", ("batch", 3, 224, 224)),), ())
    large = DocumentedModel("large", signature, ("fp32",), ())
    assert example_request(large) is None
    assert (
        "examples"
        not in document([large])["paths"]["/v2/models/{model}/infer"]["post"]["requestBody"]["content"][JSON]
    )


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({}, True),
        ({"data": [[1, 2, 3, 4]]}, True),
        ({"shape": [2, 4], "data": [1, 2, 3, 4, 5, 6, 7, 8]}, True),
        ({"data": None, "parameters": {"binary_data_size": 16}}, True),
        ({"parameters": {"binary_data_size": 16}}, False),
        ({"data": None}, False),
        ({"data": [1, 2, 3, "4"]}, False),
        ({"data": [1, 2, 3, 1e39]}, False),
        ({"data": [[1, 2, 3]]}, False),
        ({"data": []}, False),
        ({"shape": [4]}, False),
        ({"shape": [0, 4]}, False),
        ({"shape": [1, 5]}, False),
        ({"datatype": "FP64"}, False),
        ({"name": "picture"}, False),
    ],
)
def test_the_schema_of_an_input_accepts_what_the_codec_accepts(
    changes: dict[str, Any], accepted: bool
) -> None:
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]} | changes
    tensor = {key: value for key, value in tensor.items() if value is not None}
    assert fits("digits.InferRequest", {"inputs": [tensor]}) == accepted


@pytest.mark.parametrize(
    ("changes", "accepted"),
    [
        ({"id": "7", "outputs": [{"name": "logits", "parameters": {"binary_data": True}}]}, True),
        ({"parameters": {"tier": "fast", "min_accuracy": 0.9, "priority": 1}}, True),
        ({"parameters": {"priority": "batch", "timeout": 20000}}, True),
        ({"parameters": {"priority": "urgent"}}, False),
        ({"id": None}, False),
        ({"id": "\n"}, False),
        ({"id": "a" * 257}, False),
        ({"inputs": []}, False),
        ({"outputs": [{"name": "probs"}]}, False),
        ({"parameters": {"tier": "best"}}, False),
        ({"parameters": {"min_accuracy": 2}}, False),
        ({"parameters": {"other": None}}, False),
    ],
)
def test_the_schema_of_a_request_accepts_what_the_gateway_accepts(
    changes: dict[str, Any], accepted: bool
) -> None:
    request = {"inputs": [{"name": "image", "datatype": "FP32", "shape": [1, 4], "data": [1, 2, 3, 4]}]}
    assert fits("digits.InferRequest", request | changes) == accepted


def test_all_inputs_are_required_in_any_order() -> None:
    example = example_request(TEXT)
    assert example is not None
    inputs = example["inputs"]
    assert fits("text_v1.InferRequest", {"inputs": inputs[::-1]})
    assert not fits("text_v1.InferRequest", {"inputs": inputs[:2]})
    assert not fits("text_v1.InferRequest", {"inputs": [*inputs[:2], inputs[0]]})


def test_answers_and_metadata_fit_their_schemas() -> None:
    arrays = {"score": np.array([np.nan, 0.5], np.float16), "label": np.array([["a"], ["b"]], object)}
    told = {"variant": "fp32", "tier": "fast", "degraded": False, "request_id": "7"}
    for binary in (False, True):
        request = InferRequest(None, {}, 2, (), binary, {})
        body, length = encode("text v1", "fp32", "7", request, arrays, TEXT.signature, told)
        assert fits("text_v1.InferResponse", orjson.loads(body[:length]))
    assert fits("ModelMetadata", metadata("text v1", TEXT.variants, TEXT.signature, "onnxruntime"))


@given(
    st.sampled_from(list(DATATYPES.values())), st.lists(st.sampled_from(["batch", "axis", 1, 3]), max_size=3)
)
@settings(max_examples=30)
def test_any_signature_has_a_valid_document_and_example(dtype: str, axes: list[str | int]) -> None:
    spec = TensorSpec("x", dtype, tuple(axes))
    model = DocumentedModel("m", Signature((spec,), (spec,)), ("fp32",), ("fast",))
    whole = document([model])
    schemathesis.openapi.from_dict(whole).validate()
    example = example_request(model)
    assert jsonschema_rs.is_valid(whole["components"]["schemas"]["m.InferRequest"], example)
    assert RequestDecoder(model.signature).decode(orjson.dumps(example)).parameters == {"tier": "fast"}
