"""Memory traffic of one inference: few operations are not few milliseconds when every byte must be moved.

Bytes and arithmetic intensity are those of the roofline model (Williams, Waterman and Patterson 2009).
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping

import onnx
import onnx_ir as ir

from compression.figures import Traffic
from compression.model import OnnxModel
from compression.probing import constants, probe
from compression.signature import Array

# They give the same bytes another name or shape.
_VIEWS = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity"}


def traffic(model: OnnxModel, row: Mapping[str, Array]) -> Traffic:
    """Measures what one inference moves.

    Args:
        model: The artifact.
        row: One real row, arrays `(1, ...)` by input name, which decides the lengths of symbolic axes.

    Raises:
        ProbeError: The graph does not run.
    """
    graph = model.proto.graph
    fixed = constants(graph)
    moving = [node for node in graph.node if not all(name in fixed for name in node.output if name)]
    inside = [name for node in moving for name in node.output if name]
    sizes = {name: value.nbytes for name, value in probe(model, inside, row).items()}
    sizes |= {name: array.nbytes for name, array in row.items()}
    stored = _stored_names(moving)
    moved = 0
    for node in moving:
        if node.op_type in _VIEWS or node.op_type == "DequantizeLinear" or _is_folded(node, stored):
            continue
        reads = [name for name in node.input if name and name not in fixed]
        moved += sum(sizes.get(stored.get(name, name), 0) for name in (*reads, *filter(None, node.output)))
    return Traffic(_weight_bytes(graph), moved)


def _stored_names(nodes: list[onnx.NodeProto]) -> dict[str, str]:
    """The tensor that lies in memory for each name that a runtime never stores as it is."""
    readers = Counter(name for node in nodes for name in node.input)
    stored: dict[str, str] = {}
    for node in nodes:
        if node.op_type in _VIEWS or node.op_type == "DequantizeLinear":
            stored[node.output[0]] = stored.get(node.input[0], node.input[0])
        elif node.op_type == "QuantizeLinear" and readers[node.input[0]] == 1:
            stored.setdefault(node.input[0], node.output[0])
    return stored


def _is_folded(node: onnx.NodeProto, stored: Mapping[str, str]) -> bool:
    """Whether whoever computes a tensor stores it quantized at once."""
    return node.op_type == "QuantizeLinear" and stored.get(node.input[0]) == node.output[0]


def _weight_bytes(graph: onnx.GraphProto) -> int:
    stored = list(graph.initializer)
    stored += [
        attribute.t
        for node in graph.node
        if node.op_type == "Constant"
        for attribute in node.attribute
        if attribute.name == "value"
    ]
    return sum(ir.from_proto(tensor).nbytes for tensor in stored)
