"""Weight sharing: the weights of a layer take few values, found by k-means and fine-tuned together."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Annotated, ClassVar

import numpy as np
import torch
from onnx import numpy_helper
from pydantic import Field
from torch import Tensor, nn
from torch.nn.utils import parametrize

from compression.base import (
    BrokenPromiseError,
    Facts,
    Pass,
    PassContext,
    PassRefusedError,
    Settings,
    check_known,
)
from compression.codebook import expanded
from compression.finetuning import FineTuning
from compression.model import Form, OnnxModel, TorchModel
from compression.prunable_layers import layers_of_shared_weights
from compression.rewriting import baked
from compression.signature import Array

_LINEAR = (nn.Linear,)
_CONVOLUTIONS = (
    nn.Conv1d,
    nn.Conv2d,
    nn.Conv3d,
    nn.ConvTranspose1d,
    nn.ConvTranspose2d,
    nn.ConvTranspose3d,
)
_MOST_ROUNDS = 300

Clusters = Annotated[int, Field(ge=2, le=256)]


class ClusterSettings(FineTuning):
    """Settings of `cluster`.

    Attributes:
        clusters: How many values the weights of a layer share, zero among them where a mask made zeros.
        linear_clusters: The same for linear layers; None for as many.
        layers: The same for single layers, by module name.
        ignore: Names of modules that keep their weights.
    """

    clusters: Clusters = 32
    linear_clusters: Clusters | None = None
    layers: dict[str, Clusters] = Field(default_factory=dict)
    ignore: tuple[str, ...] = ()

    def wanted(self, name: str, layer: nn.Module) -> int:
        """How many values a layer is to have."""
        own = self.linear_clusters if isinstance(layer, _LINEAR) else None
        return self.layers.get(name, own or self.clusters)


class Cluster(Pass[ClusterSettings, TorchModel, TorchModel]):
    """Shares few values among the weights of each convolution and linear layer, then fine-tunes the values.

    Han, Mao and Dally 2016, "Deep Compression", section 3: k-means with linear initialization; the gradient
    of a shared value is the sum over its weights. Zeros of an earlier mask stay zero. What is gained is size,
    where codes are stored (`huffman`), not time. Integers with a scale per output channel keep so few values
    in each channel, no longer in the whole layer.
    """

    name: ClassVar[str] = "cluster"
    version: ClassVar[int] = 1
    takes: ClassVar[Form] = Form.TORCH
    gives: ClassVar[Form] = Form.TORCH
    holds_weights: ClassVar[bool] = True
    settings_class: ClassVar[type[Settings]] = ClusterSettings

    def requires(self, model: TorchModel, context: PassContext) -> None:
        """Checks that there are layers of more weights than clusters, and something to fine-tune with."""
        modules = dict(model.module.named_modules())
        check_known("module", (*self.settings.ignore, *self.settings.layers), modules)
        layers = dict(self._layers(model.module))
        if not layers:
            raise PassRefusedError(
                "no convolution or linear layer has more different weights of its own than clusters. Use "
                "fewer clusters, or leave cluster out."
            )
        self.settings.check(context)

    def run(self, model: TorchModel, context: PassContext) -> TorchModel:
        """Returns the model with shared weights, fine-tuned."""
        module = copy.deepcopy(model.module).eval()
        for name, layer in self._layers(module):
            share(layer, self.settings.wanted(name, layer))
        return self.settings.fit(TorchModel(module, model.signature), context)

    def ensures(self, before: TorchModel, after: TorchModel, context: PassContext) -> Facts:
        """Checks that each layer has no more values than asked, and that its zeros are zeros still."""
        modules, layers = dict(after.module.named_modules()), {}
        squares = error = 0.0
        for name, layer in self._layers(before.module):
            weights, shared = _weights(layer), _weights(modules[name])
            values, wanted = len(np.unique(shared)), self.settings.wanted(name, layer)
            if values > wanted:
                raise BrokenPromiseError(f"{name} has {values} values; {wanted} were asked for.")
            if shared[weights == 0].any():
                raise BrokenPromiseError(f"zeros of {name} are no longer zero.")
            channels = shared.shape[1 if getattr(layer, "transposed", False) else 0]
            layers[name] = {"weights": int(shared.size), "values": values, "channels": channels}
            squares += float(np.square(weights, dtype=np.float64).sum())
            error += float(np.square(weights - shared, dtype=np.float64).sum())
        if not layers:
            raise BrokenPromiseError("no layer shares weights. Use fewer clusters.")
        return {"layers": layers, "relative_error": round((error / max(squares, 1e-30)) ** 0.5, 5)}

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the artifact stores a tensor of so few values for every layer.

        A folded normalization or a scale per channel multiplies the values of a channel by one factor: then
        each channel has so few.
        """
        tensors = [numpy_helper.to_array(each) for each in expanded(artifact).proto.graph.initializer]
        # The strictest first; each takes the tensor of its size that has fewest values.
        for name, layer in sorted(facts["layers"].items(), key=lambda item: int(item[1]["values"])):
            fitting = [i for i, each in enumerate(tensors) if each.size == layer["weights"]]
            counts = {i: shared_values(tensors[i], layer["channels"]) for i in fitting}
            best = min(counts, key=counts.__getitem__, default=None)
            if best is None or counts[best] > layer["values"]:
                found = "none of its size" if best is None else f"{counts[best]} of them"
                raise BrokenPromiseError(
                    f"{name} had {layer['values']} values; the artifact stores {found}. A later step gave "
                    "its weights values of their own: put cluster behind it."
                )
            tensors.pop(best)

    def _layers(self, module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
        """The layers that are to share weights, by name."""
        shared = layers_of_shared_weights(module)
        for name, layer in module.named_modules():
            chosen = isinstance(layer, (*_LINEAR, *_CONVOLUTIONS)) and layer not in shared
            if chosen and name not in self.settings.ignore:
                wanted = self.settings.wanted(name, layer)
                if len(np.unique(_weights(layer))) > wanted:
                    yield name, layer


class SharedValues(nn.Module):
    """Parametrization of a weight by the values that its entries share.

    What is learned is each value times the root of its number of weights. In these coordinates a step of
    gradient descent is the step of the single weights projected on those that share, so that learning rates
    mean what they mean elsewhere.

    Args:
        codes: Which value each weight has, of the weight's shape; with `has_zero`, 0 is the value zero.
        has_zero: Whether zeros stay zero.
    """

    # An export that scales the weight would give each channel values of its own.
    stored_as_is = True

    def __init__(self, codes: Tensor, has_zero: bool) -> None:
        super().__init__()
        self.shape = codes.shape
        self.has_zero = has_zero
        self.register_buffer("codes", codes.reshape(-1).to(torch.int32))
        counts = torch.bincount(self.codes)[int(has_zero) :].clamp(min=1)
        self.register_buffer("roots", counts.sqrt())

    codes: Tensor
    roots: Tensor

    def forward(self, coordinates: Tensor) -> Tensor:
        """The weight, from one coordinate per value."""
        values = coordinates / self.roots
        if self.has_zero:
            values = torch.cat([values.new_zeros(1), values])
        return values.index_select(0, self.codes).reshape(self.shape)

    def right_inverse(self, weight: Tensor) -> Tensor:
        """The coordinates that come nearest to a weight: its means over those that share."""
        sums = weight.new_zeros(len(self.roots) + self.has_zero).index_add_(0, self.codes, weight.reshape(-1))
        return sums[int(self.has_zero) :] / self.roots

    def extra_repr(self) -> str:
        """What tells one from another."""
        return f"{tuple(self.shape)}, values={len(self.roots) + self.has_zero}, has_zero={self.has_zero}"


def share(layer: nn.Module, clusters: int) -> None:
    """Lets the weights of a layer share values, in place; masks and the like become plain zeros first."""
    weights = _weights(baked(layer))
    has_zero = bool((weights == 0).any())
    codes = np.zeros(weights.shape, np.int64)
    nonzero = weights != 0
    codes[nonzero] = k_means(weights[nonzero], clusters - has_zero) + has_zero
    parametrize.register_parametrization(layer, "weight", SharedValues(torch.from_numpy(codes), has_zero))


def k_means(weights: Array, clusters: int) -> Array:
    """The cluster of each weight, `(weights,)`, numbered from 0 by rising value; none is empty.

    Lloyd 1982, "Least Squares Quantization in PCM", from centroids that are spread evenly over the range:
    Han 2016, section 3.2, finds that this keeps the large weights, which are few and matter most.
    """
    ordered = np.sort(weights.astype(np.float64))
    sums = np.concatenate([[0.0], np.cumsum(ordered)])
    centroids = np.linspace(ordered[0], ordered[-1], clusters)
    for _ in range(_MOST_ROUNDS):
        inner = np.searchsorted(ordered, (centroids[1:] + centroids[:-1]) / 2)
        edges = np.concatenate([[0], inner, [len(ordered)]])
        counts = np.diff(edges)
        means = np.diff(sums[edges]) / np.maximum(counts, 1)
        moved = np.sort(np.where(counts > 0, means, centroids))
        if np.array_equal(moved, centroids):
            break
        centroids = moved
    _, numbers = np.unique(
        np.searchsorted((centroids[1:] + centroids[:-1]) / 2, weights), return_inverse=True
    )
    return np.asarray(numbers)


def shared_values(tensor: Array, channels: int) -> int:
    """How many values a tensor has, or each of its output channels where that is fewer.

    Args:
        tensor: The weights of a layer as some graph stores them, perhaps transposed.
        channels: How many output channels there are: axes of another length are not theirs.
    """
    counts = [len(np.unique(tensor))]
    for axis in (index for index, length in enumerate(tensor.shape) if length == channels):
        each = np.sort(np.moveaxis(tensor, axis, 0).reshape(channels, -1), axis=1)
        counts.append(int((each[:, 1:] != each[:, :-1]).sum(axis=1).max(initial=0)) + 1)
    return min(counts)


def _weights(layer: nn.Module) -> Array:
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight.detach().cpu().numpy()
