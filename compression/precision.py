"""Fewer bits per float: half precision inside, single precision outside."""

from __future__ import annotations

import warnings
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16

from compression.base import BrokenPromiseError, Facts, Pass, PassContext, PassRefusedError, Settings
from compression.export import ExportError, check_signature
from compression.inference import infer
from compression.inspection import quantization_marks, quantized_operators, weights_by_dtype
from compression.model import Form, OnnxModel

FLOAT16_MAX = float(np.finfo(np.float16).max)
PROBE_ROWS = 2

# Squares, sums and exponentials leave float16's range (65504) long before their results matter.
UNSAFE_IN_FLOAT16 = (
    "Exp",
    "GroupNormalization",
    "InstanceNormalization",
    "LayerNormalization",
    "Pow",
    "ReduceL2",
    "ReduceSumSquare",
    "SimplifiedLayerNormalization",
    "Softplus",
)
KEPT_IN_FLOAT32 = tuple(sorted({*DEFAULT_OP_BLOCK_LIST, *UNSAFE_IN_FLOAT16}))


class Float16Settings(Settings):
    """Settings of `fp16`.

    Attributes:
        keep_float32: Operator types that go on computing in float32; None for `KEPT_IN_FLOAT32`.
    """

    keep_float32: tuple[str, ...] | None = None


class Float16(Pass[Float16Settings, OnnxModel, OnnxModel]):
    """Stores and computes in IEEE half precision; inputs and outputs stay float32.

    Micikevicius et al. 2018, "Mixed Precision Training". On processors without half-precision arithmetic
    the gain is size, not time.
    """

    name: ClassVar[str] = "fp16"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX
    settings_class: ClassVar[type[Settings]] = Float16Settings

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that there are float32 weights, none of them beyond float16's range."""
        if quantized_operators(model) or quantization_marks(model):
            raise PassRefusedError("the model is quantized already. Use fp16 on a float32 model.")
        if "float32" not in weights_by_dtype(model):
            raise PassRefusedError("the model has no float32 weights. There is nothing to convert.")
        for tensor in model.proto.graph.initializer:
            if tensor.data_type != onnx.TensorProto.FLOAT:
                continue
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > FLOAT16_MAX:
                raise PassRefusedError(
                    f'weight "{tensor.name}" holds {largest:g}, beyond the {FLOAT16_MAX:g} of float16. '
                    "Train with weight decay, or rescale that layer."
                )

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with float16 weights and casts at its ends."""
        kept = KEPT_IN_FLOAT32 if self.settings.keep_float32 is None else self.settings.keep_float32
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        with warnings.catch_warnings():
            # The converter warns of each value too small for float16; such values round to the smallest.
            warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
            converted = convert_float_to_float16(proto, keep_io_types=True, op_block_list=list(kept))
        # The converter appends its casts at the end of the graph.
        ordered = ir.from_proto(converted)
        ordered.graph.sort()
        return OnnxModel(ir.to_proto(ordered), model.signature)

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks for float16 weights, a smaller file, unchanged inputs and outputs, and a finite run."""
        stored = weights_by_dtype(after)
        bytes_before, bytes_after = before.proto.ByteSize(), after.proto.ByteSize()
        if not stored.get("float16"):
            raise BrokenPromiseError(
                "no weight became float16: every operator is kept in float32. Shorten keep_float32."
            )
        if bytes_after >= bytes_before:
            raise BrokenPromiseError(
                f"the file grew from {bytes_before} to {bytes_after} bytes: casts outweigh the weights. "
                "Leave fp16 out for so small a model."
            )
        try:
            check_signature(after.proto, after.signature)
        except ExportError as error:
            raise BrokenPromiseError(f"the ends of the graph changed: {error}") from error
        for spec, output in zip(
            after.signature.outputs, infer(after, context.splits.validation, PROBE_ROWS), strict=True
        ):
            if not np.isfinite(output).all():
                raise BrokenPromiseError(
                    f'output "{spec.name}" overflows in float16. Add the operators before it to keep_float32.'
                )
        return {
            "float16_weights": stored["float16"],
            "float32_weights": stored.get("float32", 0),
            "float16_tensors": _float16_tensors(after),
            "bytes_before": bytes_before,
            "bytes_after": bytes_after,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the weights are still float16 at the end of the recipe."""
        stored = weights_by_dtype(artifact).get("float16", 0)
        if stored < facts["float16_weights"]:
            raise BrokenPromiseError(
                f"{stored} of {facts['float16_weights']} weights are still float16. Put fp16 last."
            )


def _float16_tensors(model: OnnxModel) -> int:
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
