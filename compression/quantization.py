"""Eight-bit integers instead of floats: dynamic for matrix products, static for whole networks."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import ClassVar, Literal, TypeVar

import onnx
from onnxruntime.quantization import (
    CalibrationDataReader,
    CalibrationMethod,
    QuantFormat,
    QuantType,
    quantize_dynamic,
    quantize_static,
)
from onnxruntime.quantization.shape_inference import quant_pre_process
from pydantic import Field

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.chatter import quiet
from compression.data import Split
from compression.inspection import heavy_operators, quantized_operators, weights_by_dtype
from compression.model import Form, OnnxModel
from compression.signature import Array, Signature

# Dynamic quantization of convolutions is several times slower than float32 on every runtime measured.
DYNAMIC_OPERATORS = ("MatMul", "Gemm")
CALIBRATION_BATCH = 32

Calibration = Literal["minmax", "entropy", "percentile"]
CALIBRATIONS: dict[Calibration, CalibrationMethod] = {
    "minmax": CalibrationMethod.MinMax,
    "entropy": CalibrationMethod.Entropy,
    "percentile": CalibrationMethod.Percentile,
}


class QuantizationSettings(Settings):
    """What both quantizations share.

    Attributes:
        exclude_nodes: Names of nodes that stay float32, such as the first and the last layer.
        per_channel: One scale per output channel of a weight instead of one per weight.
    """

    exclude_nodes: tuple[str, ...] = ()
    per_channel: bool = True


class DynamicInt8Settings(QuantizationSettings):
    """Settings of `int8-dynamic`."""


class StaticInt8Settings(QuantizationSettings):
    """Settings of `int8-static`.

    Attributes:
        calibration: How the range of an activation is chosen from what was seen of it: its extremes, the
            range that loses least information (KL), or all but its outliers.
        rows: How many rows of the calibration split are looked at. Entropy and percentile hold all
            activations of these rows in memory.
        exclude_operators: Operator types that stay float32.
    """

    calibration: Calibration = "minmax"
    rows: int = Field(default=256, ge=1)
    exclude_operators: tuple[str, ...] = ()


S = TypeVar("S", bound=QuantizationSettings)


class _Int8(Pass[S, OnnxModel, OnnxModel]):
    """What both quantizations require and promise."""

    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that the model is not quantized yet and that the excluded nodes exist."""
        if done := quantized_operators(model):
            raise PassRefusedError(f"the model is quantized already ({_listed(done)}). Quantize it once.")
        if "float16" in weights_by_dtype(model):
            raise PassRefusedError("the model is float16. Quantize from float32.")
        names = {node.name for node in model.proto.graph.node}
        if unknown := sorted(set(self.settings.exclude_nodes) - names):
            raise PassRefusedError(
                f"there is no node {', '.join(unknown)}. Nodes are named {', '.join(sorted(names))}."
            )

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks for integer operators, int8 weights and a smaller file."""
        operators = quantized_operators(after)
        stored = weights_by_dtype(after)
        bytes_before, bytes_after = before.proto.ByteSize(), after.proto.ByteSize()
        if not operators:
            raise BrokenPromiseError(
                "no operator computes on integers. Exclude less, or use a technique that fits the model."
            )
        if not stored.get("int8"):
            raise BrokenPromiseError("no weight is stored as int8. Exclude less.")
        if bytes_after >= bytes_before:
            raise BrokenPromiseError(
                f"the file grew from {bytes_before} to {bytes_after} bytes: scales outweigh the weights. "
                "Leave quantization out for so small a model."
            )
        return {
            "quantized_operators": operators,
            "heavy_operators": sum(heavy_operators(after).values()),
            "int8_weights": stored["int8"],
            "float32_weights": stored.get("float32", 0),
            "bytes_before": bytes_before,
            "bytes_after": bytes_after,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many operators compute on integers at the end of the recipe."""
        promised = sum(facts["quantized_operators"].values())
        kept = sum(quantized_operators(artifact).values())
        if kept < promised:
            raise BrokenPromiseError(f"{kept} of {promised} operators are still quantized. Quantize last.")


class DynamicInt8(_Int8[DynamicInt8Settings]):
    """Quantizes weights ahead and activations as they come; matrix products only, no data needed.

    "Dynamic range quantization": the scale of an activation is measured on each batch, so that rows of one
    batch influence each other slightly.
    """

    name: ClassVar[str] = "int8-dynamic"
    version: ClassVar[int] = 1
    settings_class: ClassVar[type[Settings]] = DynamicInt8Settings

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks also that there is a matrix product with a stored weight."""
        super().requires(model, context)
        stored = {tensor.name for tensor in model.proto.graph.initializer}
        if not any(
            node.op_type in DYNAMIC_OPERATORS and node.input[1] in stored for node in model.proto.graph.node
        ):
            raise PassRefusedError("the model has no MatMul or Gemm with weights. Use int8-static.")

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with MatMulInteger in place of each MatMul and Gemm."""

        def quantize(source: Path, target: Path) -> None:
            quantize_dynamic(
                source,
                target,
                op_types_to_quantize=list(DYNAMIC_OPERATORS),
                per_channel=self.settings.per_channel,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=list(self.settings.exclude_nodes),
                extra_options={"MatMulConstBOnly": True},
            )

        return _quantized(model, quantize)


class StaticInt8(_Int8[StaticInt8Settings]):
    """Quantizes weights and activations with ranges from the calibration split, as explicit QDQ pairs.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": unsigned asymmetric activations, signed symmetric weights per output channel. Entropy
    calibration after Migacz 2017 (TensorRT).
    """

    name: ClassVar[str] = "int8-static"
    version: ClassVar[int] = 1
    settings_class: ClassVar[type[Settings]] = StaticInt8Settings

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with QuantizeLinear and DequantizeLinear around what can be quantized."""
        settings = self.settings
        rows = context.splits.calibration.take(slice(0, settings.rows))
        excluded = [
            node.name
            for node in model.proto.graph.node
            if node.name in settings.exclude_nodes or node.op_type in settings.exclude_operators
        ]

        def quantize(source: Path, target: Path) -> None:
            quantize_static(
                source,
                target,
                _Rows(model.signature, rows),
                quant_format=QuantFormat.QDQ,
                per_channel=settings.per_channel,
                # Only unsigned activations with signed weights reach the processors' int8 units.
                activation_type=QuantType.QUInt8,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=excluded,
                calibrate_method=CALIBRATIONS[settings.calibration],
                # Not CalibMaxIntermediateOutputs: it drops full chunks of what was collected unread.
                extra_options={"ActivationSymmetric": False, "WeightSymmetric": True},
            )

        return _quantized(model, quantize)


class _Rows(CalibrationDataReader):  # type: ignore[misc]  # published without types
    """Feeds a split to onnxruntime's calibrator, a batch at a time."""

    def __init__(self, signature: Signature, split: Split) -> None:
        self._names = [spec.name for spec in signature.inputs]
        # The histogram calibrators stack what they collect: every batch must be as long as the others.
        size = min(CALIBRATION_BATCH, len(split))
        even = split.take(slice(0, len(split) - len(split) % size))
        self._batches: Iterator[Mapping[str, Array]] = even.batches(size)

    def get_next(self) -> dict[str, Array] | None:
        """The next batch by input name, or None after the last."""
        batch = next(self._batches, None)
        return None if batch is None else {name: batch[name] for name in self._names}


def _quantized(model: OnnxModel, quantize: Callable[[Path, Path], None]) -> OnnxModel:
    """Runs one of onnxruntime's quantizers, which want files, on the prepared graph."""
    # onnxruntime logs advice to the root logger and prints the progress of its calibration.
    with tempfile.TemporaryDirectory() as folder, quiet(""), warnings.catch_warnings():
        prepared, target = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
        # Folds batch normalization and infers shapes, without which neighbours stay float32.
        quant_pre_process(model.proto, prepared)
        quantize(prepared, target)
        return OnnxModel(onnx.load(target), model.signature)


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
