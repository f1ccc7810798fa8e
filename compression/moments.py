"""What activations are like, computed from batch normalization and weights without any data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import erf, inf

import numpy as np
import onnx
from onnx import numpy_helper

from compression.signature import Array
from compression.spread import Spread

_ELEMENTWISE = {"Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide}
_FIXED = {"Sigmoid": (0.0, 1.0), "HardSigmoid": (0.0, 1.0), "Softmax": (0.0, 1.0), "Tanh": (-1.0, 1.0)}
# Functions of one value, of the operator's attributes as ONNX has them by default.
_FUNCTIONS: dict[str, Callable[..., Array]] = {
    "Elu": lambda x, alpha=1.0: np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0))),
    "Erf": np.vectorize(erf, otypes=[np.float64]),
    "HardSigmoid": lambda x, alpha=0.2, beta=0.5: np.clip(alpha * x + beta, 0, 1),
    "HardSwish": lambda x: x * np.clip(x / 6 + 0.5, 0, 1),
    "LeakyRelu": lambda x, alpha=0.01: np.where(x > 0, x, alpha * x),
    "Selu": lambda x, alpha=1.67326319, gamma=1.05070102: (
        gamma * np.where(x > 0, x, alpha * np.expm1(np.minimum(x, 0)))
    ),
    "Sigmoid": lambda x: (1 + np.tanh(x / 2)) / 2,
    "Softplus": lambda x: np.logaddexp(0, x),
    "Tanh": np.tanh,
}
_SAME = {"Cast", "Identity", "Dropout", "AveragePool", "GlobalAveragePool", "ReduceMean"}
_SHIFTED = {"MaxPool", "GlobalMaxPool", "ReduceMax"}
_MOVED = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}


@dataclass(frozen=True)
class Derived:
    """A function of another activation, value by value, as `x * sigmoid(x)` is of `x`.

    Attributes:
        root: The activation's name.
        function: Of its values.
    """

    root: str
    function: Callable[[Array], Array]


class Derivations:
    """What is a function of one activation, however many operators compute it."""

    def __init__(self, stored: Mapping[str, Array]) -> None:
        self._constants = {name: float(values.item()) for name, values in stored.items() if values.size == 1}
        self._derived: dict[str, Derived] = {}

    def note(self, node: onnx.NodeProto) -> Derived | None:
        """Remembers what an operator derives from a single activation, and returns it."""
        roots = {self._of(name).root for name in node.input if name not in self._constants}
        applied = _function(node)
        if applied is None or len(roots) != 1:
            return None
        parts = [self._values_of(name) for name in node.input]
        derived = Derived(roots.pop(), lambda x: applied(*(part(x) for part in parts)))
        self._derived[node.output[0]] = derived
        return derived

    def _of(self, name: str) -> Derived:
        return self._derived.get(name, Derived(name, lambda x: x))

    def _values_of(self, name: str) -> Callable[[Array], Array]:
        value = self._constants.get(name)
        return self._of(name).function if value is None else lambda x: np.full_like(x, value)


def _function(node: onnx.NodeProto) -> Callable[..., Array] | None:
    if node.op_type in _ELEMENTWISE:
        return _ELEMENTWISE[node.op_type]
    function = _FUNCTIONS.get(node.op_type)
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    return None if function is None else partial(function, **given)


def spreads(
    graph: onnx.GraphProto, known: Mapping[str, Spread], norms: Mapping[str, Spread], deviations: float
) -> dict[str, Spread]:
    """What each activation is like, as far as it follows from what is known.

    Args:
        graph: A prepared graph.
        known: Of its inputs.
        norms: Of what convolutions return that were followed by a normalization, by their output's name.
        deviations: How many standard deviations from the mean values are expected at most.
    """
    stored = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    ranks = {
        value.name: len(value.type.tensor_type.shape.dim) for value in (*graph.value_info, *graph.output)
    }
    found = dict(known)
    derivations = Derivations(stored)
    for node in graph.node:
        name = node.output[0]
        derived = derivations.note(node)
        if name in norms:
            found[name] = norms[name]
            continue
        if derived is not None and derived.root in found:
            found[name] = found[derived.root].through_function(derived.function)
            continue
        reads = [found.get(each) for each in node.input]
        if not reads or reads[0] is None:
            swapped = node.op_type in ("Add", "Mul") and len(reads) == 2 and reads[1] is not None
            if not swapped:
                continue
        spread = _after(node, reads, stored, ranks, deviations)
        if spread is not None:
            found[name] = spread
    return found


def _after(
    node: onnx.NodeProto,
    reads: list[Spread | None],
    stored: Mapping[str, Array],
    ranks: Mapping[str, int],
    deviations: float,
) -> Spread | None:
    first = reads[0]
    kind = node.op_type
    if kind in _FIXED:
        return Spread.between(*_FIXED[kind])
    if kind in _ELEMENTWISE:
        return _elementwise(node, reads, stored)
    if first is None:
        return None
    if kind == "Relu":
        return first.clipped(0.0, inf)
    if kind == "Clip":
        low, high = (
            float(stored[node.input[place]]) if len(node.input) > place and node.input[place] else limit
            for place, limit in ((1, -inf), (2, inf))
        )
        return first.clipped(low, high)
    if kind in _SAME:
        return first
    if kind in _SHIFTED:
        return replace(first, exact=False)
    if kind in _MOVED:
        # Flattened to rows, an image keeps its channels in order.
        kept = ranks.get(node.output[0]) == 2 and kind != "Transpose"
        return replace(first, exact=False) if kept else first.alike()
    if kind == "Concat":
        parts = [each for each in reads if each is not None]
        return Spread.between(*_hull(parts)) if len(parts) == len(reads) else None
    product = simple_product(node, stored)
    if product is None or product[0].shape[1] * product[1] % len(first.mean):
        return None
    weight, groups = product
    bias = stored[node.input[2]] if len(node.input) > 2 and node.input[2] else np.zeros(len(weight))
    return first.through(weight.reshape(*weight.shape[:2], -1).astype(np.float64), groups, bias, deviations)


def simple_product(node: onnx.NodeProto, stored: Mapping[str, Array]) -> tuple[Array, int] | None:
    """The weight of a convolution or product as a view `(channels out, channels in, ...)`, and its groups.

    None where it is not stored, or where more is done than a product and a sum.
    """
    if node.op_type not in ("Conv", "Gemm", "MatMul") or node.input[1] not in stored:
        return None
    weight = stored[node.input[1]]
    given = {attribute.name: onnx.helper.get_attribute_value(attribute) for attribute in node.attribute}
    if node.op_type == "Conv":
        return weight, int(given.get("group", 1))
    plain = not given.get("transA") and given.get("alpha", 1.0) == given.get("beta", 1.0) == 1.0
    if not plain or weight.ndim != 2:
        return None
    return (weight if given.get("transB") else weight.T)[:, :, None], 1


def _elementwise(
    node: onnx.NodeProto, reads: list[Spread | None], stored: Mapping[str, Array]
) -> Spread | None:
    left, right = (
        each if each is not None else _constant(stored.get(name))
        for each, name in zip(reads, node.input, strict=True)
    )
    if left is None or right is None:
        return None
    if len(left.mean) != len(right.mean) and 1 not in (len(left.mean), len(right.mean)):
        left, right = left.alike(), right.alike()
    exact = left.exact and right.exact
    if node.op_type in ("Add", "Sub"):
        if node.op_type == "Sub":
            right = Spread(-right.mean, right.deviation, -right.high, -right.low, right.exact)
        return Spread(
            left.mean + right.mean,
            np.hypot(left.deviation, right.deviation),
            left.low + right.low,
            left.high + right.high,
            exact,
        )
    if node.op_type == "Div":
        if np.any((right.low <= 0) & (right.high >= 0)):
            return None
        right = Spread(1 / right.mean, right.deviation, 1 / right.high, 1 / right.low, right.exact)
    corners = [low * high for low in (left.low, left.high) for high in (right.low, right.high)]
    deviation = np.sqrt(
        (left.deviation * right.mean) ** 2
        + (right.deviation * left.mean) ** 2
        + (left.deviation * right.deviation) ** 2
    )
    exact = exact and not (left.deviation.any() and right.deviation.any())  # they may depend on each other
    return Spread(left.mean * right.mean, deviation, np.min(corners, 0), np.max(corners, 0), exact)


def _constant(values: Array | None) -> Spread | None:
    if values is None:
        return None
    flat = values.astype(np.float64).ravel()
    certain = Spread(flat, np.zeros_like(flat), flat, flat, True)
    # Only `(channels, 1, 1)` and the like are surely one value per channel.
    return certain if flat.size == 1 or (values.ndim >= 3 and values.shape[-1] == 1) else certain.alike()


def _hull(parts: list[Spread]) -> tuple[float, float]:
    ranges = [part.range for part in parts]
    return min(low for low, _ in ranges), max(high for _, high in ranges)
