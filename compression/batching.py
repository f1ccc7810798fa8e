"""Gives a foreign graph the batch axis that serving needs: `batch`, first in every input and output.

A graph that takes several rows keeps its form. One that was exported for a single row is made to take more
where it computes the same; where it does not, or where an input has no batch axis at all, the whole graph
becomes the body of a Scan over the rows. Whatever is done is compared with the file as it came, row by row.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
import onnx_ir as ir
from onnx import helper, numpy_helper

from compression.ends import BATCH, Input, axes_of, inputs_of
from compression.importing import (
    COARSE,
    ROUNDING,
    ImportRefusedError,
    first_line,
    open_graph,
    opset,
    run,
    same,
)
from compression.model import OnnxModel
from compression.signature import Array, Axis, Signature, TensorSpec

PROBE_ROWS = 5
# What is compared: alone, few, many.
_PROBE_SIZES = (1, 2, PROBE_ROWS)
_OLDEST_SCAN = 11
_FIRST_AXIS = "axis_of_row"


def batched(proto: onnx.ModelProto, rows: Mapping[str, Array]) -> OnnxModel:
    """The graph with its signature, taking any number of rows at once.

    Args:
        proto: A normalized graph.
        rows: Arrays `(rows, ...)` by input name. An array with one more axis than its input belongs to an
            input without a batch axis.

    Raises:
        ImportRefusedError: The arrays do not fit, or no way to take several rows computes the same.
    """
    inputs = inputs_of(proto, rows)
    few = {name: array[:PROBE_ROWS] for name, array in rows.items()}
    expected = _row_by_row(proto, inputs, few)
    trials: list[onnx.ModelProto] = []
    if all(each.has_batch for each in inputs):
        trials += [_symbolic(proto, inputs), _reshaping(_symbolic(proto, inputs))]
    if opset(proto) >= _OLDEST_SCAN and not _fixed_batch(inputs):
        trials.append(_scanned(proto, inputs, _squeezed(inputs, expected)))
    reason = "it gives other answers to rows together than to each alone"
    signature = _signature(proto, inputs, expected, few)
    for trial in trials:
        try:
            if _agrees(trial, few, expected):
                return OnnxModel(_with_ends(trial, signature), signature)
        except ImportRefusedError as error:
            reason = first_line(error)
    raise ImportRefusedError(
        f"the model cannot take several rows at once: {reason}. Export it with a dynamic batch axis in front "
        "of every input and output."
    )


def _fixed_batch(inputs: Sequence[Input]) -> int | None:
    """A batch length other than one that the file was exported for, or None."""
    lengths = [each.dims[0] for each in inputs if each.has_batch]
    return next((length for length in lengths if isinstance(length, int) and length > 1), None)


def _row_by_row(
    proto: onnx.ModelProto, inputs: Sequence[Input], rows: Mapping[str, Array]
) -> list[list[Array]]:
    """What the file as it came gives for each row: a list of outputs per row."""
    session, count = open_graph(proto), len(next(iter(rows.values())))
    fixed = _fixed_batch(inputs)
    answers = []
    for row in range(count):
        # A batch of several is filled with copies of the row; the first answer is its own.
        taken = slice(row, row + 1)
        feed = {each.name: np.asarray(each.feed(rows[each.name], taken)) for each in inputs}
        if fixed:
            feed = {name: np.repeat(array, fixed, axis=0) for name, array in feed.items()}
        outputs = run(session, feed)
        if fixed and any(array.ndim == 0 or len(array) != fixed for array in outputs):
            raise ImportRefusedError(
                f"the model takes exactly {fixed} rows and gives another number. Export a dynamic batch."
            )
        answers.append([array[:1] if fixed else array for array in outputs])
    for position, value in enumerate(proto.graph.output):
        shapes = {answer[position].shape for answer in answers}
        if len(shapes) > 1:
            raise ImportRefusedError(
                f'output "{value.name}" has shapes {sorted(map(list, shapes))}, depending on the values '
                "of a row. Export the model up to an output of one shape, and select from it in the client."
            )
    return answers


def _squeezed(inputs: Sequence[Input], expected: Sequence[Sequence[Array]]) -> list[bool]:
    """Which outputs of one row begin with a batch axis of length one.

    One that is shaped as an input without such an axis, as a recurrent state is, has none either.
    """
    any_batch = any(each.has_batch for each in inputs)
    bare = {each.dims for each in inputs if not each.has_batch}
    return [
        any_batch and array.ndim > 0 and array.shape[0] == 1 and array.shape not in bare
        for array in expected[0]
    ]


def _agrees(proto: onnx.ModelProto, rows: Mapping[str, Array], expected: Sequence[Sequence[Array]]) -> bool:
    """Whether rows together get the answers that each got alone, at several batch lengths."""
    session, count = open_graph(proto), len(expected)
    measured = any(node.op_type == "DynamicQuantizeLinear" for node in proto.graph.node)
    tolerance = COARSE if measured else ROUNDING
    for size in sorted({min(size, count) for size in _PROBE_SIZES}):
        given = run(session, {name: array[:size] for name, array in rows.items()})
        if any(array.ndim == 0 or len(array) != size for array in given):
            return False
        for row in range(size):
            alone = [array.reshape(batch.shape[1:]) if array.size == batch[row].size else array
                     for array, batch in zip(expected[row], given, strict=True)]  # fmt: skip
            if not same(alone, [batch[row] for batch in given], tolerance):
                return False
    return True


def _signature(
    proto: onnx.ModelProto,
    inputs: Sequence[Input],
    expected: Sequence[Sequence[Array]],
    rows: Mapping[str, Array],
) -> Signature:
    known: dict[str, int] = {
        axis: length
        for each in inputs
        for axis, length in zip(each.row_dims, rows[each.name].shape[1:], strict=True)
        if isinstance(axis, str)
    }
    squeezed = _squeezed(inputs, expected)
    outputs = []
    for position, value in enumerate(proto.graph.output):
        array = expected[0][position]
        shape = array.shape[1:] if squeezed[position] else array.shape
        declared = list(axes_of(value))[int(squeezed[position]) :]
        outputs.append(
            TensorSpec(
                value.name, array.dtype.name, (BATCH, *_output_axes(value.name, shape, declared, known))
            )
        )
    return Signature(
        tuple(TensorSpec(each.name, each.dtype, (BATCH, *each.row_dims)) for each in inputs), tuple(outputs)
    )


def _output_axes(
    name: str, shape: tuple[int, ...], declared: Sequence[Axis], known: Mapping[str, int]
) -> Iterator[Axis]:
    """Axes of an output's row: fixed where the file says so or where no input has an axis of free length."""
    for axis, length in enumerate(shape):
        said = declared[axis] if len(declared) == len(shape) else None
        if isinstance(said, int) or not known:
            yield length
        elif said in known and known[str(said)] == length:
            yield str(said)
        else:
            yield f"{name}_{axis + 1}"


def _symbolic(proto: onnx.ModelProto, inputs: Sequence[Input]) -> onnx.ModelProto:
    """The graph with the first axis of every input left open."""
    opened = onnx.ModelProto()
    opened.CopyFrom(proto)
    del opened.graph.value_info[:]
    for value, each in zip(opened.graph.input, inputs, strict=True):
        _set_shape(value, (BATCH, *each.row_dims))
    for value in opened.graph.output:
        dims = value.type.tensor_type.shape.dim
        if dims:
            dims[0].Clear()
            dims[0].dim_param = BATCH
    return opened


def _reshaping(proto: onnx.ModelProto) -> onnx.ModelProto:
    """The graph with every reshape to one row reshaping to as many rows as come."""
    freed = onnx.ModelProto()
    freed.CopyFrom(proto)
    stored = {tensor.name: tensor for tensor in freed.graph.initializer}
    for node in freed.graph.node:
        shape = stored.get(node.input[1]) if node.op_type == "Reshape" else None
        if shape is None:
            continue
        lengths = numpy_helper.to_array(shape).copy()
        if lengths.size and lengths[0] == 1:
            lengths[0] = 0  # as long as the data's first axis
            name = f"{node.name}_rows"
            node.input[1] = name
            freed.graph.initializer.append(numpy_helper.from_array(lengths, name))
    return freed


def _scanned(proto: onnx.ModelProto, inputs: Sequence[Input], squeezed: Sequence[bool]) -> onnx.ModelProto:
    """A graph that runs the given one on each row: it becomes the body of a Scan.

    Weights stay in the outer graph, where they are shared by all rows and seen by whoever counts them.
    """
    model = ir.from_proto(proto)
    for value in [*model.graph.inputs, *model.graph.outputs]:
        value.name = f"{value.name}_in_body"  # a body may not reuse names of the graph around it
    inner = ir.to_proto(model).graph
    body, version = onnx.GraphProto(name="rows"), opset(proto)
    opening = []
    if version >= 13:  # inside the body, where shape inference can read it
        axes = numpy_helper.from_array(np.array([0], np.int64))
        opening.append(helper.make_node("Constant", [], [_FIRST_AXIS], name=_FIRST_AXIS, value=axes))
    for value, each in zip(inner.input, inputs, strict=True):
        row = _renamed(value, f"{each.name}_row" if each.has_batch else value.name, each.row_dims)
        body.input.append(row)
        if each.has_batch:
            opening.append(_axis_node("Unsqueeze", row.name, value.name, version))
    body.node.extend([*opening, *inner.node])
    for value, squeeze, outer in zip(inner.output, squeezed, proto.graph.output, strict=True):
        end = onnx.ValueInfoProto()
        end.CopyFrom(value)
        end.type.tensor_type.ClearField("shape")
        if squeeze:
            end.name = f"{outer.name}_row"
            body.node.append(_axis_node("Squeeze", value.name, end.name, version))
        body.output.append(end)
    scan = helper.make_node(
        "Scan",
        [each.name for each in inputs],
        [value.name for value in proto.graph.output],
        name="each_row",
        num_scan_inputs=len(inputs),
        body=body,
    )
    graph = helper.make_graph(
        [scan],
        proto.graph.name or "graph",
        [
            _renamed(value, value.name, (BATCH, *each.row_dims))
            for value, each in zip(proto.graph.input, inputs, strict=True)
        ],
        [_renamed(value, value.name, None) for value in proto.graph.output],
        list(inner.initializer),
    )
    return helper.make_model(graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version)


def _axis_node(operator: str, source: str, target: str, version: int) -> onnx.NodeProto:
    name = f"{operator}_{source}"
    if version >= 13:
        return helper.make_node(operator, [source, _FIRST_AXIS], [target], name=name)
    return helper.make_node(operator, [source], [target], name=name, axes=[0])


def _renamed(value: onnx.ValueInfoProto, name: str, dims: tuple[Axis, ...] | None) -> onnx.ValueInfoProto:
    copy = onnx.ValueInfoProto()
    copy.CopyFrom(value)
    copy.name = name
    if dims is None:
        copy.type.tensor_type.ClearField("shape")
    else:
        _set_shape(copy, dims)
    return copy


def _with_ends(proto: onnx.ModelProto, signature: Signature) -> onnx.ModelProto:
    """The graph declaring exactly the signature's shapes."""
    for value, spec in zip(proto.graph.output, signature.outputs, strict=True):
        value.type.tensor_type.elem_type = helper.np_dtype_to_tensor_dtype(np.dtype(spec.dtype))
        _set_shape(value, spec.shape)
    return proto


def _set_shape(value: onnx.ValueInfoProto, dims: Sequence[Axis]) -> None:
    shape = value.type.tensor_type.shape
    del shape.dim[:]
    shape.SetInParent()
    for axis in dims:
        dim = shape.dim.add()
        if isinstance(axis, int):
            dim.dim_value = axis
        else:
            dim.dim_param = axis
