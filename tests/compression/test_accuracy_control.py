from __future__ import annotations

from dataclasses import replace

import numpy as np
import onnx
import pytest
from onnx import numpy_helper

from compression.accuracy_control import AccuracyControl, AccuracyControlSettings
from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.data import Split, Splits
from compression.inspection import quantized_operators
from compression.model import OnnxModel
from compression.quantization import StaticInt8, StaticInt8Settings
from tests.compression.small_digits import DIGITS, accuracy

CONTROL = AccuracyControl(AccuracyControlSettings(max_drop=0.02))


@pytest.fixture(scope="module")
def uneven(artifact: OnnxModel) -> OnnxModel:
    """The same function with one channel between the first two convolutions ten thousand times larger."""
    proto = onnx.ModelProto()
    proto.CopyFrom(artifact.proto)
    first, second, _ = (node for node in proto.graph.node if node.op_type == "Conv")
    stored = {tensor.name: tensor for tensor in proto.graph.initializer}
    for name, channel, factor in (
        (first.input[1], (0,), 1e4),
        (first.input[2], (0,), 1e4),
        (second.input[1], (slice(None), 0), 1e-4),
    ):
        array = np.array(numpy_helper.to_array(stored[name]))
        array[channel] *= factor
        stored[name].CopyFrom(numpy_helper.from_array(array, name))
    return OnnxModel(proto, DIGITS)


def unlabelled(context: PassContext) -> PassContext:
    return replace(
        context, splits=Splits(**{name: Split(split.inputs) for name, split in context.splits.items()})
    )


def test_what_loses_little_is_quantized_whole(artifact: OnnxModel, context: PassContext) -> None:
    CONTROL.requires(artifact, context)
    small = CONTROL.run(artifact, context)
    facts = CONTROL.ensures(artifact, small, context)
    assert facts["quantized_operators"] == {"Conv": 3, "Gemm": 2}
    assert facts["float_operators"] == []
    assert facts["drop"] == facts["drop_of_all"] <= 0.02
    assert facts["measure"] == "share of the metric"


def test_operators_that_lose_much_return_to_float(uneven: OnnxModel, context: PassContext) -> None:
    everything = StaticInt8(StaticInt8Settings()).run(uneven, context)
    small = CONTROL.run(uneven, context)
    facts = CONTROL.ensures(uneven, small, context)
    first, second, third = (node.name for node in uneven.proto.graph.node if node.op_type == "Conv")
    assert set(facts["float_operators"]) == {first, second}
    assert quantized_operators(small) == facts["quantized_operators"] == {"Conv": 1, "Gemm": 2}
    assert facts["drop_of_all"] > 0.1 > 0.02 >= facts["drop"]
    ratios = facts["sensitivity_db"]
    assert list(ratios.values()) == sorted(ratios.values())
    assert max(ratios[first], ratios[second]) < ratios[third]
    test = context.splits.test
    assert accuracy(small, test) >= accuracy(uneven, test) - 0.03 > accuracy(everything, test)


def test_without_labels_the_float_graph_is_right(uneven: OnnxModel, context: PassContext) -> None:
    context = unlabelled(context)
    facts = CONTROL.ensures(uneven, CONTROL.run(uneven, context), context)
    assert facts["measure"] == "share of the metric, the float graph's answers for labels"
    assert facts["drop"] <= 0.02 < facts["drop_of_all"]


def test_without_a_metric_outputs_are_compared(uneven: OnnxModel, context: PassContext) -> None:
    context = replace(unlabelled(context), quality=None)
    control = AccuracyControl(AccuracyControlSettings(max_drop=0.05))
    facts = control.ensures(uneven, control.run(uneven, context), context)
    assert facts["measure"] == "relative error of the outputs"
    assert facts["drop"] <= 0.05 < facts["drop_of_all"]
    assert len(facts["float_operators"]) >= 2


def test_a_model_that_cannot_keep_the_limit_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    strict = AccuracyControl(AccuracyControlSettings(max_drop=0.0))
    with pytest.raises(PassRefusedError, match="still more than"):
        strict.run(artifact, replace(unlabelled(context), quality=None))


def test_a_worse_graph_breaks_the_promise(uneven: OnnxModel, context: PassContext) -> None:
    everything = StaticInt8(StaticInt8Settings()).run(uneven, context)
    with pytest.raises(BrokenPromiseError, match="lost on validation"):
        CONTROL.ensures(uneven, everything, context)


def test_only_validation_and_calibration_are_read(uneven: OnnxModel, context: PassContext) -> None:
    splits = context.splits
    nothing = Split({"image": np.full((1, 64), np.nan, np.float32)})
    other = Split({"image": np.full((1, 64), np.inf, np.float32)})
    blind = replace(context, splits=replace(splits, train=nothing, test=other))
    assert CONTROL.run(uneven, blind).proto == CONTROL.run(uneven, context).proto


def test_what_is_quantized_already_is_refused(artifact: OnnxModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="quantized already"):
        CONTROL.requires(CONTROL.run(artifact, context), context)
