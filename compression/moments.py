"""What activations are like, computed from batch normalization and weights without any data."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import erf, exp, inf, pi, sqrt

import numpy as np
import onnx
from onnx import numpy_helper

from compression.signature import Array

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
_POINTS, _WEIGHTS = np.polynomial.hermite_e.hermegauss(64)
_STEPS = 257  # between its limits, where a function is searched for its least and greatest value
_SAME = {"Cast", "Identity", "Dropout", "AveragePool", "GlobalAveragePool", "ReduceMean"}
_SHIFTED = {"MaxPool", "GlobalMaxPool", "ReduceMax"}
_MOVED = {"Flatten", "Reshape", "Squeeze", "Unsqueeze", "Transpose"}


@dataclass(frozen=True)
class Spread:
    """An activation as a normal distribution per channel, cut off at its limits.

    Attributes:
        mean: Of shape `(channels,)`, or `(1,)` for all of them alike, as the others.
        deviation: Standard deviation.
        low: Nothing is below.
        high: Nothing is above.
        exact: Whether the mean can be relied on, not the limits only.
    """

    mean: Array
    deviation: Array
    low: Array
    high: Array
    exact: bool

    @classmethod
    def normal(cls, mean: Array, deviation: Array, deviations: float) -> Spread:
        """A normal distribution that is cut off so many standard deviations from its mean."""
        reach = deviations * deviation
        return cls(mean, deviation, mean - reach, mean + reach, True)

    @classmethod
    def between(cls, low: float, high: float) -> Spread:
        """Anything between two limits."""
        ends = np.array([low], np.float64), np.array([high], np.float64)
        return cls((ends[0] + ends[1]) / 2, (ends[1] - ends[0]) / sqrt(12), *ends, exact=False)

    @property
    def range(self) -> tuple[float, float]:
        """The limits over all channels."""
        return float(self.low.min()), float(self.high.max())

    def alike(self) -> Spread:
        """All channels taken together."""
        mean = self.mean.mean(keepdims=True)
        deviation = np.sqrt(np.mean(self.deviation**2 + (self.mean - mean) ** 2, keepdims=True))
        return Spread(mean, deviation, self.low.min(keepdims=True), self.high.max(keepdims=True), False)

    def clipped(self, low: float, high: float) -> Spread:
        """After values beyond the limits were set to them (Nagel et al. 2019, appendix C)."""
        pairs = [_clipped_normal(*each, low, high) for each in zip(self.mean, self.deviation, strict=True)]
        mean, deviation = np.array(pairs).T
        return Spread(
            mean, deviation, np.clip(self.low, low, high), np.clip(self.high, low, high), self.exact
        )

    def mapped(self, change: Callable[[Array], Array]) -> Spread:
        """The same change made to each part."""
        parts = self.mean, self.deviation, self.low, self.high
        mean, deviation, low, high = (change(part) for part in parts)
        return Spread(mean, deviation, low, high, self.exact)

    def through_function(self, function: Callable[[Array], Array]) -> Spread:
        """After a function of each value, by Gauss-Hermite quadrature."""
        ends = self.low[:, None], self.high[:, None]
        drawn = function(np.clip(self.mean[:, None] + self.deviation[:, None] * _POINTS, *ends))
        share = _WEIGHTS / _WEIGHTS.sum()
        mean = drawn @ share
        deviation = np.sqrt((drawn - mean[:, None]) ** 2 @ share)
        reached = function(ends[0] + (ends[1] - ends[0]) * np.linspace(0, 1, _STEPS))
        return Spread(mean, deviation, reached.min(1), reached.max(1), self.exact)

    def by_output(self, weight: Array, groups: int) -> Spread:
        """Of the inputs that each output of a product reads: parts of shape `(channels out, channels in)`."""
        ins, outs = weight.shape[1] * groups, len(weight) // groups
        # One channel becomes many neighbouring values when an image is flattened.
        return self.mapped(
            lambda part: np.repeat(np.repeat(part, ins // len(part)).reshape(groups, -1), outs, axis=0)
        )

    def through(self, weight: Array, groups: int, bias: Array, deviations: float) -> Spread:
        """After a product with weights `(channels out, channels in, taps)`, inputs taken as independent."""
        read = self.by_output(weight, groups)
        mean = np.einsum("oik,oi->o", weight, read.mean) + bias
        deviation = np.sqrt(np.einsum("oik,oi->o", weight**2, read.deviation**2))
        likely = Spread.normal(mean, deviation, deviations)
        up, down = np.maximum(weight, 0).sum(2), np.minimum(weight, 0).sum(2)
        # Zeros may stand beside an image.
        low, high = np.minimum(read.low, 0), np.maximum(read.high, 0)
        return Spread(
            mean,
            deviation,
            np.maximum(likely.low, np.sum(up * low + down * high, 1) + bias),
            np.minimum(likely.high, np.sum(up * high + down * low, 1) + bias),
            exact=False,
        )


def _clipped_normal(mean: float, deviation: float, low: float, high: float) -> tuple[float, float]:
    """Mean and standard deviation of a normal variable that is set to limits beyond them."""
    if deviation <= 0:
        return min(max(mean, low), high), 0.0

    def below(limit: float) -> tuple[float, float]:
        """Density and share of the standard normal distribution below a limit."""
        if limit in (inf, -inf):
            return 0.0, float(limit > 0)
        place = (limit - mean) / deviation
        return exp(-(place**2) / 2) / sqrt(2 * pi), (1 + erf(place / sqrt(2))) / 2

    (density_low, share_low), (density_high, share_high) = below(low), below(high)
    at_low, at_high = (0.0 if limit in (inf, -inf) else limit for limit in (low, high))
    inside = share_high - share_low
    # First and second moments of the part inside, and of the two heaps at the limits.
    first = mean * inside + deviation * (density_low - density_high)
    edges = (at_low + mean) * density_low - (at_high + mean) * density_high
    second = (mean**2 + deviation**2) * inside + deviation * edges
    average = first + at_low * share_low + at_high * (1 - share_high)
    square = second + at_low**2 * share_low + at_high**2 * (1 - share_high)
    return average, sqrt(max(square - average**2, 0.0))


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
