"""Eight-bit integers instead of floats: dynamic for matrix products, static for whole networks."""

from __future__ import annotations

import tempfile
import warnings
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import ClassVar, TypeVar

import numpy as np
import onnx
from onnxruntime.quantization import QuantType, quantize_dynamic
from pydantic import Field

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
)
from compression.calibration import Calibration, Calibrator
from compression.chatter import quiet
from compression.data import Split
from compression.inference import infer
from compression.inspection import (
    heavy_operators,
    hidden_operators,
    host_operators,
    quantization_marks,
    quantized_operators,
    weighted_operators,
    weights_by_dtype,
)
from compression.model import Form, OnnxModel
from compression.qdq import PRODUCTS, WEIGHTED, ActivationType, Scheme, prepared, quantized, touched

CALIBRATION_ROWS = 256
CHECKED_ROWS = 64


class QuantizationSettings(Settings):
    """What all quantizations of graphs share.

    Attributes:
        exclude_nodes: Names of nodes that stay float32, such as the first and the last layer.
        per_channel: One scale per output channel of a weight instead of one per weight.
        reduce_range: Weights of seven bits, which x86 processors without VNNI multiply faster: sums of
            products of eight bits overflow what they add in.
    """

    exclude_nodes: tuple[str, ...] = ()
    per_channel: bool = True
    reduce_range: bool = False


class DynamicInt8Settings(QuantizationSettings):
    """Settings of `int8-dynamic`."""


class CalibratedSettings(QuantizationSettings):
    """What all quantizations with calibrated activations share.

    Attributes:
        calibration: How the range of an activation is chosen from what was seen of it: its extremes, the
            range that loses least information (KL), or all but its outliers.
        percentile: How many percent of the values `calibration="percentile"` keeps.
        rows: How many rows of the calibration split are looked at. Memory does not grow with them.
        symmetric: Activation ranges are widened to be symmetric around zero.
        activations: Integer type of activations. x86 processors are fastest with `uint8`, TensorRT wants
            `int8` with `symmetric`.
    """

    calibration: Calibration = "minmax"
    percentile: float = Field(default=99.99, gt=50.0, le=100.0)
    rows: int = Field(default=CALIBRATION_ROWS, ge=1)
    symmetric: bool = False
    activations: ActivationType = "uint8"

    @property
    def calibrator(self) -> Calibrator:
        """Finds the ranges of activations."""
        return Calibrator(self.calibration, self.percentile, self.symmetric)


class StaticInt8Settings(CalibratedSettings):
    """Settings of `int8-static`.

    Attributes:
        exclude_operators: Operator types that stay float32.
    """

    exclude_operators: tuple[str, ...] = ()

    @property
    def scheme(self) -> Scheme:
        """How floats become integers."""
        scheme = Scheme(self.per_channel, self.reduce_range, self.symmetric, self.activations)
        return replace(
            scheme, operators=tuple(name for name in scheme.operators if name not in self.exclude_operators)
        )


S = TypeVar("S", bound=QuantizationSettings)


class Int8Pass(Pass[S, OnnxModel, OnnxModel]):
    """What all quantizations of graphs require and promise."""

    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = "int8"

    def refused_after(self, before: AnyPass) -> str:
        """Refuses weights in another number format; those that codes stand for would be stored in full."""
        if not before.number_format:
            return ""
        return f"weights are {before.number_format} then. Quantize once, from float32"

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that the model can be quantized, is not yet, and that the excluded nodes exist."""
        if done := quantized_operators(model):
            raise PassRefusedError(f"the model is quantized already ({_listed(done)}). Quantize it once.")
        if marks := quantization_marks(model):
            raise PassRefusedError(f"the model's weights are quantized already ({_listed(marks)}).")
        if hidden := hidden_operators(model):
            raise PassRefusedError(
                f"{_listed(hidden)} lie inside a Scan, Loop or If, which quantization does not enter. Export "
                "the model without it, and with a dynamic batch axis: a file for a single row is served in a "
                "Scan over the rows."
            )
        weighted = weighted_operators(model)
        if not weighted:
            raise PassRefusedError("the model has no convolution or matrix product with weights.")
        if fused := host_operators(model) or (not weighted.keys() & {*WEIGHTED} and weighted):
            raise PassRefusedError(
                f"onnxruntime has fused the model's operators, or laid them out for one processor "
                f"({_listed(fused)}), and does not quantize those. Add the file that it was optimized from."
            )
        stored = weights_by_dtype(model)
        if "float16" in stored:
            raise PassRefusedError("the model is float16. Quantize from float32.")
        if "float64" in stored and "float32" not in stored:
            raise PassRefusedError("the model is float64. Quantize from float32.")
        check_known("node", self.settings.exclude_nodes, (node.name for node in model.proto.graph.node))

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks for integer operators, int8 weights, a smaller file, and answers that are the model's."""
        facts = promised(after, before.proto.ByteSize())
        check_related(before, after, context.splits.calibration.spread(CHECKED_ROWS))
        return facts

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that as many operators compute on integers at the end of the recipe."""
        still_promised(facts, artifact)


def promised(after: OnnxModel, bytes_before: int) -> Facts:
    """What quantization promises, found on its artifact: integer operators, int8 weights, a smaller file.

    Raises:
        BrokenPromiseError: There are no integer operators or weights.
        PassRefusedError: The file is no smaller.
    """
    operators = quantized_operators(after)
    stored = weights_by_dtype(after)
    if not operators:
        raise BrokenPromiseError(
            "no operator computes on integers. Exclude less, or use a technique that fits the model."
        )
    if not stored.get("int8"):
        raise BrokenPromiseError("no weight is stored as int8. Exclude less.")
    sizes = check_smaller(bytes_before, after.proto.ByteSize(), "scales", "quantization")
    return {
        "quantized_operators": operators,
        "heavy_operators": sum(heavy_operators(after).values()),
        "int8_weights": stored["int8"],
        "float32_weights": stored.get("float32", 0),
        **sizes,
    }


def check_related(before: OnnxModel, after: OnnxModel, rows: Split) -> None:
    """Checks that what a quantized graph answers has to do with what the float graph does.

    Args:
        before: The float graph.
        after: The quantized one.
        rows: What both answer.

    Raises:
        BrokenPromiseError: The error of a float output has as much power as the output: zeros were as near.
    """
    pairs = zip(*(infer(model, rows, len(rows)) for model in (before, after)), strict=True)
    for spec, (exact, rounded) in zip(after.signature.outputs, pairs, strict=True):
        if exact.dtype.kind != "f" or exact.shape != rounded.shape:
            continue
        counted = np.isfinite(exact)
        signal, answer = exact[counted].astype(np.float64), rounded[counted].astype(np.float64)
        power, noise = float(np.square(signal).sum()), float(np.square(answer - signal).sum())
        if power > 0.0 and not noise < power:  # so that no number is no excuse
            raise BrokenPromiseError(
                f'output "{spec.name}" has nothing to do with the float graph\'s: on calibration rows its '
                f"error has {noise / power:.3g} times the power of the answer. Exclude operators before it, "
                "or leave quantization out."
            )


def still_promised(facts: Facts, artifact: OnnxModel) -> None:
    """Checks that later steps left as many operators on integers as there were.

    Raises:
        BrokenPromiseError: Some compute on floats again.
    """
    expected = sum(facts["quantized_operators"].values())
    kept = sum(quantized_operators(artifact).values())
    if kept < expected:
        raise BrokenPromiseError(f"{kept} of {expected} operators are still quantized. Quantize last.")


class DynamicInt8(Int8Pass[DynamicInt8Settings]):
    """Quantizes weights ahead and activations as they come; matrix products only, no data needed.

    "Dynamic quantization" in Gholami et al. 2021, "A Survey of Quantization Methods for Efficient Neural
    Network Inference", section III: the scale of an activation is measured on each batch, so that rows of
    one batch influence each other slightly.
    """

    name: ClassVar[str] = "int8-dynamic"
    version: ClassVar[int] = 3
    settings_class: ClassVar[type[Settings]] = DynamicInt8Settings

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks also that there is a matrix product with a stored weight."""
        super().requires(model, context)
        graph = model.proto.graph
        stored = {tensor.name for tensor in graph.initializer}
        stored.update(node.output[0] for node in graph.node if node.op_type == "Constant")
        if not any(node.op_type in PRODUCTS and node.input[1] in stored for node in graph.node):
            raise PassRefusedError("the model has no MatMul or Gemm with weights. Use int8-static.")

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with MatMulInteger in place of each MatMul and Gemm."""
        ready = prepared(model)
        # onnxruntime logs advice to the root logger, and wants files.
        with tempfile.TemporaryDirectory() as folder, quiet(""), warnings.catch_warnings():
            source, target = Path(folder, "prepared.onnx"), Path(folder, "quantized.onnx")
            onnx.save(ready.proto, source)
            quantize_dynamic(
                source,
                target,
                # Dynamic quantization of convolutions is several times slower than float32 everywhere.
                op_types_to_quantize=list(PRODUCTS),
                per_channel=self.settings.per_channel,
                reduce_range=self.settings.reduce_range,
                weight_type=QuantType.QInt8,
                nodes_to_exclude=names_of(ready, self.settings.exclude_nodes),
                extra_options={"MatMulConstBOnly": True},
            )
            return OnnxModel(onnx.load(target), model.signature)


class StaticInt8(Int8Pass[StaticInt8Settings]):
    """Quantizes weights and activations with ranges from the calibration split, as explicit QDQ pairs.

    Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient Integer-Arithmetic-Only
    Inference": unsigned asymmetric activations, signed symmetric weights per output channel.
    """

    name: ClassVar[str] = "int8-static"
    version: ClassVar[int] = 3
    settings_class: ClassVar[type[Settings]] = StaticInt8Settings

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with QuantizeLinear and DequantizeLinear around what can be quantized."""
        return Calibrated(model, self.settings, context).quantized()


class Calibrated:
    """A graph with the ranges of its activations, to be quantized as often as is asked.

    Args:
        model: The float graph.
        settings: How it is calibrated and quantized.
        context: Holds the calibration split.
    """

    def __init__(self, model: OnnxModel, settings: StaticInt8Settings, context: PassContext) -> None:
        self.graph = prepared(model)
        self.excluded = names_of(self.graph, settings.exclude_nodes)
        context.report("calibrating", 0.0)
        self.rows = context.splits.calibration.spread(settings.rows)
        self._scheme = settings.scheme
        tensors = touched(self.graph, self._scheme.operators)
        self._ranges = settings.calibrator.ranges(self.graph, tensors, self.rows)

    def quantized(self, left_out: Collection[str] = (), only: Sequence[str] | None = None) -> OnnxModel:
        """The graph with integers; what is `left_out` or not among `only` these nodes stays float."""
        return quantized(self.graph, self._ranges, self._scheme, [*self.excluded, *left_out], only)


def names_of(ready: OnnxModel, nodes: Collection[str]) -> list[str]:
    """What nodes are called in the prepared graph, where one may be fused with its neighbour.

    Raises:
        PassRefusedError: A node is gone: it was computed ahead or is now a part of another.
    """
    fused = {
        wanted: [node.name for node in ready.proto.graph.node if _comes_from(node.name, wanted)]
        for wanted in nodes
    }
    if gone := sorted(wanted for wanted, names in fused.items() if not names):
        raise PassRefusedError(
            f"node {', '.join(gone)} is folded into its neighbours before quantization. Exclude one of "
            f"{', '.join(node.name for node in ready.proto.graph.node)}."
        )
    return [name for names in fused.values() for name in names]


def _comes_from(name: str, original: str) -> bool:
    # onnxruntime calls a fused node by the first one's name, a slash, and its rule's name.
    return name == original or name.startswith(f"{original}/")


def _listed(counts: Mapping[str, int]) -> str:
    return ", ".join(f"{count} {name}" for name, count in sorted(counts.items()))
