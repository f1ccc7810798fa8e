from __future__ import annotations

import copy
from dataclasses import replace
from typing import Any, cast

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.calibration import activations
from compression.data import Splits
from compression.equalization import DataFree, DataFreeSettings, equalize, normalizations
from compression.export import export
from compression.inference import infer
from compression.inspection import quantized_operators
from compression.model import OnnxModel, TorchModel
from compression.moments import spreads
from compression.qdq import prepared
from compression.quantization import StaticInt8, StaticInt8Settings
from compression.records import note
from compression.signature import Array, Signature, TensorSpec
from compression.spread import Spread
from compression.training import seeded
from tests.compression.small_digits import DIGITS, accuracy

Trained = tuple[TorchModel, PassContext]
FREE = DataFree(DataFreeSettings())


class Untouchable:
    """Splits that fail when anything is read of them."""

    def __getattr__(self, name: str) -> Any:
        raise AssertionError(f"{name} was read")


def without_data(context: PassContext) -> PassContext:
    return replace(context, splits=cast("Splits", Untouchable()))


@pytest.fixture(scope="module")
def graph(residual: Trained) -> OnnxModel:
    return export(residual[0])


@pytest.fixture(scope="module")
def uneven(reference: TorchModel) -> TorchModel:
    """Has channels between the first two convolutions that differ a thousandfold."""
    return stretched(reference, 2, 4)


def signature_of(width: int) -> Signature:
    spec = TensorSpec("x", "float32", ("batch", width))
    return Signature((spec,), (replace(spec, name="y"),))


def stretched(reference: TorchModel, norm: int, following: int) -> TorchModel:
    """The same function with uneven channels between a normalization and the convolution that follows."""
    module = copy.deepcopy(reference.module)
    assert isinstance(module, nn.Sequential)
    with torch.no_grad():
        factor = 10 ** torch.linspace(-1.5, 1.5, len(module[norm].weight))
        module[norm].weight *= factor
        module[norm].bias *= factor
        module[following].weight /= factor.reshape(1, -1, 1, 1)
    return TorchModel(module, DIGITS)


def distance(model: OnnxModel, reference: OnnxModel, context: PassContext) -> float:
    right, close = (infer(each, context.splits.test, 128)[0] for each in (reference, model))
    return float(np.linalg.norm(close - right) / np.linalg.norm(right))


def test_no_sample_is_read_and_answers_stay(residual: Trained, graph: OnnxModel) -> None:
    model, context = residual
    blind = without_data(context)
    FREE.requires(model, blind)
    small = FREE.run(model, blind)
    facts = FREE.ensures(model, small, blind)
    FREE.holds(facts, small)
    assert facts["quantized_operators"] == {"Conv": 3, "Gemm": 1}
    assert facts["float_operators"] == []
    test = context.splits.test
    assert accuracy(small, test) >= accuracy(graph, test) - 0.03


def test_what_reads_inputs_of_unknown_range_stays_float(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    blind = without_data(context)
    facts = FREE.ensures(reference, FREE.run(reference, blind), blind)
    assert facts["quantized_operators"] == {"Conv": 2, "Gemm": 2}
    first = next(node.name for node in artifact.proto.graph.node if node.op_type == "Conv")
    assert first in facts["float_operators"]
    told = DataFree(DataFreeSettings(input_range=(0.0, 1.0)))
    small = told.run(reference, blind)
    assert quantized_operators(small) == {"Conv": 3, "Gemm": 2}
    assert accuracy(small, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.03


def test_equalization_keeps_the_function_and_makes_weights_alike(
    uneven: TorchModel, context: PassContext
) -> None:
    model = export(uneven)
    ready = prepared(model)
    first, second, _ = (node.name for node in ready.proto.graph.node if node.op_type == "Conv")
    assert spread_of(ready, first) > 100
    pairs = equalize(ready.proto.graph, {})
    assert (first, second) in pairs
    assert distance(ready, model, context) < 1e-5
    assert spread_of(ready, first) < 30


def spread_of(model: OnnxModel, name: str) -> float:
    """How many times larger the largest channel of a weight is than the smallest."""
    (node,) = (node for node in model.proto.graph.node if node.name == name)
    (tensor,) = (tensor for tensor in model.proto.graph.initializer if tensor.name == node.input[1])
    largest = np.abs(numpy_helper.to_array(tensor)).max((1, 2, 3))
    return float(largest.max() / largest.min())


def test_equalization_saves_a_scale_per_weight(uneven: TorchModel, context: PassContext) -> None:
    model, blind = export(uneven), without_data(context)
    common = {"per_channel": False, "input_range": (0.0, 1.0), "correct_bias": False}
    plain, equal = (
        DataFree(DataFreeSettings.model_validate({**common, "equalize": each})).run(uneven, blind)
        for each in (False, True)
    )
    assert distance(equal, model, context) < distance(plain, model, context) / 2


def test_bias_correction_brings_back_the_mean(reference: TorchModel, context: PassContext) -> None:
    uneven = stretched(reference, 5, 8)
    exact = prepared(export(uneven))
    layer = [node for node in exact.proto.graph.node if node.op_type == "Conv"][1]
    right = channel_means(exact, layer, context)
    moved = []
    for each in (False, True):
        settings = DataFreeSettings(per_channel=False, equalize=False, correct_bias=each)
        small = DataFree(settings).run(uneven, without_data(context))
        assert (layer.name in note(small, "int8-data-free")["corrected"]) is each
        rounded = channel_means(with_weights_of(small, exact, layer), layer, context)
        moved.append(np.median(np.abs(rounded - right) / np.abs(right)))
    assert moved[1] < moved[0] / 2


def channel_means(model: OnnxModel, layer: onnx.NodeProto, context: PassContext) -> Array:
    (batch,) = activations(model, [layer.output[0]], context.splits.test, batch=300)
    means: Array = batch[layer.output[0]].mean((0, 2, 3))
    return means


def with_weights_of(small: OnnxModel, exact: OnnxModel, layer: onnx.NodeProto) -> OnnxModel:
    """The float graph with one layer's weight and bias as they are after rounding."""
    proto = onnx.ModelProto()
    proto.CopyFrom(exact.proto)
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in small.proto.graph.initializer}
    makers = {name: node for node in small.proto.graph.node for name in node.output}
    (node,) = (node for node in small.proto.graph.node if node.name == layer.name)
    for theirs, ours in zip(node.input[1:], layer.input[1:], strict=True):
        integers, scale = (stored[name] for name in makers[theirs].input[:2])
        (tensor,) = (tensor for tensor in proto.graph.initializer if tensor.name == ours)
        tensor.CopyFrom(numpy_helper.from_array((integers * scale).astype(np.float32), ours))
    return OnnxModel(proto, exact.signature)


def test_ranges_hold_nearly_all_activations(residual: Trained, graph: OnnxModel) -> None:
    model, context = residual
    ready = prepared(graph)
    known = normalizations(model)
    assert len(known) == 3
    names = {
        node.output[0]: known[node.input[1]]
        for node in ready.proto.graph.node
        if node.input[1:] and node.input[1] in known
    }
    for batch in activations(ready, list(names), context.splits.validation, batch=300):
        for name, values in batch.items():
            spread = Spread.normal(names[name].mean, names[name].deviation, 6.0)
            channels = values.transpose(1, 0, 2, 3).reshape(len(spread.mean), -1)
            outside = (channels < spread.low[:, None]) | (channels > spread.high[:, None])
            assert outside.mean() < 1e-3


def test_clipped_moments_are_those_of_many_draws() -> None:
    draw = np.random.default_rng(0)
    for mean, deviation, low, high in (
        (0.3, 1.0, 0.0, np.inf),
        (-2.0, 0.5, 0.0, np.inf),
        (2.0, 3.0, 0.0, 6.0),
    ):
        values = np.clip(draw.normal(mean, deviation, 1_000_000), low, high)
        spread = Spread.normal(np.array([mean]), np.array([deviation]), 6.0).clipped(low, high)
        assert spread.mean[0] == pytest.approx(values.mean(), abs=0.01)
        assert spread.deviation[0] == pytest.approx(values.std(), abs=0.01)


@pytest.mark.parametrize(
    "function",
    [nn.ELU(0.7), nn.GELU(), nn.Hardsigmoid(), nn.Hardswish(), nn.LeakyReLU(0.2), nn.Mish(), nn.SELU(),
     nn.SiLU(), nn.Sigmoid(), nn.Tanh()],
    ids=lambda function: type(function).__name__,
)  # fmt: skip
def test_moments_behind_a_function_are_those_of_many_draws(function: nn.Module) -> None:
    graph = prepared(export(TorchModel(nn.Sequential(function), signature_of(2)))).proto.graph
    mean, deviation = np.array([0.3, -1.0]), np.array([1.0, 2.0])
    known = Spread.normal(mean, deviation, 6.0)
    spread = spreads(graph, {graph.input[0].name: known}, {}, 6.0)[graph.output[0].name]
    draws = np.random.default_rng(0).normal(mean, deviation, (200_000, 2))
    values = function(torch.from_numpy(draws)).numpy()
    assert spread.exact
    np.testing.assert_allclose(spread.mean, values.mean(0), atol=0.02)
    np.testing.assert_allclose(spread.deviation, values.std(0), atol=0.02)
    assert (spread.low <= values.min(0) + 1e-3).all()
    assert (spread.high >= values.max(0) - 1e-3).all()


class Gated(nn.Module):
    """Squeeze and excitation behind functions that no factor passes through."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(1, 16, 3, padding=1), nn.BatchNorm2d(16), nn.SiLU())
        self.gate = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Conv2d(16, 16, 1), nn.Sigmoid())
        self.second = nn.Sequential(nn.Conv2d(16, 16, 3), nn.BatchNorm2d(16), nn.Hardswish())
        self.last = nn.Linear(16, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        x = self.first(image.reshape(-1, 1, 8, 8))
        return cast("torch.Tensor", self.last(self.second(x * self.gate(x)).mean((2, 3))))


def test_gates_and_smooth_functions_have_ranges(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(Gated().eval(), DIGITS)
    small = DataFree(DataFreeSettings(input_range=(0.0, 1.0))).run(model, without_data(context))
    assert quantized_operators(small) == {"Conv": 3, "Gemm": 1}
    assert len(note(small, "int8-data-free")["corrected"]) == 2  # behind SiLU, and behind Hardswish
    assert distance(small, export(model), context) < 0.05


def test_where_nothing_can_be_equalized_or_corrected_it_is_refused(context: PassContext) -> None:
    module = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 8, 3), nn.BatchNorm2d(8), nn.Flatten())
    model = TorchModel(
        module.eval(), replace(DIGITS, outputs=(replace(DIGITS.outputs[0], shape=("batch", 288)),))
    )
    with pytest.raises(PassRefusedError, match="no layer can be equalized"):
        FREE.run(model, without_data(context))


def test_without_normalization_it_is_refused(context: PassContext) -> None:
    plain = TorchModel(nn.Sequential(nn.Linear(64, 10)), DIGITS)
    with pytest.raises(PassRefusedError, match="no batch normalization"):
        FREE.requires(plain, context)


def test_another_graph_breaks_the_promise(residual: Trained, graph: OnnxModel) -> None:
    model, context = residual
    with pytest.raises(BrokenPromiseError, match="no note of int8-data-free"):
        FREE.ensures(model, StaticInt8(StaticInt8Settings()).run(graph, context), context)
