"""Tiny ONNX files of every kind that other people's exporters write, each with rows that fit it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from compression import importing
from compression.base import PassContext
from compression.batching import batched
from compression.data import Split, divided
from compression.model import OnnxModel
from compression.signature import Array
from compression.training import Training
from tests.compression.small_digits import silent

ROWS, WIDE, HIDDEN, CLASSES, TOKENS = 60, 16, 128, 4, 4
Dims = Sequence[int | str]
_random = np.random.default_rng(0)
WEIGHT = _random.normal(size=(WIDE, HIDDEN)).astype(np.float32)
LAST = _random.normal(size=(HIDDEN, CLASSES)).astype(np.float32)
X = _random.normal(size=(ROWS, WIDE)).astype(np.float32)
SCALES = np.linspace(0.5, 2.0, ROWS).astype(np.float32)


@dataclass(frozen=True)
class Foreign:
    """A file and data for it."""

    proto: onnx.ModelProto
    rows: dict[str, Array]


def value(name: str, dims: Dims, dtype: int = TensorProto.FLOAT) -> onnx.ValueInfoProto:
    return helper.make_tensor_value_info(name, dtype, list(dims))


def node(kind: str, inputs: Sequence[str], outputs: Sequence[str], **settings: object) -> onnx.NodeProto:
    return helper.make_node(kind, list(inputs), list(outputs), **settings)


def model(
    nodes: Sequence[onnx.NodeProto],
    inputs: Sequence[onnx.ValueInfoProto],
    outputs: Sequence[onnx.ValueInfoProto],
    *,
    opset: int = 17,
    domains: Sequence[str] = (),
    **stored: Array,
) -> onnx.ModelProto:
    tensors = [numpy_helper.from_array(array, name) for name, array in stored.items()]
    graph = helper.make_graph(list(nodes), "foreign", list(inputs), list(outputs), tensors)
    imports = [helper.make_opsetid("", opset), *(helper.make_opsetid(domain, 1) for domain in domains)]
    return helper.make_model(graph, opset_imports=imports, ir_version=8)


def foreign(proto: onnx.ModelProto) -> tuple[OnnxModel, PassContext]:
    """A small file as `mipgate add` takes it in, with rows for it."""
    rows = Split({"x": X})
    context = PassContext(divided(rows), None, {}, Training(), 0, silent)
    return batched(importing.normalized(proto), rows.inputs), context


LAYERS = [
    node("MatMul", ["x", "w"], ["h"]),
    node("Relu", ["h"], ["r"]),
    node("MatMul", ["r", "v"], ["y"]),
]
STORED = {"w": WEIGHT, "v": LAST}


def plain(*, batch: int | str = "N", opset: int = 17) -> Foreign:
    proto = model(LAYERS, [value("x", [batch, WIDE])], [value("y", [batch, CLASSES])], opset=opset, **STORED)
    return Foreign(proto, {"x": X})


def constants() -> Foreign:
    kept = [node("Constant", [], [name], value=numpy_helper.from_array(STORED[name])) for name in STORED]
    return Foreign(model([*kept, *LAYERS], [value("x", ["N", WIDE])], [value("y", ["N", CLASSES])]), {"x": X})


def initializers_as_inputs() -> Foreign:
    ends = [value("x", ["N", WIDE]), value("w", WEIGHT.shape), value("v", LAST.shape)]
    proto = model(LAYERS, ends, [value("y", ["N", CLASSES])], opset=11, **STORED)
    proto.ir_version = 3
    return Foreign(proto, {"x": X})


def many_ends() -> Foreign:
    """A float, an integer and a boolean input; a float, an integer and a boolean output."""
    nodes = [
        node("Gather", ["table", "token"], ["e"]),
        node("Add", ["x", "e"], ["s"]),
        node("Where", ["keep", "s", "x"], ["k"]),
        node("MatMul", ["k", "w"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
        node("ArgMax", ["y"], ["label"], axis=1, keepdims=0),
        node("Greater", ["y", "zero"], ["positive"]),
    ]
    proto = model(
        nodes,
        [value("x", ["N", WIDE]), value("token", ["N"], TensorProto.INT64),
         value("keep", ["N", 1], TensorProto.BOOL)],
        [value("y", ["N", CLASSES]), value("label", ["N"], TensorProto.INT64),
         value("positive", ["N", CLASSES], TensorProto.BOOL)],
        table=_random.normal(size=(10, WIDE)).astype(np.float32),
        zero=np.zeros((), np.float32),
        **STORED,
    )  # fmt: skip
    token = _random.integers(0, 10, ROWS)
    return Foreign(proto, {"x": X, "token": token, "keep": token[:, None] > 4})


def scalar(dims: Dims = ()) -> Foreign:
    """The second input scales every row of a call alike: it has no batch axis."""
    nodes = [*LAYERS[:2], node("MatMul", ["r", "v"], ["z"]), node("Mul", ["z", "scale"], ["y"])]
    proto = model(
        nodes, [value("x", ["N", WIDE]), value("scale", dims)], [value("y", ["N", CLASSES])], **STORED
    )
    return Foreign(proto, {"x": X, "scale": SCALES.reshape(ROWS, *dims)})


def scalar_of_one() -> Foreign:
    """A scalar of shape [1] whose data has one value per row: its axis looks like a batch of one."""
    return Foreign(scalar([1]).proto, {"x": X, "scale": SCALES})


def no_batch_anywhere() -> Foreign:
    """One row is one whole input, without an axis in front."""
    proto = model(LAYERS, [value("x", [WIDE])], [value("y", [CLASSES])], **STORED)
    return Foreign(proto, {"x": X})


def reshape_to_one_row() -> Foreign:
    nodes = [
        node("Reshape", ["x", "shape"], ["flat"]),
        node("MatMul", ["flat", "w"], ["h"]),
        node("MatMul", ["h", "v"], ["y"]),
    ]
    proto = model(
        nodes, [value("x", [1, 4, 4])], [value("y", [1, CLASSES])], shape=np.array([1, WIDE]), **STORED
    )
    return Foreign(proto, {"x": X.reshape(ROWS, 4, 4)})


def attention_of_one_row() -> Foreign:
    """Four tokens look at each other, in shapes that are computed and hold for a single row only."""
    nodes = [
        node("Shape", ["x"], ["all"]),
        node("Gather", ["all", "first"], ["tokens"]),
        node("Concat", ["tokens", "wide"], ["target"], axis=0),
        node("Reshape", ["x", "target"], ["r"]),
        node("MatMul", ["r", "w"], ["h"]),
        node("Transpose", ["r"], ["t"], perm=[1, 0]),
        node("MatMul", ["r", "t"], ["scores"]),
        node("Softmax", ["scores"], ["p"]),
        node("MatMul", ["p", "h"], ["z"]),
        node("LayerNormalization", ["z", "gains"], ["l"]),
        node("MatMul", ["l", "v"], ["c"]),
        node("ReduceMean", ["c"], ["y"], axes=[0], keepdims=1),
    ]
    stored = {"first": np.array([1]), "wide": np.array([WIDE]), "gains": np.ones(HIDDEN, np.float32)}
    proto = model(nodes, [value("x", [1, TOKENS, WIDE])], [value("y", [1, CLASSES])], **stored, **STORED)
    return Foreign(proto, {"x": _random.normal(size=(ROWS, TOKENS, WIDE)).astype(np.float32)})


def masked_attention() -> Foreign:
    """Scores are minus infinity where a token must not look, as torch exports a mask."""
    nodes = [
        *LAYERS[:2],
        node("MatMul", ["r", "v"], ["scores"]),
        node("Where", ["seen", "scores", "never"], ["masked"]),
        node("Softmax", ["masked"], ["p"]),
        node("MatMul", ["p", "scores"], ["z"]),
        node("ReduceMean", ["z"], ["y"], axes=[1], keepdims=0),
    ]
    proto = model(
        nodes,
        [value("x", ["N", TOKENS, WIDE])],
        [value("y", ["N", CLASSES])],
        seen=np.tri(TOKENS, CLASSES, dtype=bool),
        never=np.array(-np.inf, np.float32),
        **STORED,
    )
    return Foreign(proto, {"x": _random.normal(size=(ROWS, TOKENS, WIDE)).astype(np.float32)})


def recurrent_state() -> Foreign:
    """A state goes in and out; its first axis of length one holds layers."""
    nodes = [*LAYERS, node("Add", ["state", "x"], ["state_out"])]
    proto = model(
        nodes,
        [value("x", [1, WIDE]), value("state", [1, 1, WIDE])],
        [value("y", [1, CLASSES]), value("state_out", [1, 1, WIDE])],
        **STORED,
    )
    return Foreign(proto, {"x": X, "state": X[::-1].reshape(ROWS, 1, 1, WIDE)})


def rows_that_meet() -> Foreign:
    """Exported for one row, and wrong for several: it takes the mean over the batch away."""
    nodes = [node("ReduceMean", ["x"], ["m"], axes=[0, 1], keepdims=1), node("Sub", ["x", "m"], ["d"]),
             node("MatMul", ["d", "w"], ["h"]), node("MatMul", ["h", "v"], ["y"])]  # fmt: skip
    return Foreign(model(nodes, [value("x", [1, WIDE])], [value("y", [1, CLASSES])], **STORED), {"x": X})


def time_first() -> Foreign:
    """Time is the first axis and free, the batch the second: a row is a whole sequence."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("ReduceMean", ["h"], ["y"], axes=[0], keepdims=0)]
    proto = model(nodes, [value("x", ["time", "batch", WIDE])], [value("y", ["batch", HIDDEN])], w=WEIGHT)
    return Foreign(proto, {"x": _random.normal(size=(ROWS, 5, 1, WIDE)).astype(np.float32)})


def free_axes() -> Foreign:
    """Two free axes beside the batch, one of them unnamed."""
    nodes = [node("MatMul", ["x", "w"], ["h"]), node("Transpose", ["h"], ["y"], perm=[0, 3, 1, 2])]
    ends = [value("x", ["N", "height", "?", WIDE])], [value("y", ["N", HIDDEN, "height", "?"])]
    ends[0][0].type.tensor_type.shape.dim[2].Clear()
    ends[1][0].type.tensor_type.shape.dim[3].Clear()
    proto = model(nodes, *ends, w=WEIGHT)
    return Foreign(proto, {"x": _random.normal(size=(ROWS, 3, 5, WIDE)).astype(np.float32)})


def branching() -> Foreign:
    """An `If` on the whole call's mean, each branch with a weight of its own."""
    branches = {}
    for name, weight in (("then_branch", LAST), ("else_branch", -LAST)):
        branches[name] = helper.make_graph(
            [node("MatMul", ["r", f"{name}_w"], [f"{name}_y"])],
            name,
            [],
            [value(f"{name}_y", ["N", CLASSES])],
            [numpy_helper.from_array(weight, f"{name}_w")],
        )
    nodes = [
        *LAYERS[:2],
        node("ReduceMean", ["x"], ["mean"], keepdims=0),
        node("Greater", ["mean", "zero"], ["is_positive"]),
        node("If", ["is_positive"], ["y"], **branches),
    ]
    proto = model(
        nodes,
        [value("x", ["N", WIDE])],
        [value("y", ["N", CLASSES])],
        w=WEIGHT,
        zero=np.zeros((), np.float32),
    )
    return Foreign(proto, {"x": X})


def looping() -> Foreign:
    """A `Loop` that multiplies three times with the same weight."""
    body = helper.make_graph(
        [node("MatMul", ["s_in", "square"], ["s_out"]), node("Identity", ["on_in"], ["on_out"])],
        "body",
        [value("i", [], TensorProto.INT64), value("on_in", [], TensorProto.BOOL), value("s_in", ["N", WIDE])],
        [value("on_out", [], TensorProto.BOOL), value("s_out", ["N", WIDE])],
    )
    nodes = [node("Loop", ["three", "on", "x"], ["s"], body=body), node("MatMul", ["s", "w"], ["y"])]
    proto = model(
        nodes,
        [value("x", ["N", WIDE])],
        [value("y", ["N", HIDDEN])],
        three=np.array(3),
        on=np.array(True),
        square=np.linalg.qr(_random.normal(size=(WIDE, WIDE)))[0].astype(np.float32),
        w=WEIGHT,
    )
    return Foreign(proto, {"x": X})


def function() -> Foreign:
    """A function of the file's own domain."""
    imports = [helper.make_opsetid("", 17)]
    body = helper.make_function("mine", "Twice", ["a"], ["b"], [node("Add", ["a", "a"], ["b"])], imports)
    nodes = [*LAYERS[:2], node("MatMul", ["r", "v"], ["z"]), node("Twice", ["z"], ["y"], domain="mine")]
    proto = model(nodes, [value("x", ["N", WIDE])], [value("y", ["N", CLASSES])], domains=["mine"], **STORED)
    proto.functions.append(body)
    return Foreign(proto, {"x": X})


def double() -> Foreign:
    proto = model(
        LAYERS,
        [value("x", ["N", WIDE], TensorProto.DOUBLE)], [value("y", ["N", CLASSES], TensorProto.DOUBLE)],
        w=WEIGHT.astype(np.float64), v=LAST.astype(np.float64),
    )  # fmt: skip
    return Foreign(proto, {"x": X.astype(np.float64)})


def mean_of_all() -> Foreign:
    """One number for the whole call beside an answer per row."""
    nodes = [*LAYERS, node("ReduceMean", ["y"], ["mean"], keepdims=0)]
    proto = model(nodes, [value("x", ["N", WIDE])], [value("y", ["N", CLASSES]), value("mean", [])], **STORED)
    return Foreign(proto, {"x": X})


def input_returned() -> Foreign:
    """The input is an output, too."""
    ends = [value("x", ["N", WIDE])], [value("y", ["N", CLASSES]), value("x", ["N", WIDE])]
    return Foreign(model(LAYERS, *ends, **STORED), {"x": X})


def quantized(kind: str = "qdq") -> Foreign:
    """The plain graph, quantized by hand."""
    weight = np.clip(np.round(WEIGHT / 0.05), -127, 127).astype(np.int8)
    stored: dict[str, Array] = {"wq": weight, "ws": np.array(0.05, np.float32), "wz": np.array(0, np.int8)}
    ends = [value("x", ["N", WIDE])], [value("y", ["N", HIDDEN])]
    unpack = node("DequantizeLinear", ["wq", "ws", "wz"], ["w"])
    if kind == "weights only":
        return Foreign(model([unpack, node("MatMul", ["x", "w"], ["y"])], *ends, **stored), {"x": X})
    stored |= {"xs": np.array(0.03, np.float32), "xz": np.array(128, np.uint8)}
    if kind == "qdq":
        nodes = [node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
                 node("DequantizeLinear", ["xq", "xs", "xz"], ["xd"]), unpack,
                 node("MatMul", ["xd", "w"], ["y"])]  # fmt: skip
    elif kind == "qlinear":
        stored |= {"ys": np.array(0.1, np.float32), "yz": np.array(128, np.uint8)}
        nodes = [node("QuantizeLinear", ["x", "xs", "xz"], ["xq"]),
                 node("QLinearMatMul", ["xq", "xs", "xz", "wq", "ws", "wz", "ys", "yz"], ["yq"]),
                 node("DequantizeLinear", ["yq", "ys", "yz"], ["y"])]  # fmt: skip
    else:
        del stored["xs"], stored["xz"]
        nodes = [node("DynamicQuantizeLinear", ["x"], ["xq", "xs", "xz"]),
                 node("MatMulInteger", ["xq", "wq", "xz", "wz"], ["i"]), node("Cast", ["i"], ["f"], to=1),
                 node("Mul", ["xs", "ws"], ["s"]), node("Mul", ["f", "s"], ["y"])]  # fmt: skip
    return Foreign(model(nodes, *ends, **stored), {"x": X})


TAKEN: dict[str, Callable[[], Foreign]] = {
    "plain": plain,
    "opset 11": lambda: plain(opset=11),
    "opset 12": lambda: plain(opset=12),
    "opset 21": lambda: plain(opset=21),
    "constants": constants,
    "initializers as inputs": initializers_as_inputs,
    "many ends": many_ends,
    "scalar": scalar,
    "scalar of shape [1]": lambda: scalar([1]),
    "scalar of shape [1], flat data": scalar_of_one,
    "no batch anywhere": no_batch_anywhere,
    "batch of one": lambda: plain(batch=1),
    "reshape to one row": reshape_to_one_row,
    "attention of one row": attention_of_one_row,
    "masked attention": masked_attention,
    "recurrent state": recurrent_state,
    "rows that meet": rows_that_meet,
    "time first": time_first,
    "free axes": free_axes,
    "branching": branching,
    "looping": looping,
    "function": function,
    "double": double,
    "mean of all": mean_of_all,
    "input returned": input_returned,
    "fixed batch of 4": lambda: plain(batch=4),
    "qdq": quantized,
    "qlinear": lambda: quantized("qlinear"),
    "dynamically quantized": lambda: quantized("dynamic"),
    "weights only": lambda: quantized("weights only"),
}
