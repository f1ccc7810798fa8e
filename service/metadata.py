"""What the Open Inference Protocol tells of a model: its versions, inputs and outputs."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from compression.signature import Signature, TensorSpec
from service.tensors import DTYPE_DATATYPES


def metadata(
    name: str, versions: Iterable[str], signature: Signature, platform: str, raw: TensorSpec | None = None
) -> dict[str, Any]:
    """The answer to `GET /v2/models/{model}`; symbolic axes have length -1.

    An input that stands in for all of them (`raw`) is named apart, so that clients find what they know.

    Raises:
        KeyError: The protocol has no datatype for a tensor's dtype.
    """
    instead = {} if raw is None else {"alternative_inputs": [_tensor_metadata(raw)]}
    return instead | {
        "name": name,
        "versions": list(versions),
        "platform": platform,
        "inputs": [_tensor_metadata(spec) for spec in signature.inputs],
        "outputs": [_tensor_metadata(spec) for spec in signature.outputs],
    }


def _tensor_metadata(spec: TensorSpec) -> dict[str, Any]:
    return {"name": spec.name, "datatype": DTYPE_DATATYPES[spec.dtype], "shape": spec.wire_shape}
