"""JSON Schemas of the protocol's bodies: those that every gateway has, and those of one model."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import numpy as np

from compression.signature import Signature, TensorSpec
from service.protocol import MAX_ID_LENGTH
from service.routing import PRIORITIES
from service.tensors import DATATYPES, DTYPE_DATATYPES

Schema = dict[str, Any]

MIN_ACCURACY: Final[Schema] = {"type": "number", "minimum": 0, "maximum": 1}
MAX_LATENCY_MS: Final[Schema] = {"type": "number", "exclusiveMinimum": 0}
TIMEOUT_US: Final[Schema] = {"type": "number", "minimum": 0}
PRIORITY: Final[Schema] = {
    "anyOf": [{"type": "string", "enum": list(PRIORITIES)}, {"type": "integer", "minimum": 0}]
}
STICKY_KEY: Final[Schema] = {"type": "string", "minLength": 1}


def names_schema(names: Iterable[str]) -> Schema:
    """Exactly these strings; any string when there are none, for an empty enum is not valid."""
    known = list(dict.fromkeys(names))
    return {"type": "string", "enum": known} if known else {"type": "string"}


def request_schema(signature: Signature, tiers: Iterable[str], raw: TensorSpec | None = None) -> Schema:
    """The body of an inference request to a model with this signature and these tiers.

    Args:
        signature: What the model takes and gives.
        tiers: What a request may ask for.
        raw: An input that may stand in the place of all others.
    """
    inputs = _each_once([_input_schema(spec) for spec in signature.inputs])
    if raw is not None:
        inputs = {"anyOf": [inputs, _each_once([_input_schema(raw)])]}
    outputs = {
        "type": "object",
        "required": ["name"],
        "properties": {
            "name": names_schema(spec.name for spec in signature.outputs),
            "parameters": {"type": "object", "properties": {"binary_data": {"type": "boolean"}}},
        },
    }
    asked = {
        "tier": names_schema(tiers),
        "min_accuracy": MIN_ACCURACY,
        "max_latency_ms": MAX_LATENCY_MS,
        "allow_degrade": {"type": "boolean"},
        "sticky_key": STICKY_KEY,
        "timeout": TIMEOUT_US,
        "priority": PRIORITY,
        "binary_data_output": {"type": "boolean"},
        "top_k": {"type": "integer", "minimum": 1},
    }
    scalar = {"type": ["string", "number", "boolean"]}
    return {
        "type": "object",
        "required": ["inputs"],
        "properties": {
            "id": {"type": "string", "maxLength": MAX_ID_LENGTH, "pattern": "^[ -~]*$"},
            "inputs": inputs,
            "outputs": {"type": "array", "items": outputs, "maxItems": len(signature.outputs)},
            "parameters": {"type": "object", "properties": asked, "additionalProperties": scalar},
        },
    }


def _each_once(tensors: list[Schema]) -> Schema:
    """A list of all these tensors in any order."""
    together = {"type": "array", "minItems": len(tensors), "maxItems": len(tensors)}
    if len(tensors) == 1:
        return together | {"items": tensors[0]}
    names = [{"contains": {"properties": {"name": tensor["properties"]["name"]}}} for tensor in tensors]
    return together | {"items": {"anyOf": tensors}, "allOf": names}


def _input_schema(spec: TensorSpec) -> Schema:
    size = {"binary_data_size": {"type": "integer", "minimum": 0}}
    tensor = _tensor_schema(spec, _data_schema(spec, _element_schema(spec)))
    tensor["properties"]["parameters"] = {"type": "object", "properties": size}
    in_binary = {"properties": {"parameters": {"required": [*size]}}, "required": ["parameters"]}
    return tensor | {"oneOf": [{"required": ["data"]}, in_binary]}


def response_schema(name: str, signature: Signature) -> Schema:
    """The body of an answer of the model `name`."""
    outputs = []
    for spec in signature.outputs:
        element = _element_schema(spec)
        # NaN and infinities are null in JSON answers.
        nullable = {"type": ["number", "null"]} if element["type"] == "number" else element
        outputs.append(_tensor_schema(spec, {"type": "array", "items": nullable}))
        outputs[-1]["properties"]["parameters"] = {"type": "object"}
    told = {
        "variant": {"type": "string"},
        "tier": {"type": "string"},
        "arm": {"type": "string"},
        "degraded": {"type": "boolean"},
        "request_id": {"type": "string"},
    }
    return {
        "type": "object",
        "required": ["model_name", "model_version", "id", "parameters", "outputs"],
        "properties": {
            "model_name": {"const": name},
            "model_version": {"type": "string"},
            "id": {"type": "string"},
            "parameters": {
                "type": "object",
                "required": ["variant", "tier", "degraded", "request_id"],
                "properties": told,
            },
            "outputs": {"type": "array", "minItems": 1, "items": {"anyOf": outputs}},
        },
    }


def _tensor_schema(spec: TensorSpec, data: Schema) -> Schema:
    return {
        "type": "object",
        "required": ["name", "shape", "datatype"],
        "properties": {
            "name": {"const": spec.name},
            "shape": _shape_schema(spec),
            "datatype": {"const": DTYPE_DATATYPES[spec.dtype]},
            "data": data,
        },
    }


def _shape_schema(spec: TensorSpec) -> Schema:
    length = {"type": "integer", "minimum": 1}
    axes = [{"const": axis} if isinstance(axis, int) else length for axis in spec.shape]
    rank = {"type": "array", "items": length, "minItems": len(axes), "maxItems": len(axes)}
    # An empty prefixItems is not valid.
    return rank | {"prefixItems": axes} if axes else rank


def _data_schema(spec: TensorSpec, element: Schema) -> Schema:
    """Flat, or nested as the shape."""
    nested = element
    for axis in reversed(spec.shape):
        length = {"minItems": axis, "maxItems": axis} if isinstance(axis, int) else {"minItems": 1}
        nested = {"type": "array", "items": nested} | length
    flat = {"type": "array", "items": element, "minItems": 1}
    return flat if len(spec.shape) < 2 else {"anyOf": [flat, nested]}


def _element_schema(spec: TensorSpec) -> Schema:
    if spec.dtype == "bytes":
        return {"type": "string"}
    dtype = np.dtype(spec.dtype)
    if dtype.kind == "b":
        return {"type": "boolean"}
    if dtype.kind == "f":
        limit = float(np.finfo(dtype).max)
        return {"type": "number", "minimum": -limit, "maximum": limit}
    return {"type": "integer", "minimum": int(np.iinfo(dtype).min), "maximum": int(np.iinfo(dtype).max)}


def _object(**properties: Schema) -> Schema:
    """An object with exactly these required fields, and perhaps more."""
    return {"type": "object", "required": list(properties), "properties": properties}


def _list(items: Schema) -> Schema:
    return {"type": "array", "items": items}


_TEXT: Final[Schema] = {"type": "string"}
_COUNT: Final[Schema] = {"type": "integer", "minimum": 0}
_DURATION: Final[Schema] = _object(count=_COUNT, ns=_COUNT)
_TENSOR: Final[Schema] = _object(
    name=_TEXT, datatype=names_schema(DATATYPES), shape=_list({"type": "integer", "minimum": -1})
)
_STATISTICS: Final[Schema] = _object(
    name=_TEXT,
    version=_TEXT,
    last_inference=_COUNT,
    inference_count=_COUNT,
    execution_count=_COUNT,
    inference_stats=_object(
        **dict.fromkeys(
            ("success", "fail", "queue", "compute_input", "compute_infer", "compute_output"), _DURATION
        )
    ),
    batch_stats=_list(
        _object(batch_size=_COUNT, compute_input=_DURATION, compute_infer=_DURATION, compute_output=_DURATION)
    ),
)
STATIC_SCHEMAS: Final[dict[str, Schema]] = {
    "Error": _object(error={"type": "string", "minLength": 1}),
    "ServerMetadata": _object(name=_TEXT, version=_TEXT, extensions=_list(_TEXT)),
    "Live": _object(live={"type": "boolean"}),
    "Ready": _object(ready={"type": "boolean"}),
    "ModelReady": _object(name=_TEXT, ready={"type": "boolean"}),
    "ModelMetadata": _object(
        name=_TEXT, versions=_list(_TEXT), platform=_TEXT, inputs=_list(_TENSOR), outputs=_list(_TENSOR)
    ),
    "ModelStatistics": _object(model_stats=_list(_STATISTICS)),
    "RepositoryIndexRequest": {"type": "object", "properties": {"ready": {"type": "boolean"}}},
    "RepositoryIndex": _list(_object(name=_TEXT, state=_TEXT)),
    "RepositoryChange": {"type": "object", "properties": {"parameters": {"type": "object"}}},
    "OpenApi": _object(openapi=_TEXT, info={"type": "object"}, paths={"type": "object"}),
}
