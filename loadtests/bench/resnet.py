"""ResNet-50 with random features under a fitted last layer: no use, but the cost of the real one.

`python -m loadtests.bench.resnet MODEL.onnx ROWS.npz [SIDE]` writes the model and rows; it needs the `build`
extra. The rows are noisy patterns, one per class, and the last layer tells them apart: so rounding costs
about what it costs a trained network, and not the near ties between random answers.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import numpy as np
import onnxruntime as ort
from numpy.typing import NDArray
from onnx import ModelProto, NodeProto, TensorProto, helper, numpy_helper, save

_STAGES = ((64, 3), (128, 4), (256, 6), (512, 3))  # ResNet-50 (He 2016, table 1)
_EXPANSION = 4
_CLASSES = 10
_SIDE = 224
_ROWS = 512
_NOISE = 0.5
_RIDGE = 1e-3
_OPSET = 17
_SEED = 50


def write_resnet(path: Path, rows: Path, side: int = _SIDE) -> None:
    """Writes ResNet-50 for images `(batch, 3, side, side)`, and labelled rows for it.

    The residual branches are scaled down, so that the signal neither dies nor explodes in 50 layers.
    """
    images, labels = _patterns(side)
    np.savez(rows, image=images, labels=labels)
    model = _features(side)
    save(_with_last_layer(model, _fitted(model, images, labels)), str(path))


def _patterns(side: int) -> tuple[NDArray[np.float32], NDArray[np.int64]]:
    """Smooth images, noisy ones of as many patterns as there are classes."""
    draw = np.random.default_rng(_SEED)
    labels = np.arange(_ROWS) % _CLASSES
    shape = (3, side // 32, side // 32)
    coarse = draw.normal(0, 1, (_CLASSES, *shape))[labels] + draw.normal(0, _NOISE, (_ROWS, *shape))
    images = coarse.astype(np.float32).repeat(32, axis=2).repeat(32, axis=3)
    return np.ascontiguousarray(images), labels


def _fitted(model: ModelProto, images: NDArray[np.float32], labels: NDArray[np.int64]) -> NDArray[np.float32]:
    """The last layer, by ridge regression of the classes on the features."""
    session = ort.InferenceSession(model.SerializeToString())
    features = np.concatenate(
        [session.run(None, {"image": images[i : i + 8]})[0] for i in range(0, len(images), 8)]
    ).astype(np.float64)
    kernel = features @ features.T
    kernel += _RIDGE * np.trace(kernel) / len(kernel) * np.eye(len(kernel))
    wanted = np.eye(_CLASSES)[labels] - 1 / _CLASSES
    return (features.T @ np.linalg.solve(kernel, wanted)).astype(np.float32)


def _with_last_layer(model: ModelProto, weights: NDArray[np.float32]) -> ModelProto:
    graph = model.graph
    graph.initializer.append(numpy_helper.from_array(weights, "dense"))
    graph.node.append(helper.make_node("MatMul", [graph.output[0].name, "dense"], ["logits"]))
    del graph.output[:]
    graph.output.append(helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["batch", _CLASSES]))
    return model


def _features(side: int) -> ModelProto:
    """All but the last layer."""
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
    graph = helper.make_graph(
        nodes,
        "resnet50",
        [helper.make_tensor_value_info("image", TensorProto.FLOAT, ["batch", 3, side, side])],
        [helper.make_tensor_value_info(data, TensorProto.FLOAT, ["batch", width])],
        weights,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", _OPSET)])


if __name__ == "__main__":
    write_resnet(Path(sys.argv[1]), Path(sys.argv[2]), *map(int, sys.argv[3:]))
