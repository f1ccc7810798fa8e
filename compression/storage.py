"""How a finished graph lies on disk: as a plain ONNX file, or Huffman coded in a packed one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import ClassVar

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.container import PACKED_SUFFIX, Span, expand, pack
from compression.inspection import parameters
from compression.model import Form, OnnxModel, Storage

# A tensor of fewer bytes is cheaper to deflate with its neighbours than to code.
_SMALLEST_SPAN_BYTES = 64
_WIDTHS = (1, 2, 4, 8)
# Deflating float weights saves a twentieth; what has few values or many zeros saves far more.
_MOST_OF_PLAIN = 0.9


def save(model: OnnxModel, path: Path) -> Path:
    """Writes a graph as its storage says.

    Args:
        model: The graph.
        path: Where a plain ONNX file goes; a packed one goes beside it, with the suffix `.mpk`.

    Returns:
        Where it was written.
    """
    if model.storage is Storage.PLAIN:
        onnx.save_model(model.proto, path)
        return path
    packed = path.with_suffix(PACKED_SUFFIX)
    plain = serialized(model)
    packed.write_bytes(pack(plain, weight_spans(model, plain)))
    return packed


def serialized(model: OnnxModel) -> bytes:
    """The plain ONNX file, the same bytes for the same graph."""
    return bytes(model.proto.SerializeToString(deterministic=True))


def weight_spans(model: OnnxModel, plain: bytes) -> list[Span]:
    """Where the tensors of a graph lie in its serialized form, in order."""
    spans, position = [], 0
    for tensor in _tensors(model.proto.graph):
        raw = tensor.raw_data
        at = plain.find(raw, position) if len(raw) >= _SMALLEST_SPAN_BYTES else -1
        if at < 0:
            continue  # stored in another field, or tiny: deflated with the rest
        size = np.dtype(helper.tensor_dtype_to_np_dtype(tensor.data_type)).itemsize
        width = size if size in _WIDTHS and len(raw) % size == 0 else 1
        spans.append(Span(at, len(raw) // width, width))
        position = spans[-1].end
    return spans


class HuffmanSettings(Settings):
    """Settings of `huffman`: there are none."""


class Huffman(Pass[HuffmanSettings, OnnxModel, OnnxModel]):
    """Stores the graph as a packed file with Huffman coded weights, which a runtime expands when it loads it.

    The third stage of Han, Mao and Dally 2016, "Deep Compression": pays after `prune-unstructured` and
    `cluster`, and after quantization. Lossless: it expands to the plain ONNX file, byte by byte. What is
    gained is size on disk and on the wire, not time.
    """

    name: ClassVar[str] = "huffman"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX
    only_stores: ClassVar[bool] = True
    settings_class: ClassVar[type[Settings]] = HuffmanSettings

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that the graph is not packed yet."""
        if model.storage is not Storage.PLAIN:
            raise PassRefusedError("the model is packed already. Use huffman once.")

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph marked to be packed, with the one kind of zero that gaps are made of."""
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        for tensor in proto.graph.initializer:
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) > 1:
                array = numpy_helper.to_array(tensor)
                if np.signbit(array[array == 0]).any():
                    tensor.CopyFrom(numpy_helper.from_array(array + np.float32(0), tensor.name))
        return replace(model, proto=proto, storage=Storage.HUFFMAN)

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks that the file is at least a tenth smaller and expands to the plain one byte by byte."""
        plain = serialized(after)
        packed = pack(plain, weight_spans(after, plain))
        if len(packed) > _MOST_OF_PLAIN * len(plain):
            raise BrokenPromiseError(
                f"the packed file has {len(packed)} bytes and the plain one {len(plain)}: that is not worth "
                "expanding it at each load. Put prune-unstructured, cluster or a quantization before."
            )
        if expand(packed, limit=len(plain)) != plain:
            raise BrokenPromiseError("the packed file does not expand to the graph. Please report this.")
        return {
            "bytes_before": before.proto.ByteSize(),
            "bytes_after": len(packed),
            "expanded_bytes": len(plain),
            "bits_per_weight": round(8 * len(packed) / max(parameters(after), 1), 3),
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the finished artifact is still to be packed."""
        if artifact.storage is not Storage.HUFFMAN:
            raise BrokenPromiseError("a later step wrote the graph anew. Put huffman last.")


def _tensors(graph: onnx.GraphProto) -> Iterator[onnx.TensorProto]:
    """Every stored tensor, in the order of serialization."""
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.TENSOR:
                yield attribute.t
            elif attribute.type == onnx.AttributeProto.GRAPH:
                yield from _tensors(attribute.g)
    yield from graph.initializer
