"""The OpenAPI 3.1 document of everything under /v2, written from the models that are loaded.

Pure: the same models give the same document. The schemas say as much as JSON Schema can about what
`service.protocol` takes: it cannot say that `data` has as many values as `shape` promises.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Final

import numpy as np

from compression.signature import Signature, TensorSpec
from service.schemas import (
    MAX_LATENCY_MS,
    MIN_ACCURACY,
    PRIORITY,
    STATIC_SCHEMAS,
    STICKY_KEY,
    Schema,
    names_schema,
    request_schema,
    response_schema,
)
from service.tensors import DTYPE_DATATYPES

JSON: Final = "application/json"
BINARY: Final = "application/octet-stream"
# An example with more values than this helps nobody read the document.
MAX_EXAMPLE_VALUES: Final = 256

_BYTES_SCHEMA: Final[Schema] = {"type": "string", "format": "binary"}

_ERRORS: Final[dict[int, str]] = {
    400: "Malformed, or a wrong name, datatype, shape, tier or parameter; says which, expected, given.",
    401: "No key, or an unknown one.",
    403: "The key has not the role that this needs.",
    404: "Unknown model, variant or path; lists what exists.",
    409: "The gateway cannot make this change as it runs: it serves a Bento, whose variants are fixed.",
    413: "The body is larger than the gateway takes.",
    414: "The path is longer than the gateway takes.",
    415: "The body is neither JSON nor binary tensors.",
    422: "No variant could ever meet what was asked; says the nearest that can.",
    429: "The key's rate limit.",
    500: "The runtime failed, or the gateway has a bug; the server's log has the details.",
    503: "No capacity within the deadline, or nothing that meets the floor can serve now.",
    504: "The request was accepted, but its deadline passed.",
}
_RETRYABLE: Final = frozenset({429, 503})
_OPEN: Final = (414, 500)
_READ: Final = (401, 403, 414, 429, 500)
_MODEL: Final = (401, 403, 404, 414, 429, 500)
_OPERATE: Final = (400, 401, 403, 404, 409, 413, 414, 415, 429, 500, 503)
_INFER: Final = (400, 401, 403, 404, 413, 414, 415, 422, 429, 500, 503, 504)


@dataclass(frozen=True, slots=True)
class DocumentedModel:
    """What the document says of one loaded model.

    Attributes:
        name: The protocol model.
        signature: Its inputs and outputs.
        variants: The protocol versions it answers to.
        tiers: The tiers a request may ask for.
        raw: The text or picture that a request may send in the place of all inputs.
        example: A value of it that works.
    """

    name: str
    signature: Signature
    variants: tuple[str, ...]
    tiers: tuple[str, ...]
    raw: TensorSpec | None = None
    example: str = ""


def document(models: Iterable[DocumentedModel], version: str = "2") -> dict[str, Any]:
    """The OpenAPI document of the inference protocol for the loaded models.

    Args:
        models: The loaded models, in the order in which the document shall name them.
        version: The version of the API that the document states.

    Returns:
        A JSON object; the schemas of a model's bodies are components named after it.

    Raises:
        KeyError: The protocol has no datatype for a tensor's dtype.
    """
    loaded = list(models)
    return {
        "openapi": "3.1.0",
        "info": {
            "title": "Mipgate",
            "version": version,
            "summary": "Open Inference Protocol v2; each request gets the variant that fits it.",
            "license": {"name": "Apache-2.0", "identifier": "Apache-2.0"},
        },
        "paths": _server_paths() | _model_paths(loaded) | _repository_paths(),
        "components": {
            "parameters": _parameters(loaded),
            "headers": _HEADERS,
            "schemas": STATIC_SCHEMAS | _model_schemas(loaded),
            "responses": {f"Error{status}": _error(status) for status in _ERRORS},
        },
    }


# ---- paths


def _server_paths() -> Schema:
    return {
        "/v2": {"get": _operation("server", "Server metadata.", _json("ServerMetadata"), _READ)},
        "/v2/health/live": {"get": _operation("live", "Whether the process runs.", _json("Live"), _OPEN)},
        "/v2/health/ready": {
            "get": _operation("ready", "Whether any model can serve.", _json("Ready"), (*_OPEN, 503))
        },
        "/v2/models/stats": {
            "get": _operation(
                "stats_all", "Triton's statistics of all models.", _json("ModelStatistics"), _READ
            )
        },
        "/v2/openapi.json": {"get": _operation("openapi", "This document.", _json("OpenApi"), _READ)},
    }


def _model_paths(models: Sequence[DocumentedModel]) -> Schema:
    paths: Schema = {}
    for path, suffix, names in (
        ("/v2/models/{model}", "", ("Model",)),
        ("/v2/models/{model}/versions/{variant}", "_variant", ("Model", "Variant")),
    ):
        parameters = {"parameters": [_ref("parameters", name) for name in names]}
        metadata = _operation(
            f"metadata{suffix}", "Names, datatypes, shapes.", _json("ModelMetadata"), _MODEL
        )
        ready = _operation(
            f"model_ready{suffix}", "Whether it can serve.", _json("ModelReady"), (*_MODEL, 503)
        )
        stats = _operation(f"stats{suffix}", "Triton's statistics.", _json("ModelStatistics"), _MODEL)
        paths[path] = parameters | {"get": metadata}
        paths[f"{path}/ready"] = parameters | {"get": ready}
        paths[f"{path}/infer"] = parameters | {"post": _infer(f"infer{suffix}", models)}
        paths[f"{path}/stats"] = parameters | {"get": stats}
    return paths


def _repository_paths() -> Schema:
    index = _operation("index", "What is registered, and its state.", _json("RepositoryIndex"), _OPERATE)
    paths = {"/v2/repository/index": {"post": index | _optional_body("RepositoryIndexRequest")}}
    for verb in ("load", "unload"):
        change = _operation(verb, f"{verb.capitalize()}s a model; needs the role `operate`.", None, _OPERATE)
        # Not the parameter Model: what is to be loaded is not among the loaded.
        change |= {"parameters": [_ref("parameters", "RegisteredModel")]}
        paths[f"/v2/repository/models/{{model}}/{verb}"] = {
            "post": change | _optional_body("RepositoryChange")
        }
    return paths


def _infer(operation_id: str, models: Sequence[DocumentedModel]) -> Schema:
    requests = {"anyOf": [_ref("schemas", _key(model, "InferRequest")) for model in models]} if models else {}
    answers = {"anyOf": [_ref("schemas", _key(model, "InferResponse")) for model in models]} if models else {}
    examples = {model.name: {"value": example} for model in models if (example := example_request(model))} | {
        f"{model.name}, {model.raw.name}": {"value": raw_example(model, model.raw)}
        for model in models
        if model.raw is not None
    }
    operation = _operation(operation_id, "Runs the model on a batch.", None, _INFER)
    operation["parameters"] = [_ref("parameters", name) for name in _INFER_HEADERS]
    operation["requestBody"] = {
        "required": True,
        "content": {
            JSON: {"schema": requests} | ({"examples": examples} if examples else {}),
            BINARY: {"schema": _BYTES_SCHEMA},
        },
    }
    names = ("Variant", "Tier", "Degraded", "Request-Id", "Arm")
    operation["responses"]["200"] = {
        "description": "The outputs: JSON, or binary behind Inference-Header-Content-Length bytes of JSON.",
        "headers": {f"X-Mipgate-{name}": _ref("headers", name) for name in names}
        | {name: _ref("headers", name) for name in ("Server-Timing", "Inference-Header-Content-Length")},
        "content": {JSON: {"schema": answers}, BINARY: {"schema": _BYTES_SCHEMA}},
    }
    return operation


def _operation(operation_id: str, summary: str, content: Schema | None, errors: Iterable[int]) -> Schema:
    success: Schema = {"description": summary} | ({"content": content} if content else {})
    responses = {str(status): _ref("responses", f"Error{status}") for status in errors}
    return {"operationId": operation_id, "summary": summary, "responses": {"200": success} | responses}


def _optional_body(schema: str) -> Schema:
    return {"requestBody": {"required": False, "content": _json(schema)}}


def _error(status: int) -> Schema:
    headers = {"X-Mipgate-Request-Id": {"schema": {"type": "string"}}}
    if status in _RETRYABLE:
        headers["Retry-After"] = _ref("headers", "Retry-After")
    return {"description": _ERRORS[status], "headers": headers, "content": _json("Error")}


# ---- parameters and headers


def _parameters(models: Sequence[DocumentedModel]) -> Schema:
    variants = names_schema(variant for model in models for variant in model.variants)
    tiers = names_schema(tier for model in models for tier in model.tiers)
    headers = {name: dict(_INFER_HEADERS[name]) for name in _INFER_HEADERS}
    headers["Tier"]["schema"] = tiers
    return {
        "Model": _in_path("model", names_schema(model.name for model in models)),
        "RegisteredModel": _in_path(
            "model", {"type": "string", "pattern": r"^[A-Za-z0-9._-]+$", "maxLength": 128}
        ),
        "Variant": _in_path("variant", variants),
    } | {key: {"in": "header", "required": False} | header for key, header in headers.items()}


def _in_path(name: str, schema: Schema) -> Schema:
    return {"name": name, "in": "path", "required": True, "schema": schema}


_INFER_HEADERS: Final[dict[str, Schema]] = {
    "Tier": {"name": "X-Mipgate-Tier"},
    "MinAccuracy": {"name": "X-Mipgate-Min-Accuracy", "schema": MIN_ACCURACY},
    "MaxLatencyMs": {"name": "X-Mipgate-Max-Latency-Ms", "schema": MAX_LATENCY_MS},
    "AllowDegrade": {
        "name": "X-Mipgate-Allow-Degrade",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "Priority": {"name": "X-Mipgate-Priority", "schema": PRIORITY},
    "StickyKey": {"name": "X-Mipgate-Sticky-Key", "schema": STICKY_KEY},
    "HeaderLength": {
        "name": "Inference-Header-Content-Length",
        "description": "Length in bytes of the JSON in front of binary tensors; left out when all is JSON.",
        "schema": {"type": "integer", "minimum": 0},
    },
}
_HEADERS: Final[Schema] = {
    "Variant": {"required": True, "description": "Which variant answered.", "schema": {"type": "string"}},
    "Tier": {"required": True, "description": "The tier that was asked for.", "schema": {"type": "string"}},
    "Degraded": {
        "required": True,
        "description": "Whether the answer came from below the tier's floor.",
        "schema": {"type": "string", "enum": ["true", "false"]},
    },
    "Request-Id": {
        "required": True,
        "description": "Names this request in logs.",
        "schema": {"type": "string"},
    },
    "Arm": {"description": "The arm of the rollout, when one runs.", "schema": {"type": "string"}},
    "Server-Timing": {
        "required": True,
        "description": "Milliseconds in transforms, the queue and the model: `queue;dur=0.1, infer;dur=0.4`.",
        "schema": {"type": "string"},
    },
    "Inference-Header-Content-Length": {
        "description": "Length in bytes of the JSON in front of binary tensors.",
        "schema": {"type": "integer", "minimum": 1},
    },
    "Retry-After": {
        "required": True,
        "description": "Seconds after which trying again makes sense.",
        "schema": {"type": "integer", "minimum": 1},
    },
}


# ---- what belongs to a model


def example_request(model: DocumentedModel) -> dict[str, Any] | None:
    """A valid JSON request of one row of zeros, symbolic axes of length 1; None when it would be too long."""
    inputs = []
    for spec in model.signature.inputs:
        shape = [axis if isinstance(axis, int) else 1 for axis in spec.shape]
        if math.prod(shape) > MAX_EXAMPLE_VALUES:
            return None
        values = [""] if spec.dtype == "bytes" else np.zeros(1, spec.dtype).tolist()
        inputs.append(
            {
                "name": spec.name,
                "shape": shape,
                "datatype": DTYPE_DATATYPES[spec.dtype],
                "data": values * math.prod(shape),
            }
        )
    return {"inputs": inputs} | ({"parameters": {"tier": model.tiers[0]}} if model.tiers else {})


def raw_example(model: DocumentedModel, raw: TensorSpec) -> dict[str, Any]:
    """A valid JSON request of one text or picture."""
    tensor = {"name": raw.name, "shape": [1], "datatype": DTYPE_DATATYPES[raw.dtype], "data": [model.example]}
    return {"inputs": [tensor]}


def _model_schemas(models: Sequence[DocumentedModel]) -> Schema:
    return {
        _key(model, "InferRequest"): request_schema(model.signature, model.tiers, model.raw)
        for model in models
    } | {_key(model, "InferResponse"): response_schema(model.name, model.signature) for model in models}


def _key(model: DocumentedModel, what: str) -> str:
    """A component's key; OpenAPI allows few characters there."""
    return f"{re.sub(r'[^A-Za-z0-9._-]', '_', model.name)}.{what}"


def _ref(kind: str, name: str) -> Schema:
    return {"$ref": f"#/components/{kind}/{name}"}


def _json(schema: str) -> Schema:
    return {JSON: {"schema": _ref("schemas", schema)}}
