"""What a pass notes in a graph's metadata for its own `ensures`: the artifact itself says what was done."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from compression.base import BrokenPromiseError
from compression.model import OnnxModel

_PREFIX = "mipgate."


def noted(model: OnnxModel, name: str, document: Mapping[str, Any]) -> OnnxModel:
    """The model, with a JSON document under the pass's name."""
    model.proto.metadata_props.add(key=_PREFIX + name, value=json.dumps(document))
    return model


def note(model: OnnxModel, name: str) -> dict[str, Any]:
    """What the pass of that name noted.

    Raises:
        BrokenPromiseError: It noted nothing: it did not make this graph.
    """
    for entry in model.proto.metadata_props:
        if entry.key == _PREFIX + name:
            return dict(json.loads(entry.value))
    raise BrokenPromiseError(f"the graph carries no note of {name}. Return what its run made.")
