"""BentoML's own `predict` API over the same core: plain JSON in, plain JSON out."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from time import perf_counter
from typing import Any

import orjson

from compression.signature import TensorSpec
from service.errors import BadRequestError
from service.inference import Inference
from service.protocol import InferRequest, RequestDecoder
from service.tensors import DTYPE_DATATYPES


async def predict(
    core: Inference,
    name: str,
    inputs: Mapping[str, Any],
    version: str | None,
    wanted: Mapping[str, Any],
    request_id: str,
) -> dict[str, Any]:
    """Answers named inputs, each a nested list of rows, or a text or picture per row.

    Args:
        core: Answers them.
        name: The model.
        inputs: What it is asked, by name.
        version: The variant that is to answer; None or empty to route.
        wanted: The protocol's parameters, such as `tier`; None or empty for those that are left out.
        request_id: What the request is called.

    Raises:
        ServiceError: As the data plane would have met it.
    """
    arrived = perf_counter()
    model = core.fleet.find(name)
    pinned = model.pinned(version) if version else None
    raw = model.transforms.raw
    specs = model.signature.inputs if raw is None else (*model.signature.inputs, raw)
    request = _request(specs, model.decoder, inputs)
    parameters = {key: value for key, value in wanted.items() if value is not None and value != ""}
    model.inflight += 1
    try:
        answer = await core.infer(model, pinned, request, parameters, arrived, request_id=request_id)
    finally:
        model.inflight -= 1
    assert answer.outputs is not None  # a failure is an exception
    return {
        "outputs": {name: array.tolist() for name, array in answer.outputs.items()},
        "variant": answer.variant.name,
        "tier": answer.tier,
        "degraded": answer.degraded_from is not None,
        "request_id": answer.request_id,
    }


def _request(specs: Iterable[TensorSpec], decoder: RequestDecoder, inputs: Mapping[str, Any]) -> InferRequest:
    """The same request as the protocol would bring it, so that one reader checks both."""
    datatypes = {spec.name: DTYPE_DATATYPES[spec.dtype] for spec in specs}
    tensors = [
        {"name": name, "datatype": datatypes.get(name, ""), "shape": _shape(rows), "data": rows}
        for name, rows in inputs.items()
    ]
    try:
        return decoder.decode(orjson.dumps({"inputs": tensors}))
    except TypeError as error:
        raise BadRequestError(f"the inputs are nothing that JSON knows: {error}. Send lists.") from error


def _shape(rows: Any) -> list[int]:
    """The lengths along the first element of each level."""
    shape = []
    while isinstance(rows, list):
        shape.append(len(rows))
        if not rows:
            break
        rows = rows[0]
    return shape
