"""Four-bit integers in place of the weights of matrix products."""

from __future__ import annotations

from dataclasses import replace
from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import helper, numpy_helper

from compression.base import (
    AnyPass,
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    check_known,
    check_smaller,
    scaled_apart,
)
from compression.chatter import logging_left_alone, quiet
from compression.model import Form, OnnxModel
from compression.nbits import BITS, packed_products
from compression.qdq import drop_unread

# It sends the whole process's messages to stderr.
with logging_left_alone():
    from onnxruntime.quantization.matmul_nbits_quantizer import (
        DefaultWeightOnlyQuantConfig,
        MatMulNBitsQuantizer,
    )


class Int4Settings(Settings):
    """Settings of `int4-weights`.

    Attributes:
        block_size: How many weights in a row share a scale.
        symmetric: One scale per block; otherwise a zero point as well.
        accuracy_level: What the product computes in: 0 for the runtime's choice, 1 for float32, 4 for int8
            activations.
        exclude_nodes: Names of nodes that stay float32.
    """

    block_size: Literal[16, 32, 64, 128, 256] = 32
    symmetric: bool = True
    accuracy_level: Literal[0, 1, 4] = 0
    exclude_nodes: tuple[str, ...] = ()


class Int4Weights(Pass[Int4Settings, OnnxModel, OnnxModel]):
    """Rounds the weights of matrix products to four bits with a scale per block, activations left alone.

    Weight-only quantization by rounding to nearest, the baseline of Frantar et al. 2023, "GPTQ". Weights stay
    packed in memory and the products run on onnxruntime's own operator MatMulNBits, so that other runtimes
    may refuse the artifact. What is gained is size; time only where weights do not fit the caches.
    """

    name: ClassVar[str] = "int4-weights"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = "int4"
    settings_class: ClassVar[type[Settings]] = Int4Settings

    def refused_after(self, before: AnyPass) -> str:
        """Refuses matrix products whose weights are no float32 any more, or share values."""
        if before.number_format in ("float16", self.number_format):
            return f"weights are {before.number_format} then. Round once, from float32"
        return scaled_apart(before)

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that there are matrix products with float32 weights, and that excluded nodes exist."""
        check_known("node", self.settings.exclude_nodes, (node.name for node in model.proto.graph.node))
        if not self._products(model.proto.graph):
            raise PassRefusedError(
                "the model has no MatMul or Gemm with stored float32 weights. Use pow2-weights or cluster."
            )

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with MatMulNBits in place of each MatMul and Gemm with weights."""
        settings = self.settings
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        _split_products(proto.graph, self._products(proto.graph))
        config = DefaultWeightOnlyQuantConfig(
            block_size=settings.block_size,
            is_symmetric=settings.symmetric,
            accuracy_level=settings.accuracy_level,
            bits=BITS,
        )
        # onnxruntime logs each node to the root logger.
        with quiet(""):
            quantizer = MatMulNBitsQuantizer(
                proto, algo_config=config, nodes_to_exclude=list(settings.exclude_nodes)
            )
            quantizer.process()
        made = quantizer.model.model
        drop_unread(made.graph)
        return replace(model, proto=made)

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks that every such product has four-bit weights, and that the file is smaller."""
        products, found = len(self._products(before.proto.graph)), len(packed_products(after, (BITS,)))
        if found < products:
            raise BrokenPromiseError(f"{found} of {products} matrix products have four-bit weights.")
        sizes = check_smaller(before.proto.ByteSize(), after.proto.ByteSize(), "scales", self.name)
        return {"gain": "size only", "products": found, **sizes}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many products have four-bit weights at the end of the recipe."""
        kept = len(packed_products(artifact, (BITS,)))
        if kept < facts["products"]:
            raise BrokenPromiseError(
                f"{kept} of {facts['products']} products still have four-bit weights. Put int4-weights last."
            )

    def _products(self, graph: onnx.GraphProto) -> list[onnx.NodeProto]:
        floats = {
            tensor.name
            for tensor in graph.initializer
            if tensor.data_type == onnx.TensorProto.FLOAT and len(tensor.dims) == 2
        }
        return [
            node
            for node in graph.node
            if node.op_type in ("MatMul", "Gemm") and node.input[1] in floats and _is_plain(node)
            if node.name not in self.settings.exclude_nodes
        ]


def _is_plain(node: onnx.NodeProto) -> bool:
    """Whether a Gemm is a product and a sum, with nothing scaled and no transposed data."""
    given = {attribute.name: helper.get_attribute_value(attribute) for attribute in node.attribute}
    return given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0 and not given.get("transA", 0)


def _split_products(graph: onnx.GraphProto, products: list[onnx.NodeProto]) -> None:
    """Writes each Gemm as a MatMul with a weight `(in, out)` and an Add, in place."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    gemms = {node.output[0] for node in products if node.op_type == "Gemm"}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.output[0] not in gemms:
            nodes.append(node)
            continue
        label, weight = node.name or node.output[0], node.input[1]
        if any(each.name == "transB" and each.i for each in node.attribute):
            turned = np.ascontiguousarray(numpy_helper.to_array(stored[weight]).T)
            weight = f"{weight}.turned"
            if weight not in stored:
                graph.initializer.append(numpy_helper.from_array(turned, weight))
                stored[weight] = graph.initializer[-1]
        biased = len(node.input) > 2 and node.input[2] != ""
        product = f"{node.output[0]}.product" if biased else node.output[0]
        nodes.append(helper.make_node("MatMul", [node.input[0], weight], [product], name=f"{label}.product"))
        if biased:
            nodes.append(helper.make_node("Add", [product, node.input[2]], [node.output[0]], name=label))
    graph.ClearField("node")
    graph.node.extend(nodes)
