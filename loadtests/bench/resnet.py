"""ResNet-50 with random weights: no use, but the cost of the real one.

`python -m loadtests.bench.resnet MODEL.onnx ROWS.npz` writes the model and rows; it needs the `build` extra.
The labels of the rows are the model's own answers: "accuracy" is then how often a variant agrees with it.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import NodeProto, TensorProto, helper, numpy_helper, save

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50 (He 2016, table 1)
_EXPANSION = 4
_CLASSES = 1000
_SIDE = 224
_ROWS = 256
_OPSET = 17
_SEED = 50


def write_resnet(path: Path, side: int = _SIDE) -> None:
    """Writes ResNet-50 for images `(batch, 3, side, side)`, with random weights.

    The residual branches are scaled down, so that the signal neither dies nor explodes in 50 layers.
    """
    draw = np.random.default_rng(_SEED)
    nodes: list[NodeProto] = []
    weights: list[TensorProto] = []

    def add(kind: str, inputs: list[str], **attributes: Any) -> str:
        output = f"t{len(nodes)}"
        nodes.append(helper.make_node(kind, inputs, [output], **attributes))
        return output

    def weight(values: NDArray[np.float64]) -> str:
        name = f"w{len(weights)}"
        weights.append(numpy_helper.from_array(values.astype(np.float32), name))
        return name

    def convolution(data: str, given: int, made: int, kernel: int, stride: int, scale: float = 1.0) -> str:
        spread = scale * np.sqrt(2 / (given * kernel * kernel))
        kernels = weight(draw.normal(0, spread, (made, given, kernel, kernel)))
        bias = weight(np.zeros(made))
        return add(
            "Conv",
            [data, kernels, bias],
            kernel_shape=[kernel, kernel],
            strides=[stride, stride],
            pads=[kernel // 2] * 4,
        )

    data = add("Relu", [convolution("image", 3, 64, 7, 2)])
    data = add("MaxPool", [data], kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1])
    width = 64
    for number, (channels, blocks) in enumerate(_STAGES):
        for block in range(blocks):
            stride = 2 if number and not block else 1
            shortcut = data
            if not block:
                shortcut = convolution(data, width, channels * _EXPANSION, 1, stride)
            inner = add("Relu", [convolution(data, width, channels, 1, 1)])
            inner = add("Relu", [convolution(inner, channels, channels, 3, stride)])
            width = channels * _EXPANSION
            inner = convolution(inner, channels, width, 1, 1, 0.2)
            data = add("Relu", [add("Add", [inner, shortcut])])
    data = add("Flatten", [add("GlobalAveragePool", [data])])
    dense = weight(draw.normal(0, np.sqrt(1 / width), (width, _CLASSES)))
    nodes.append(helper.make_node("MatMul", [data, dense], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _CLASSES])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])
    save(model, str(path))


def write_rows(model: Path, path: Path, rows: int = _ROWS, side: int = _SIDE) -> None:
    """Writes random smooth images, labelled with what the model answers."""
    draw = np.random.default_rng(_SEED)
    coarse = draw.normal(0, 1, (rows, 3, side // 32, side // 32)).astype(np.float32)
    images = np.ascontiguousarray(coarse.repeat(32, axis=2).repeat(32, axis=3))
    session = ort.InferenceSession(str(model))
    labels = np.concatenate(
        [session.run(None, {"image": images[i : i + 8]})[0].argmax(1) for i in range(0, rows, 8)]
    )
    np.savez(path, image=images, labels=labels)


if __name__ == "__main__":
    write_resnet(Path(sys.argv[1]))
    write_rows(Path(sys.argv[1]), Path(sys.argv[2]))
