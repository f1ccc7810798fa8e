"""Reads an ONNX file that somebody else wrote, and writes it the way that passes expect.

Nothing is trusted: external data is read from the file's own folder only, and every rewriting is checked by
running the graph before and after it.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path, PurePath, PureWindowsPath

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
from onnx import external_data_helper, numpy_helper, version_converter
from onnx_ir.passes import Sequential, common

from compression.base import CompressionError
from compression.inference import open_session
from compression.signature import Array

# Explicit quantization per channel begins with 13; what is older is brought to the exporter's own.
OLDEST_OPSET = 13
CONVERTED_OPSETS = (18, 17, 13)
_IR_VERSION = 8  # the first with opset 15; initializers are no inputs since 4
_LARGEST_FILE = 2**31 - 1  # bytes of a protobuf message
_TOO_LARGE = (
    ", which is all that a variant holds: it is one ONNX file. Add the model with float16 weights, or a "
    "smaller one that was distilled from it."
)
_DOMAINS = ("", "ai.onnx", "ai.onnx.ml", "ai.onnx.training", "ai.onnx.preview.training")
_VENDOR = "com.microsoft"
# Largest difference between two ways to compute the same that is rounding, as a share of the magnitude;
# and where ranges are measured on the rows of a call, which then influence each other slightly.
ROUNDING = 1e-3
COARSE = 5e-2


class ImportRefusedError(CompressionError):
    """A file cannot be taken in; the message says why and what would help."""


def read_graph(path: Path) -> onnx.ModelProto:
    """Reads an ONNX file with its external data.

    Raises:
        ImportRefusedError: It is no ONNX file, is too large, its data lies outside its folder, it lists an
            output twice, or it needs operators that onnxruntime does not have.
    """
    if not path.is_file():
        raise ImportRefusedError(f"there is no file {path}. Give the path of an ONNX file.")
    if path.stat().st_size > _LARGEST_FILE:
        raise ImportRefusedError(f"{path.name} is larger than 2 GB{_TOO_LARGE}")
    try:
        proto = onnx.load_model(path, load_external_data=False)
    except Exception as error:  # protobuf's errors are its own
        raise ImportRefusedError(
            f"{path.name} is no ONNX file: {first_line(error)}. Export it again."
        ) from error
    if not proto.graph.node or not proto.opset_import:
        raise ImportRefusedError(f"{path.name} holds no graph. Export the model again.")
    outputs = Counter(value.name for value in proto.graph.output)
    if twice := [name for name, count in outputs.items() if count > 1]:
        raise ImportRefusedError(
            f'{path.name} lists output "{twice[0]}" more than once. Export the model with each output once.'
        )
    _load_external(proto, path)
    if unknown := sorted(set(_unknown_operators(proto))):
        raise ImportRefusedError(
            f"{path.name} needs {', '.join(unknown)}, which onnxruntime does not have. Export the model with "
            "standard operators."
        )
    try:
        onnx.checker.check_model(proto)
    except onnx.checker.ValidationError as error:
        raise ImportRefusedError(f"{path.name} is no valid ONNX: {first_line(error)}") from error
    return proto


def normalized(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The same graph with its weights where passes look for them.

    Functions are inlined, Constant nodes become initializers, initializers are no inputs and dense, every
    node has a name of its own. So has an output that was an input itself: `_out` is added.
    """
    model = ir.from_proto(_dense(proto))
    _part_ends(model.graph)
    passes = Sequential(
        common.InlinePass(),
        common.RemoveInitializersFromInputsPass(),
        common.LiftConstantsToInitializersPass(lift_all_constants=True, size_limit=1),
        common.NameFixPass(),
        common.ClearMetadataAndDocStringPass(),
    )
    passes(model)
    tidy = ir.to_proto(model)
    tidy.ir_version = max(tidy.ir_version, _IR_VERSION)
    tidy.ClearField("training_info")
    return tidy


def _dense(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with what it stores as places and values of what is not zero stored whole."""
    if not proto.graph.sparse_initializer:
        return proto
    whole = onnx.ModelProto()
    whole.CopyFrom(proto)
    for sparse in proto.graph.sparse_initializer:
        values, places = numpy_helper.to_array(sparse.values), numpy_helper.to_array(sparse.indices)
        tensor = np.zeros(tuple(sparse.dims), values.dtype)
        if places.ndim == 1:
            tensor.reshape(-1)[places] = values
        else:
            tensor[tuple(places.T)] = values
        whole.graph.initializer.append(numpy_helper.from_array(tensor, sparse.values.name))
    whole.graph.ClearField("sparse_initializer")
    return whole


def _part_ends(graph: ir.Graph) -> None:
    """Puts an Identity between an input and an output that are one tensor, in place."""
    for index, value in enumerate(graph.outputs):
        if value.is_graph_input():
            copied = ir.node("Identity", [value])
            graph.append(copied)
            output = copied.outputs[0]
            output.name, output.shape, output.type = f"{value.name}_out", value.shape, value.type
            graph.outputs[index] = output


def modernized(proto: onnx.ModelProto, feeds: Sequence[Mapping[str, Array]]) -> onnx.ModelProto:
    """The graph in an opset that quantization can express, when it computes the same there; else as it is.

    Args:
        proto: The graph.
        feeds: Inputs to compare both on.
    """
    version = opset(proto)
    if version >= OLDEST_OPSET:
        return proto
    expected = [run(proto, feed) for feed in feeds]
    for target in CONVERTED_OPSETS:
        try:
            converted = version_converter.convert_version(proto, target)
            given = [run(converted, feed) for feed in feeds]
        except (RuntimeError, ImportRefusedError, onnx.checker.ValidationError):
            continue  # no adapter for one of its operators; an older target may have one
        if all(map(same, expected, given)):
            return normalized(converted)
    return proto


def opset(proto: onnx.ModelProto) -> int:
    """The version of the standard operators that a graph is written in."""
    return max((each.version for each in proto.opset_import if each.domain in ("", "ai.onnx")), default=1)


def open_graph(proto: onnx.ModelProto, threads: int = 1) -> ort.InferenceSession:
    """Opens a graph on the processor, with so many threads; 0 for one on each core.

    Raises:
        ImportRefusedError: onnxruntime refuses it.
    """
    try:
        return open_session(proto, threads=threads, silent=True)
    except Exception as error:  # onnxruntime's errors have no common base
        raise ImportRefusedError(f"onnxruntime refuses the graph: {first_line(error)}") from error


def run(graph: onnx.ModelProto | ort.InferenceSession, feed: Mapping[str, Array]) -> list[Array]:
    """The outputs of a graph for one set of inputs.

    Raises:
        ImportRefusedError: onnxruntime refuses the graph, or fails on these inputs.
    """
    session = open_graph(graph) if isinstance(graph, onnx.ModelProto) else graph
    try:
        return list(session.run(None, dict(feed)))
    except Exception as error:
        raise ImportRefusedError(f"onnxruntime fails on the data: {first_line(error)}") from error


def same(expected: Sequence[Array], given: Sequence[Array], tolerance: float = ROUNDING) -> bool:
    """Whether two lists of outputs differ by less than a share of their magnitude."""
    return all(_same_array(a, b, tolerance) for a, b in zip(expected, given, strict=True))


def first_line(error: Exception) -> str:
    """What an error says, in a line."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].rstrip(".") if lines else type(error).__name__


def _same_array(expected: Array, given: Array, tolerance: float) -> bool:
    if expected.shape != given.shape or expected.dtype != given.dtype:
        return False
    if not np.issubdtype(expected.dtype, np.floating):
        return bool(np.array_equal(expected, given))
    finite = np.isfinite(expected)
    scale = float(np.abs(expected[finite]).max(initial=0.0))
    return bool(np.allclose(expected, given, rtol=tolerance, atol=tolerance * scale, equal_nan=True))


def _load_external(proto: onnx.ModelProto, path: Path) -> None:
    outside = [tensor for tensor in _tensors(proto) if external_data_helper.uses_external_data(tensor)]
    total = sum(_check_external(tensor, path.parent) for tensor in outside)
    if total > _LARGEST_FILE:
        raise ImportRefusedError(
            f"{path.name} has {total / 1e9:.1f} GB of weights, more than 2 GB{_TOO_LARGE}"
        )
    try:
        external_data_helper.load_external_data_for_model(proto, str(path.parent))
    except (OSError, ValueError, RuntimeError, onnx.checker.ValidationError) as error:
        raise ImportRefusedError(
            f"external data of {path.name} cannot be read: {first_line(error)}. Copy all files of the model."
        ) from error


def _check_external(tensor: onnx.TensorProto, folder: Path) -> int:
    """Refuses a location that is not a plain file below the folder; returns how many bytes it names."""
    facts = {entry.key: entry.value for entry in tensor.external_data}
    location = facts.get("location", "")
    parts = PurePath(location).parts
    target = folder / location
    rooted = PurePath(location).is_absolute() or bool(PureWindowsPath(location).anchor)
    if not parts or rooted or ".." in parts or "\\" in location:
        raise ImportRefusedError(
            f'weight "{tensor.name}" lies at "{location}", outside the model\'s folder. Save the model with '
            "its data beside it."
        )
    below = [folder.joinpath(*parts[: depth + 1]) for depth in range(len(parts))]
    if any(each.is_symlink() for each in below):
        raise ImportRefusedError(
            f'weight "{tensor.name}" lies behind the link "{location}". Put the file itself beside the model.'
        )
    if not target.is_file():
        raise ImportRefusedError(
            f'weight "{tensor.name}" is missing: there is no "{location}" beside the model. Copy all files.'
        )
    offset, size = int(facts.get("offset", 0)), target.stat().st_size
    length = int(facts.get("length", size - offset))
    if offset < 0 or length < 0 or offset + length > size:
        raise ImportRefusedError(
            f'weight "{tensor.name}" reaches beyond the end of "{location}". Copy the file again.'
        )
    return length


def _tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto]:
    for graph in subgraphs(proto.graph):
        yield from graph.initializer
        for sparse in graph.sparse_initializer:
            yield from (sparse.values, sparse.indices)
        yield from _attribute_tensors(graph.node)
    for function in proto.functions:
        yield from _attribute_tensors(function.node)


def _attribute_tensors(nodes: Iterable[onnx.NodeProto]) -> Iterator[onnx.TensorProto]:
    for node in nodes:
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            yield from attribute.tensors


def subgraphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """A graph and the bodies of its Loop, Scan and If nodes, however deep."""
    yield graph
    for node in graph.node:
        for attribute in node.attribute:
            if attribute.HasField("g"):
                yield from subgraphs(attribute.g)
            for each in attribute.graphs:
                yield from subgraphs(each)


def _unknown_operators(proto: onnx.ModelProto) -> Iterator[str]:
    """Operators of domains that are neither standard nor onnxruntime's own nor defined in the file."""
    own = {(function.domain, function.name) for function in proto.functions}
    nodes = [node for graph in subgraphs(proto.graph) for node in graph.node]
    for node in nodes:
        known = node.domain in _DOMAINS or node.domain.startswith(_VENDOR)
        if not known and (node.domain, node.op_type) not in own:
            yield f"{node.domain}::{node.op_type}"
