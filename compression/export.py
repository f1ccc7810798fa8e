"""From the torch form to the ONNX form, once for every recipe."""

from __future__ import annotations

import ast
import copy
import io
import warnings
from collections import Counter
from typing import Any

import onnx
import torch
from torch import Tensor, nn

from compression.base import CompressionError
from compression.chatter import quiet
from compression.model import OnnxModel, TorchModel
from compression.rewriting import baked, is_stored_as_is, open_bags, set_scales_apart
from compression.signature import Signature, TensorSpec

# The newest opset that the exporter writes without a version conversion; onnxruntime and OpenVINO take it.
OPSET = 18
# Raise it when the same module is written differently: what was built is built anew.
VERSION = 1
# Where the exporter notes the modules around an operator.
_SCOPES, _WEIGHT = "pkg.torch.onnx.name_scopes", ".weight"
# An example of one row would make the exporter believe that the batch is always one. What takes no input so
# short, a wide kernel or several poolings, is tried with longer ones.
EXAMPLE_LENGTHS = (2, 32, 256, 4096)


class ExportError(CompressionError):
    """A module cannot be written as ONNX with the signature that it claims."""


def export(model: TorchModel) -> OnnxModel:
    """Writes a module as an ONNX graph whose symbolic axes, the batch first, take any length.

    The graph holds no trace of the machine that wrote it: source paths and node metadata are removed, so
    equal weights give equal bytes.

    Raises:
        ExportError: The module cannot be traced, or its inputs and outputs are not the signature's.
    """
    module = copy.deepcopy(model.module).eval()
    if any(is_stored_as_is(part) for part in module.modules()):
        set_scales_apart(module)
    open_bags(baked(module))
    signature = model.signature
    write = _scripted if _has_free_steps(module, signature) else _traced
    try:
        with warnings.catch_warnings(), quiet("torch.onnx", "onnxscript"):
            # torch's own tracer calls what torch deprecates; nothing here can be changed about it.
            warnings.simplefilter("ignore")
            proto = write(module, signature)
    except Exception as error:
        raise ExportError(f"the module cannot be exported: {_first_line(error)}") from error
    _name_by_module(proto.graph)
    _forget_origin(proto.graph)
    check_signature(proto, signature)
    onnx.checker.check_model(proto, full_check=True)
    return OnnxModel(proto, signature)


def _traced(module: nn.Module, signature: Signature) -> onnx.ModelProto:
    program = torch.onnx.export(
        module,
        example_inputs(signature, module),
        dynamo=True,
        dynamic_shapes=dynamic_shapes(signature),
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
        opset_version=OPSET,
        verbose=False,
    )
    assert program is not None  # dynamo=True always returns one
    return program.model_proto


def _scripted(module: nn.Module, signature: Signature) -> onnx.ModelProto:
    """By the older exporter, which leaves the steps of recurrent layers free; the other fixes them."""
    file = io.BytesIO()
    torch.onnx.export(
        module,
        example_inputs(signature, module),
        file,  # type: ignore[arg-type] # torch's annotation leaves out what its older exporter takes
        dynamo=False,
        dynamic_axes={spec.name: _symbolic(spec) for spec in (*signature.inputs, *signature.outputs)},
        input_names=[spec.name for spec in signature.inputs],
        output_names=[spec.name for spec in signature.outputs],
        opset_version=OPSET,
    )
    return onnx.load_from_string(file.getvalue())


def _has_free_steps(module: nn.Module, signature: Signature) -> bool:
    is_recurrent = any(isinstance(part, nn.RNNBase) for part in module.modules())
    return is_recurrent and any(_symbolic(spec).keys() - {0} for spec in signature.inputs)


def dynamic_shapes(signature: Signature) -> tuple[dict[int, Any], ...]:
    """Which axes of each input take any length, as `torch.export` wants to be told."""
    dims = {axis: torch.export.Dim(axis) for spec in signature.inputs for axis in _symbolic(spec).values()}
    return tuple(
        {position: dims[axis] for position, axis in _symbolic(spec).items()} for spec in signature.inputs
    )


def check_signature(proto: onnx.ModelProto, signature: Signature) -> None:
    """Checks that a graph takes and gives exactly what the signature says.

    Raises:
        ExportError: A name, dtype or shape differs, or a symbolic axis became fixed.
    """
    for kind, values, specs in (
        ("input", proto.graph.input, signature.inputs),
        ("output", proto.graph.output, signature.outputs),
    ):
        if [value.name for value in values] != [spec.name for spec in specs]:
            raise ExportError(
                f"the graph's {kind}s are {[value.name for value in values]}; the signature says "
                f"{[spec.name for spec in specs]}. Make the signature name what the module takes and returns."
            )
        for value, spec in zip(values, specs, strict=True):
            _check_tensor(kind, value, spec)


def _check_tensor(kind: str, value: onnx.ValueInfoProto, spec: TensorSpec) -> None:
    tensor = value.type.tensor_type
    dtype = onnx.helper.tensor_dtype_to_np_dtype(tensor.elem_type).name
    if dtype != spec.dtype:
        raise ExportError(f'{kind} "{spec.name}" is {dtype}; the signature says {spec.dtype}. Change either.')
    dims = tensor.shape.dim
    given = [dim.dim_value if dim.HasField("dim_value") else -1 for dim in dims]
    if given != spec.wire_shape:
        raise ExportError(
            f'{kind} "{spec.name}" has shape {given}; the signature says {spec.wire_shape} (-1 takes any '
            "length). Change the signature, or what fixes the axis in the module."
        )


def _symbolic(spec: TensorSpec) -> dict[int, str]:
    return {position: axis for position, axis in enumerate(spec.shape) if isinstance(axis, str)}


def example_inputs(signature: Signature, module: nn.Module) -> tuple[Tensor, ...]:
    """Ones of the inputs' dtypes, on the module's device, with symbolic axes of different lengths.

    They are the shortest of `EXAMPLE_LENGTHS` that the module takes; the batch has the first.
    """
    is_free = any(_symbolic(spec).keys() - {0} for spec in signature.inputs)
    for length in EXAMPLE_LENGTHS if is_free else ():
        inputs = _ones(signature, module, length)
        if _takes(module, inputs):
            return inputs
    return _ones(signature, module, EXAMPLE_LENGTHS[0])  # where none is taken, it says most plainly why


def _takes(module: nn.Module, inputs: tuple[Tensor, ...]) -> bool:
    try:
        with torch.no_grad():
            module(*inputs)
    except Exception:  # whatever a module says to what is too short
        return False
    return True


def _ones(signature: Signature, module: nn.Module, length: int) -> tuple[Tensor, ...]:
    device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
    axes = dict.fromkeys(axis for spec in signature.inputs for axis in _symbolic(spec).values())
    # Two axes of one length would be taken for one and the same.
    lengths = {axis: length + index for index, axis in enumerate(axes)} | {"batch": EXAMPLE_LENGTHS[0]}
    return tuple(
        torch.ones(
            [lengths[axis] if isinstance(axis, str) else axis for axis in spec.shape],
            dtype=getattr(torch, spec.dtype),
            device=device,
        )
        for spec in signature.inputs
    )


def _name_by_module(graph: onnx.GraphProto) -> None:
    """Calls operators by the module that they are a part of, where there is one: `encoder.0/MatMul`."""
    weights = {tensor.name for tensor in graph.initializer if tensor.name.endswith(_WEIGHT)}
    taken = Counter(node.name for node in graph.node)
    for node in graph.node:
        # A normalization that was folded into a layer has left its own scope on it, the weight has not.
        weight = next((name for name in node.input if name in weights), "")
        if module := weight.removesuffix(_WEIGHT) or _innermost(node):
            name = f"{module}/{node.op_type}"
            taken[name] += 1
            node.name = name if taken[name] == 1 else f"{name}_{taken[name]}"


def _innermost(node: onnx.NodeProto) -> str:
    """The module around an operator that the exporter noted, or nothing."""
    noted = next((each.value for each in node.metadata_props if each.key == _SCOPES), "[]")
    scopes: list[str] = ast.literal_eval(noted)  # the model, the modules in it from outside in, the function
    return scopes[-2] if len(scopes) > 2 else ""


def _forget_origin(graph: onnx.GraphProto) -> None:
    keepers: list[Any] = [graph, *graph.node, *graph.initializer, *graph.value_info]
    for holder in [*keepers, *graph.input, *graph.output]:
        holder.ClearField("metadata_props")
        holder.ClearField("doc_string")
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.type == onnx.AttributeProto.GRAPH:
                _forget_origin(attribute.g)


def _first_line(error: Exception) -> str:
    """The root cause in a line: the exporter's own messages fill a page."""
    cause: BaseException = error
    while cause.__cause__ is not None:
        cause = cause.__cause__
    text = str(cause).strip() or str(error)
    return f"{type(cause).__name__}: {text.splitlines()[0] if text else ''}"
