"""Static eight-bit integers for transformers: outliers of activations move into weights first."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
import onnx
from onnx import numpy_helper
from pydantic import Field

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    PassContext,
    PassRefusedError,
    Settings,
    scaled_apart,
)
from compression.calibration import activations
from compression.data import Split
from compression.model import OnnxModel
from compression.qdq import PRODUCTS, Scheme, drop_unread, prepared, quantized, touched
from compression.quantization import CalibratedSettings, Int8Pass, names_of
from compression.signature import Array

# Normalizations over the last axis -> positions of what is multiplied with their result or added to it.
_NORMS = {
    "LayerNormalization": (1, 2),
    "RMSNormalization": (1,),
    "SimplifiedLayerNormalization": (1,),
}
_MARK = "/smooth"


class SmoothQuantSettings(CalibratedSettings):
    """Settings of `int8-smoothquant`.

    Attributes:
        alpha: How much of an outlier moves into the weights: 0 leaves activations as they are, 1 makes
            all their channels alike and weights uneven.
        attention: Quantizes the products of queries, keys and values, too, which have no weights.
    """

    alpha: float = Field(default=0.5, ge=0.0, le=1.0)
    attention: bool = False

    @property
    def scheme(self) -> Scheme:
        """How floats become integers: matrix products only, all between them stays float."""
        return Scheme(
            self.per_channel,
            self.reduce_range,
            self.symmetric,
            self.activations,
            operators=PRODUCTS,
            outputs_of_products=False,
            weights_only_products=not self.attention,
        )


class SmoothQuant(Int8Pass[SmoothQuantSettings]):
    """Divides what leaves a normalization by a factor per channel, multiplies weights by it, and quantizes.

    Xiao et al. 2023, "SmoothQuant: Accurate and Efficient Post-Training Quantization for Large Language
    Models". The function that the float graph computes stays the same.
    """

    name: ClassVar[str] = "int8-smoothquant"
    version: ClassVar[int] = 2
    settings_class: ClassVar[type[Settings]] = SmoothQuantSettings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses shared values also, which the factors would set apart."""
        reason = scaled_apart(before)
        return f"{reason}. Use int8-static" if reason else super().refused_after(before)

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks also that a normalization feeds a product with stored weights."""
        super().requires(model, context)
        if not _edges(prepared(model).proto.graph):
            raise PassRefusedError(
                f"no {' or '.join(_NORMS)} feeds a MatMul or Gemm with stored weights, and only there can "
                "outliers move. Use int8-static."
            )

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the smoothed graph with integer matrix products."""
        settings = self.settings
        rows = context.splits.calibration.spread(settings.rows)
        ready = prepared(model)
        excluded = names_of(ready, settings.exclude_nodes)
        context.report("smoothing", 0.0)
        smooth = smoothed(ready, rows, settings.alpha)
        context.report("calibrating", 0.5)
        ranges = settings.calibrator.ranges(smooth, touched(smooth, PRODUCTS), rows)
        return quantized(smooth, ranges, settings.scheme, excluded)

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks also that every normalization that feeds products is smoothed."""
        facts = super().ensures(before, after, context)
        names = {name for node in after.proto.graph.node for name in (node.name, *node.input)}
        edges = _edges(prepared(before).proto.graph)
        if missed := [edge.norm.name for edge in edges if edge.norm.name + _MARK not in names]:
            raise BrokenPromiseError(f"{', '.join(missed)} is not smoothed. Report this as a bug.")
        return {
            **facts,
            "smoothed": {edge.norm.name: [node.name for node in edge.products] for edge in edges},
            "folded": sum(edge.folds for edge in edges),
        }


@dataclass(frozen=True)
class _Edge:
    """A normalization with the products that it feeds.

    Attributes:
        norm: The normalization.
        products: All MatMul and Gemm with stored weights that read it.
        folds: Whether nothing else reads it, so that its own factors can take the division.
    """

    norm: onnx.NodeProto
    products: tuple[onnx.NodeProto, ...]
    folds: bool


def smoothed(model: OnnxModel, split: Split, alpha: float) -> OnnxModel:
    """The same function with outliers moved from activations into weights.

    Args:
        model: A prepared graph.
        split: Rows that show how large each channel gets.
        alpha: How much moves, 0..1.
    """
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    edges = _edges(graph)
    largest = _largest_by_channel(model, [edge.norm.output[0] for edge in edges], split)
    for edge in edges:
        weights = {node.name: _rows_first(node, stored[node.input[1]]) for node in edge.products}
        factors = _factors(largest[edge.norm.output[0]], weights, alpha)
        for node in edge.products:
            grown = weights[node.name] * factors[:, None]
            name = _store(graph, f"{node.name}{_MARK}", _as_stored(node, grown))
            node.input[1] = name
        _divide(graph, edge, factors, stored)
    drop_unread(graph)
    return OnnxModel(proto, model.signature)


def _edges(graph: onnx.GraphProto) -> list[_Edge]:
    rank = {tensor.name: len(tensor.dims) for tensor in graph.initializer}
    readers = _readers(graph)
    edges = []
    for norm in graph.node:
        if norm.op_type not in _NORMS or rank.get(norm.input[1]) != 1:
            continue
        reading = list(_through(readers, norm.output[0]))
        products = tuple(node for node, name in reading if node and _multiplies(node, name, rank))
        own = [norm.input[position] for position in _NORMS[norm.op_type] if position < len(norm.input)]
        if products:
            edges.append(
                _Edge(norm, products, len(products) == len(reading) and all(part in rank for part in own))
            )
    return edges


def _readers(graph: onnx.GraphProto) -> dict[str, list[onnx.NodeProto | None]]:
    """The nodes that read each tensor; None stands for the caller, who reads outputs."""
    readers: dict[str, list[onnx.NodeProto | None]] = {value.name: [None] for value in graph.output}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)
    return readers


def _through(
    readers: Mapping[str, list[onnx.NodeProto | None]], name: str
) -> Iterator[tuple[onnx.NodeProto | None, str]]:
    """Who reads a tensor, and under which name, behind nodes that only move rows about."""
    for node in readers.get(name, []):
        if node is not None and _keeps_channels(node):
            yield from _through(readers, node.output[0])
        else:
            yield node, name


def _keeps_channels(node: onnx.NodeProto) -> bool:
    if node.op_type == "Transpose":
        order = next((list(attribute.ints) for attribute in node.attribute if attribute.name == "perm"), [])
        return bool(order) and order[-1] == len(order) - 1
    return node.op_type == "Identity"


def _multiplies(node: onnx.NodeProto, name: str, rank: Mapping[str, int]) -> bool:
    """Whether a node multiplies a tensor's last axis with a stored matrix."""
    if node.op_type not in PRODUCTS or node.input[0] != name or rank.get(node.input[1]) != 2:
        return False
    return name not in node.input[1:] and not _attribute(node, "transA")


def _attribute(node: onnx.NodeProto, name: str) -> int:
    return next((attribute.i for attribute in node.attribute if attribute.name == name), 0)


def _rows_first(node: onnx.NodeProto, tensor: onnx.TensorProto) -> Array:
    """A weight as `(channels in, channels out)`."""
    weight = numpy_helper.to_array(tensor)
    return weight.T if _attribute(node, "transB") else weight


def _as_stored(node: onnx.NodeProto, weight: Array) -> Array:
    return np.ascontiguousarray(weight.T if _attribute(node, "transB") else weight)


def _largest_by_channel(model: OnnxModel, tensors: list[str], split: Split) -> dict[str, Array]:
    """The greatest magnitude in each channel of each tensor `(..., channels)`."""
    largest: dict[str, Array] = {}
    for batch in activations(model, tensors, split):
        for name, values in batch.items():
            seen = np.abs(values).reshape(-1, values.shape[-1]).max(0)
            largest[name] = np.maximum(seen, largest.get(name, 0.0))
    return largest


def _factors(largest: Array, weights: Mapping[str, Array], alpha: float) -> Array:
    """What each channel is divided by; 1 where it or its weights are always zero."""
    heaviest = np.max([np.abs(weight).max(1) for weight in weights.values()], axis=0)
    alive = (largest > 0) & (heaviest > 0)
    with np.errstate(divide="ignore", invalid="ignore"):
        factors = largest**alpha / heaviest ** (1 - alpha)
    return np.where(alive, factors, 1.0).astype(np.float32)


def _divide(
    graph: onnx.GraphProto, edge: _Edge, factors: Array, stored: Mapping[str, onnx.TensorProto]
) -> None:
    """Divides what the products read: inside the normalization, or beside it where others read it too."""
    norm = edge.norm
    mark = norm.name + _MARK
    if edge.folds:
        for position, suffix in zip(_NORMS[norm.op_type], ("", "_bias"), strict=False):
            if position < len(norm.input) and norm.input[position]:
                own = numpy_helper.to_array(stored[norm.input[position]])
                norm.input[position] = _store(graph, mark + suffix, own / factors)
        return
    factor = _store(graph, mark + "_factor", 1 / factors)
    for index, name in enumerate(dict.fromkeys(node.input[0] for node in edge.products)):
        suffix = f"_{index}" if index else ""
        divided = f"{mark}_output{suffix}"
        multiply = onnx.helper.make_node("Mul", [name, factor], [divided], name=mark + suffix)
        makers = [place for place, node in enumerate(graph.node) if name in node.output]
        graph.node.insert(makers[0] + 1, multiply)
        for node in edge.products:
            if node.input[0] == name:
                node.input[0] = divided
        for value in [value for value in graph.value_info if value.name == name]:
            graph.value_info.add().CopyFrom(value)
            graph.value_info[-1].name = divided


def _store(graph: onnx.GraphProto, name: str, values: Array) -> str:
    graph.initializer.append(numpy_helper.from_array(values.astype(np.float32), name))
    return name
