"""Values inside a graph: what every operator reads and writes, for rows that are given."""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import onnx

from compression.base import CompressionError
from compression.inference import open_session
from compression.model import OnnxModel
from compression.signature import Array


class ProbeError(CompressionError):
    """The graph does not run with its inside laid open."""


def probe(model: OnnxModel, names: Iterable[str], inputs: Mapping[str, Array]) -> dict[str, Array]:
    """Values of tensors anywhere in the main graph, computed as the graph is written, without fusions.

    Args:
        model: The graph.
        names: Tensors to read; those that are no arrays, such as sequences, are left out.
        inputs: Arrays `(rows, ...)` by input name.

    Raises:
        ProbeError: onnxruntime refuses the graph.
    """
    wanted = list(dict.fromkeys(names))
    opened = onnx.ModelProto()
    opened.CopyFrom(model.proto)
    known = {value.name for value in opened.graph.output}
    opened.graph.output.extend(onnx.ValueInfoProto(name=name) for name in wanted if name not in known)
    try:
        session = open_session(opened, fused=False)
        values = session.run(wanted, {spec.name: inputs[spec.name] for spec in model.signature.inputs})
    except Exception as error:  # onnxruntime's errors have no common base
        raise ProbeError(f"the graph does not run with its inside laid open: {error}") from error
    return {name: value for name, value in zip(wanted, values, strict=True) if hasattr(value, "nbytes")}


def constants(graph: onnx.GraphProto) -> dict[str, frozenset[str]]:
    """Tensors of the main graph that no input changes, each with the stored tensors that it is made of."""
    made_of = {tensor.name: frozenset({tensor.name}) for tensor in graph.initializer}
    for node in graph.node:
        given = [name for name in node.input if name]
        is_random = node.op_type.startswith("Random")
        has_body = any(attribute.HasField("g") or attribute.graphs for attribute in node.attribute)
        if is_random or has_body or not all(name in made_of for name in given):
            continue
        sources = frozenset(node.output) if not given else frozenset().union(*(made_of[n] for n in given))
        made_of |= {name: sources for name in node.output if name}
    return made_of
