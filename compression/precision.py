"""Fewer bits per float: half precision inside, single precision outside."""

from __future__ import annotations

import math
import warnings
from collections.abc import Iterator, Set
from typing import ClassVar

import numpy as np
import onnx
import onnx_ir as ir
from onnx import numpy_helper
from onnx_ir.passes.common import RemoveUnusedNodesPass
from onnxruntime.transformers.float16 import DEFAULT_OP_BLOCK_LIST, convert_float_to_float16
from pydantic import Field

from compression.base import (
    CODES,
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
from compression.data import Split
from compression.export import ExportError, check_signature
from compression.inference import infer
from compression.inspection import (
    host_operators,
    quantization_marks,
    quantized_operators,
    sequence_operators,
    weights_by_dtype,
)
from compression.model import Form, OnnxModel
from compression.probing import probe
from compression.signature import Array

FLOAT16_MAX = float(np.finfo(np.float16).max)
PROBE_ROWS = 16
MOST_RETURNED = 32

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
        keep_nodes: Names of operators that go on computing in float32.
        tolerance: Largest difference from the float32 graph on validation, as a share of an output's largest
            value; operators return to float32, the worst first, until it is kept.
        max_drop: Largest loss of the model's metric on validation, as a share of the float32 graph's, kept
            in the same way; None not to ask.
        rows: How many rows of validation are compared.
    """

    keep_float32: tuple[str, ...] | None = None
    keep_nodes: tuple[str, ...] = ()
    tolerance: float = Field(default=0.05, gt=0.0)
    max_drop: float | None = Field(default=None, ge=0.0, lt=1.0)
    rows: int = Field(default=128, ge=1)


class Float16(Pass[Float16Settings, OnnxModel, OnnxModel]):
    """Stores and computes in IEEE half precision; inputs and outputs stay float32.

    Micikevicius et al. 2018, "Mixed Precision Training". Operators that lose too much, by overflow or
    cancellation, are found by comparing every tensor with the float32 graph's, and stay float32. On
    processors without half-precision arithmetic the gain is size, not time.
    """

    name: ClassVar[str] = "fp16"
    version: ClassVar[int] = 3
    takes: ClassVar[Form] = Form.ONNX
    gives: ClassVar[Form] = Form.ONNX
    number_format: ClassVar[str] = "float16"
    settings_class: ClassVar[type[Settings]] = Float16Settings

    def __init__(self, settings: Float16Settings) -> None:
        super().__init__(settings)
        self._returned: list[str] = []

    def refused_after(self, before: AnyPass) -> str:
        """Refuses weights that are no float32; those that codes stand for are."""
        if before.number_format in ("", CODES):
            return ""
        return f"weights are {before.number_format} then. Convert once, from float32"

    def requires(self, model: OnnxModel, context: PassContext) -> None:
        """Checks that there are float32 weights, none of them beyond float16's range."""
        if quantized_operators(model) or quantization_marks(model):
            raise PassRefusedError("the model is quantized already. Use fp16 on a float32 model.")
        if host_operators(model):
            raise PassRefusedError(
                "onnxruntime has laid the model's operators out for one processor, in float32. Add the file "
                "that it was optimized from."
            )
        if passing := sequence_operators(model):
            raise PassRefusedError(
                f"{', '.join(passing)} pass sequences of tensors on, whose type the converter cannot change "
                "in a body. Write what loops over rows as operations on all of them."
            )
        judged = context.quality is not None and context.splits.validation.labels is not None
        if self.settings.max_drop is not None and not judged:
            raise PassRefusedError(
                "max_drop needs a metric and a labelled validation split. Leave it out; tolerance compares "
                "outputs without either."
            )
        check_known("node", self.settings.keep_nodes, (node.name for node in model.proto.graph.node))
        if "float32" not in weights_by_dtype(model):
            raise PassRefusedError("the model has no float32 weights. There is nothing to convert.")
        for tensor in model.proto.graph.initializer:
            # A scalar is a constant of the formula, such as what masks attention: the guard sees its work.
            if tensor.data_type != onnx.TensorProto.FLOAT or not tensor.dims:
                continue
            largest = float(np.abs(numpy_helper.to_array(tensor)).max(initial=0.0))
            if largest > FLOAT16_MAX:
                raise PassRefusedError(
                    f'weight "{tensor.name}" holds {largest:g}, beyond the {FLOAT16_MAX:g} of float16. '
                    "Train with weight decay, or rescale that layer."
                )

    def run(self, model: OnnxModel, context: PassContext) -> OnnxModel:
        """Returns the graph with float16 weights, casts at its ends and around what stays float32.

        Raises:
            BrokenPromiseError: It is not as accurate as it has to be whatever returns to float32.
        """
        named = _named(model)
        rows = context.splits.validation.spread(PROBE_ROWS)
        self._returned = list(_crashing(named.proto.graph))
        for number in range(MOST_RETURNED + 1):
            half = self._converted(named)
            problem = self._problem(named, half, context)
            if problem is None:
                return half
            kept = {*self._kept_types(), *self.settings.keep_nodes, *self._returned}
            returning = losing_operators(named, half, rows, kept)
            if not returning:
                break
            context.report(f"{', '.join(returning)} back to float32", number / MOST_RETURNED)
            self._returned += returning
        back = ", ".join(self._returned) or "no operator"
        raise BrokenPromiseError(
            f"{problem}, with {back} back in float32. Raise tolerance or max_drop, or leave fp16 out."
        )

    def _kept_types(self) -> tuple[str, ...]:
        return KEPT_IN_FLOAT32 if self.settings.keep_float32 is None else self.settings.keep_float32

    def _converted(self, model: OnnxModel) -> OnnxModel:
        proto = onnx.ModelProto()
        proto.CopyFrom(model.proto)
        with warnings.catch_warnings():
            # The converter warns of each value too small for float16; such values round to the smallest.
            warnings.filterwarnings("ignore", message="the float32 number .* will be truncated")
            converted = convert_float_to_float16(
                proto,
                keep_io_types=True,
                op_block_list=list(self._kept_types()),
                node_block_list=[*self.settings.keep_nodes, *self._returned],
            )
        _bring_home(converted.graph)
        # The converter appends its casts at the end of the graph.
        ordered = ir.from_proto(converted)
        ordered.graph.sort()
        _join_float32(ordered)
        return OnnxModel(ir.to_proto(ordered), model.signature)

    def _problem(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> str | None:
        """What is less accurate than it has to be, or None."""
        settings, validation = self.settings, context.splits.validation
        # Processors that compute float16 in float32 keep values that are lost on those that do not.
        errors = tensor_errors(before, after, validation.spread(PROBE_ROWS))
        if lost := [name for name, error in errors.items() if error == math.inf]:
            return f'"{lost[0]}" leaves the range of float16'
        rows = validation.spread(settings.rows)
        was, now = (infer(model, rows, len(rows)) for model in (before, after))
        for spec, ours, theirs in zip(after.signature.outputs, was, now, strict=True):
            error = difference(ours, theirs)
            if not error <= settings.tolerance:
                return f'output "{spec.name}" differs by {error:.3g} of its largest value in float16'
        if settings.max_drop is None:
            return None
        quality = context.quality
        assert quality is not None  # `requires` asked
        drop = 1.0 - quality(now, was, rows.labels)
        return None if drop <= settings.max_drop else f"the metric loses {drop:.4f} of its value in float16"

    def ensures(self, before: OnnxModel, after: OnnxModel, context: PassContext) -> Facts:
        """Checks for float16 weights, a smaller file, unchanged inputs and outputs, and a finite run."""
        stored = weights_by_dtype(after)
        if not stored.get("float16"):
            raise BrokenPromiseError(
                "no weight became float16: every operator is kept in float32. Shorten keep_float32."
            )
        sizes = check_smaller(before.proto.ByteSize(), after.proto.ByteSize(), "casts", self.name)
        try:
            check_signature(after.proto, after.signature)
        except ExportError as error:
            raise BrokenPromiseError(f"the ends of the graph changed: {error}") from error
        if problem := self._problem(before, after, context):
            raise BrokenPromiseError(f"{problem}. Add the operators before it to keep_float32.")
        rows = context.splits.validation.spread(self.settings.rows)
        was, now = (infer(model, rows, len(rows)) for model in (before, after))
        return {
            "float16_weights": stored["float16"],
            "float32_weights": stored.get("float32", 0),
            "float16_tensors": _float16_tensors(after),
            "returned_to_float32": list(self._returned),
            "largest_error": max(map(difference, was, now)),
            **sizes,
        }

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the weights are still float16 at the end of the recipe."""
        stored = weights_by_dtype(artifact).get("float16", 0)
        if stored < facts["float16_weights"]:
            raise BrokenPromiseError(
                f"{stored} of {facts['float16_weights']} weights are still float16. Put fp16 last."
            )


def difference(expected: Array, given: Array) -> float:
    """Largest distance as a share of the largest expected value; infinite where a finite value is lost."""
    ours, theirs = expected.astype(np.float64), given.astype(np.float64)
    counted = np.isfinite(ours)
    if not np.isfinite(theirs[counted]).all():
        return math.inf
    distance = np.abs(ours[counted] - theirs[counted]).max(initial=0.0)
    return float(distance / max(np.abs(ours[counted]).max(initial=0.0), 1e-12))


def tensor_errors(before: OnnxModel, after: OnnxModel, rows: Split) -> dict[str, float]:
    """The `difference` of every tensor that both graphs have, by name, in the order of the first graph."""
    shared = {name for node in after.proto.graph.node for name in node.output}
    names = [name for node in before.proto.graph.node for name in node.output if name and name in shared]
    inputs = {spec.name: rows.inputs[spec.name] for spec in before.signature.inputs}
    was, now = probe(before, names, inputs), probe(after, names, inputs)
    return {
        name: difference(value, now[name])
        for name, value in was.items()
        if name in now and value.dtype.kind in "biuf"
    }


def _bring_home(graph: onnx.GraphProto, outer: Set[str] = frozenset()) -> None:
    """Moves casts into the body that their input lives in; the converter puts all beside the bodies."""
    made = {*outer, *(value.name for value in (*graph.input, *graph.initializer))}
    made.update(name for node in graph.node for name in node.output)
    bodies = [attribute.g for node in graph.node for attribute in node.attribute if attribute.HasField("g")]
    for cast in [node for node in graph.node if node.op_type == "Cast" and node.input[0] not in made]:
        home = next(body for body in bodies if cast.input[0] in _names(body))
        home.node.append(cast)
        graph.node.remove(cast)
        made.difference_update(cast.output)
    for body in bodies:
        _bring_home(body, made)


def _names(graph: onnx.GraphProto) -> set[str]:
    """What is made in a graph, or in a body within it."""
    names = {value.name for value in (*graph.input, *graph.initializer)}
    for node in graph.node:
        names.update(node.output)
        for attribute in node.attribute:
            if attribute.HasField("g"):
                names |= _names(attribute.g)
    return names


def losing_operators(before: OnnxModel, after: OnnxModel, rows: Split, kept: Set[str]) -> list[str]:
    """Names of the operators to return to float32 next: where the error grows most, or beside it.

    Args:
        before: The float32 graph, its operators named.
        after: The same in float16; tensors have kept their names.
        rows: What both are run on.
        kept: Names and types of operators that are float32 already.
    """
    nodes, errors = before.proto.graph.node, tensor_errors(before, after, rows)

    def grown(node: onnx.NodeProto) -> float:
        arriving = max((errors.get(name, 0.0) for name in node.input), default=0.0)
        leaving = max((errors.get(name, 0.0) for name in node.output), default=0.0)
        return 0.0 if arriving == math.inf else leaving - arriving

    def free(node: onnx.NodeProto) -> bool:
        return not {node.name, node.op_type} & kept

    for node in sorted((node for node in nodes if grown(node) > 0.0), key=grown, reverse=True):
        if free(node):
            return [node.name]
        # It computes in float32, but what it reads or writes was rounded to float16 between two operators.
        edges = {*node.input, *node.output}
        beside = [each for each in nodes if free(each) and edges & {*each.input, *each.output}]
        if beside:
            return [each.name for each in beside]
    return []


def _named(model: OnnxModel) -> OnnxModel:
    """The model with a name for each operator, as the converter's list of exceptions is one of names."""
    proto = onnx.ModelProto()
    proto.CopyFrom(model.proto)
    for index, node in enumerate(proto.graph.node):
        node.name = node.name or f"{node.op_type}_{index}"
    return OnnxModel(proto, model.signature)


def _crashing(graph: onnx.GraphProto) -> Iterator[str]:
    """Each Transpose that moves the first axis back for a MatMul to read, as behind a recurrent layer.

    onnxruntime 1.32 fuses both, and dies of its own layout optimizer when it opens such a graph in float16.
    """
    readers: dict[str, list[onnx.NodeProto]] = {}
    for node in graph.node:
        for name in node.input:
            readers.setdefault(name, []).append(node)

    def reaches_product(name: str) -> bool:
        return any(
            node.op_type == "MatMul"
            or (node.op_type in ("Cast", "Identity") and reaches_product(node.output[0]))
            for node in readers.get(name, [])
        )

    for node in graph.node:
        order = next((list(each.ints) for each in node.attribute if each.name == "perm"), [])
        others = [axis for axis in order if axis]
        moved = len(order) > 2 and 0 in order[-2:] and others == sorted(others)
        if node.op_type == "Transpose" and moved and reaches_product(node.output[0]):
            yield node.name


def _join_float32(model: ir.Model) -> None:
    """Leaves out the way through float16 between two operators that both compute in float32, in place."""
    for value in model.graph.initializers.values():
        if value.const_value is not None:
            value.dtype = value.const_value.dtype  # the converter annotates what it kept as converted
    for node in model.graph:
        exact = node.inputs[0] if _casts_to(node, ir.DataType.FLOAT) else None
        rounding = None if exact is None else exact.producer()
        if rounding is not None and _casts_to(rounding, ir.DataType.FLOAT16):
            exact = rounding.inputs[0]
        if exact is not None and exact.dtype == ir.DataType.FLOAT and not node.outputs[0].is_graph_output():
            ir.convenience.replace_all_uses_with(node.outputs[0], exact)
    RemoveUnusedNodesPass()(model)


def _casts_to(node: ir.Node, dtype: ir.DataType) -> bool:
    return node.op_type == "Cast" and node.attributes["to"].as_int() == dtype


def _float16_tensors(model: OnnxModel) -> int:
    return sum(tensor.data_type == onnx.TensorProto.FLOAT16 for tensor in model.proto.graph.initializer)
