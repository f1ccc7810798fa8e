"""Eight-bit integers that the model learns to live with: quantization-aware training."""

from __future__ import annotations

from typing import ClassVar, Literal

import numpy as np
import onnx
from onnx import numpy_helper
from pydantic import Field
from torch import fx

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.export import export
from compression.fake_quantization import RangeRule
from compression.imitation import imitation_of, teacher_objective, teacher_of
from compression.inference import infer
from compression.inspection import quantized_operators
from compression.layer_graph import held_zeros, layers
from compression.model import Form, OnnxModel, TorchModel
from compression.qat_graph import Rules, converted, prepare, watch
from compression.quantization import promised, still_promised
from compression.tracing import TracingError, traced
from compression.training import labels_objective, predict

# Of the peak learning rate that the model was trained with from scratch.
SHARE_OF_LEARNING_RATE = 20
PARITY_ROWS = 64
# Mean distance of the artifact's answers from those learned, in standard deviations of an output.
PARITY_TOLERANCE = 0.05


class QatSettings(Settings):
    """Settings of `int8-qat`.

    Attributes:
        epochs: Fine-tuning under rounding.
        learning_rate: Its peak; None for a twentieth of the model's own.
        learned_step: Learns the scales of weights, and of activations unless `clipping` does, instead of
            following their extremes.
        clipping: `pact` learns where activations are cut off.
        teacher: Weight of the reference's answers beside the labels; without labels only they count.
        temperature: Softens the reference's answers.
        rows: How many rows of the calibration split the ranges of activations begin with.
        reduce_range: Weights of seven bits, which x86 processors without VNNI multiply faster: sums of
            products of eight bits overflow what they add in.
    """

    epochs: int = Field(default=5, ge=1)
    learning_rate: float | None = Field(default=None, gt=0.0)
    learned_step: bool = False
    clipping: Literal["pact"] | None = None
    teacher: float = Field(default=0.0, ge=0.0, le=1.0)
    temperature: float = Field(default=4.0, gt=0.0)
    rows: int = Field(default=256, ge=1)
    reduce_range: bool = False


class QuantizationAwareTraining(Pass[QatSettings, TorchModel, OnnxModel]):
    """Fine-tunes with weights and activations rounded to eight bits, then stores them as integers.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference", section 3, batch normalization folded with frozen statistics. Gradients pass the rounding
    straight through (Bengio et al. 2013). Optionally with learned steps (Esser et al. 2020, "Learned Step
    Size Quantization") or learned clipping (Choi et al. 2018, "PACT"). Weights are symmetric, so that what
    pruning set to zero stays zero.
    """

    name: ClassVar[str] = "int8-qat"
    version: ClassVar[int] = 2
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = "int8"
    settings_class: ClassVar[type[Settings]] = QatSettings

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that the module can be traced, has layers to quantize, and something to learn from."""
        if self.settings.teacher:
            teacher_of(context)
            imitation_of(context.training)
        elif context.splits.train.labels is None:
            raise PassRefusedError(
                "train has no labels to learn from. Set teacher to 1 to learn from the reference's answers."
            )
        try:
            found = layers(_graph(traced(model)))
        except TracingError as error:
            raise PassRefusedError(f"{error}. Use int8-static.") from error
        if not found:
            raise PassRefusedError(
                "the model has no convolution, linear layer or matrix product with weights. Leave "
                "int8-qat out."
            )

    def run(self, model: TorchModel, context: PassContext) -> OnnxModel:
        """Returns the graph with integer weights, and rounded activations around what computes on them."""
        settings = self.settings
        context.report("tracing", 0.0)
        graph = traced(model)
        rules = Rules(settings.learned_step, _activation_rule(settings), 7 if settings.reduce_range else 8)
        student = TorchModel(prepare(_graph(graph), rules), model.signature)
        # Ranges begin with the extremes of the calibration split.
        predict(student, context.splits.calibration.spread(settings.rows))
        watch(student.module, False)
        objective = (
            teacher_objective(context, settings.temperature, settings.teacher)
            if settings.teacher
            else labels_objective(context.training)
        )
        learned = context.fit(
            student,
            epochs=settings.epochs,
            learning_rate=settings.learning_rate or context.training.learning_rate / SHARE_OF_LEARNING_RATE,
            objective=objective,
        )
        rows = context.splits.validation.take(slice(0, PARITY_ROWS))
        expected = predict(learned, rows)
        artifact = export(TorchModel(converted(_graph(learned)), model.signature))
        _own_zero_points(artifact.proto.graph)
        for spec, output, wanted in zip(
            model.signature.outputs, infer(artifact, rows, PARITY_ROWS), expected, strict=True
        ):
            distance = float(np.abs(output.astype(np.float64) - wanted).mean() / max(wanted.std(), 1e-12))
            if distance > PARITY_TOLERANCE:
                raise BrokenPromiseError(
                    f'output "{spec.name}" of the integer graph is {distance:.3f} standard deviations from '
                    f"what was learned; {PARITY_TOLERANCE} is allowed. Use int8-static."
                )
        return artifact

    def ensures(self, before: TorchModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks that layers compute on integers, that zeros stayed zero, and that the file is smaller."""
        operators = quantized_operators(after)
        graph = _graph(traced(before))
        found = layers(graph)
        if sum(operators.values()) < len(found):
            raise BrokenPromiseError(
                f"{sum(operators.values())} of {len(found)} layers compute on integers. Use int8-static."
            )
        facts = promised(after, export(before).proto.ByteSize())
        zeros_before = sum(held_zeros(graph, layer) for layer in found)
        zeros_after = _zero_codes(after)
        if zeros_after < zeros_before:
            raise BrokenPromiseError(
                f"{zeros_before} weights were held at zero, {zeros_after} zeros are left."
            )
        return {**facts, "zero_weights": zeros_after}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many operators compute on integers at the end of the recipe."""
        still_promised(facts, artifact)


def _activation_rule(settings: QatSettings) -> RangeRule:
    if settings.clipping == "pact":
        return "clipping"
    return "step" if settings.learned_step else "extremes"


def _own_zero_points(graph: onnx.GraphProto) -> None:
    """Gives each weight zero points of its own, in place: onnxruntime cannot widen shared ones."""
    stored = {tensor.name: tensor for tensor in graph.initializer}
    read: set[str] = set()
    for node in graph.node:
        if node.op_type != "DequantizeLinear" or node.input[0] not in stored or len(node.input) < 3:
            continue
        name = node.input[2]
        if name in read and name in stored:
            own = graph.initializer.add()
            own.CopyFrom(stored[name])
            own.name = node.input[2] = f"{node.input[0]}_zero_point"
        read.add(name)


def _zero_codes(model: OnnxModel) -> int:
    """How many weights are stored as an integer zero."""
    arrays = (
        numpy_helper.to_array(tensor)
        for tensor in model.proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8 and len(tensor.dims) > 1
    )
    return sum(int((array == 0).sum()) for array in arrays)


def _graph(model: TorchModel) -> fx.GraphModule:
    assert isinstance(model.module, fx.GraphModule)
    return model.module
