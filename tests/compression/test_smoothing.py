from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.calibration import activations
from compression.data import Splits
from compression.export import export
from compression.inference import infer
from compression.inspection import quantized_operators
from compression.model import OnnxModel, TorchModel
from compression.qdq import prepared, quantized, touched
from compression.signature import Array
from compression.smoothing import SmoothQuant, SmoothQuantSettings, smoothed
from compression.training import Training, fit, seeded
from tests.compression.small_digits import DIGITS, accuracy, silent

SMOOTH = SmoothQuant(SmoothQuantSettings())


class Reader(nn.Module):
    """Reads a digit row by row: one encoder layer that normalizes before its blocks."""

    def __init__(self, width: int = 32) -> None:
        super().__init__()
        self.embed = nn.Linear(8, width)
        self.place = nn.Parameter(torch.randn(8, width) * 0.2)
        self.encoder = nn.TransformerEncoderLayer(
            width, 2, 64, dropout=0.0, batch_first=True, norm_first=True
        )
        self.norm = nn.LayerNorm(width)
        self.head = nn.Linear(width, 10)

    def forward(self, image: Tensor) -> Tensor:
        rows = self.embed(image.reshape(-1, 8, 8)) + self.place
        return self.head(self.norm(self.encoder(rows).mean(1)))  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def reader(splits: Splits) -> OnnxModel:
    with seeded(0):
        untrained = TorchModel(Reader(), DIGITS)
    training = Training(epochs=8, learning_rate=4e-3)
    return export(fit(untrained, splits.train, splits.validation, training, seed=0, report=silent).model)


@pytest.fixture(scope="module")
def shared(reader: OnnxModel) -> OnnxModel:
    """What the normalizations return is read by others, too, as in a transformer that normalizes last."""
    proto = copied(reader)
    for norm in of_type(reader, "LayerNormalization"):
        proto.graph.output.append(onnx.ValueInfoProto(name=norm.output[0]))
    return OnnxModel(onnx.shape_inference.infer_shapes(proto), DIGITS)


@pytest.fixture(scope="module")
def uneven(reader: OnnxModel, context: PassContext) -> OnnxModel:
    """Has three channels a hundred times larger between the normalizations and weights."""
    proto = copied(reader)
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}

    def multiply(name: str, axis: int, factor: float) -> None:
        array = np.array(numpy_helper.to_array(stored[name]))
        array[(slice(None),) * axis + (slice(0, 3),)] *= factor
        stored[name].CopyFrom(numpy_helper.from_array(array, name))

    nodes = {node.name: node for node in proto.graph.node}
    facts = SMOOTH.ensures(reader, SMOOTH.run(reader, context), context)
    for norm, products in facts["smoothed"].items():
        for name in nodes[norm].input[1:]:
            multiply(name, 0, 100)
        for product in products:
            transposed = nodes[product].op_type == "Gemm"
            multiply(nodes[product].input[1], int(transposed), 1 / 100)
    return OnnxModel(proto, DIGITS)


def copied(model: OnnxModel) -> onnx.ModelProto:
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    return proto


def distance(model: OnnxModel, reference: OnnxModel, context: PassContext) -> float:
    right, close = (infer(each, context.splits.test, 64)[0] for each in (reference, model))
    return float(np.linalg.norm(close - right) / np.linalg.norm(right))


def of_type(model: OnnxModel, name: str) -> list[onnx.NodeProto]:
    return [node for node in model.proto.graph.node if node.op_type == name]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0])
def test_smoothing_keeps_the_function(
    alpha: float, reader: OnnxModel, shared: OnnxModel, context: PassContext
) -> None:
    for graph in (reader, shared):
        ready = prepared(graph)
        smooth = smoothed(ready, context.splits.calibration, alpha)
        onnx.checker.check_model(smooth.proto)
        assert distance(smooth, ready, context) < 1e-5


def test_the_normalization_takes_the_factors_where_nothing_else_reads_it(
    reader: OnnxModel, shared: OnnxModel, context: PassContext
) -> None:
    for graph, folded in ((reader, 3), (shared, 0)):
        facts = SMOOTH.ensures(graph, SMOOTH.run(graph, context), context)
        assert (len(facts["smoothed"]), facts["folded"]) == (3, folded)


def test_outliers_cost_less_than_without_smoothing(uneven: OnnxModel, context: PassContext) -> None:
    plain = distance(unsmoothed(uneven, context), uneven, context)
    assert distance(SMOOTH.run(uneven, context), uneven, context) < plain / 4


def unsmoothed(model: OnnxModel, context: PassContext) -> OnnxModel:
    ready = prepared(model)
    tensors = touched(ready, SMOOTH.settings.scheme.operators)
    ranges = SMOOTH.settings.calibrator.ranges(ready, tensors, context.splits.calibration)
    return quantized(ready, ranges, SMOOTH.settings.scheme)


def test_channels_become_alike(uneven: OnnxModel, context: PassContext) -> None:
    def largest(model: OnnxModel, name: str) -> Array:
        (batch,) = activations(model, [name], context.splits.calibration, batch=200)
        return np.abs(batch[name]).reshape(-1, batch[name].shape[-1]).max(0)

    ready = prepared(uneven)
    name = of_type(ready, "LayerNormalization")[0].output[0]
    channels = largest(ready, name)
    assert channels.max() > 30 * np.median(channels)
    channels = largest(smoothed(ready, context.splits.calibration, 1.0), name)
    assert channels.max() < 2 * np.median(channels)


def test_a_trained_reader_answers_as_well(reader: OnnxModel, context: PassContext) -> None:
    SMOOTH.requires(reader, context)
    small = SMOOTH.run(reader, context)
    facts = SMOOTH.ensures(reader, small, context)
    SMOOTH.holds(facts, small)
    assert accuracy(reader, context.splits.test) > 0.8
    assert accuracy(small, context.splits.test) >= accuracy(reader, context.splits.test) - 0.02


def test_products_with_weights_are_integer_and_others_only_when_asked(
    reader: OnnxModel, context: PassContext
) -> None:
    ready = prepared(reader)
    heavy = len(of_type(ready, "MatMul")) + len(of_type(ready, "Gemm"))
    assert sum(quantized_operators(SMOOTH.run(reader, context)).values()) == heavy - 2
    every = SmoothQuant(SmoothQuantSettings(attention=True)).run(reader, context)
    assert sum(quantized_operators(every).values()) == heavy


def test_a_product_can_stay_float(reader: OnnxModel, context: PassContext) -> None:
    head = of_type(reader, "Gemm")[-1].name
    kept = SmoothQuant(SmoothQuantSettings(exclude_nodes=(head,))).run(reader, context)
    without = sum(quantized_operators(SMOOTH.run(reader, context)).values())
    assert sum(quantized_operators(kept).values()) == without - 1


def test_without_normalization_it_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match=r"no LayerNormalization .* feeds a MatMul"):
        SMOOTH.requires(artifact, context)


def test_what_is_quantized_but_not_smoothed_breaks_the_promise(
    reader: OnnxModel, context: PassContext
) -> None:
    with pytest.raises(BrokenPromiseError, match="not smoothed"):
        SMOOTH.ensures(reader, unsmoothed(reader, context), context)
