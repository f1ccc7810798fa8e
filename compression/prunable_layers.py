"""The layers whose channels or weights passes may remove, and those among them whose channels must stay."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

LAYERS = (nn.Conv1d, nn.Conv2d, nn.Conv3d, nn.Linear)
# What has weights to multiply by: transposed convolutions keep the channels that they make, and read others'.
COSTLY = (*LAYERS, nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_RESHAPES = frozenset({"view", "reshape", "unflatten"})
_TAKEN_APART = frozenset({"chunk", "split", "tensor_split", "unbind", "__getitem__"})
_MIXES = frozenset({"linear", "matmul", "bmm", "baddbmm", "einsum", "scaled_dot_product_attention"})


def layers_of(module: nn.Module) -> Iterator[tuple[str, nn.Module]]:
    """Every layer whose channels or weights a pass may remove, with its name."""
    return ((name, layer) for name, layer in module.named_modules() if isinstance(layer, LAYERS))


class LayerHooks:
    """Calls a function after each layer's forward pass inside the block.

    Args:
        module: What has the layers.
        function: Takes a layer, what it was given, and its result.
        kinds: Which layers.
    """

    def __init__(
        self,
        module: nn.Module,
        function: Callable[[nn.Module, tuple[Tensor, ...], Tensor], None],
        kinds: tuple[type[nn.Module], ...] = LAYERS,
    ) -> None:
        self.module = module
        self.function = function
        self.kinds = kinds

    def __enter__(self) -> None:
        layers = (layer for layer in self.module.modules() if isinstance(layer, self.kinds))
        self.handles = [layer.register_forward_hook(self.function) for layer in layers]

    def __exit__(self, *_: object) -> None:
        for handle in self.handles:
            handle.remove()


def layers_of_shared_weights(module: nn.Module) -> set[nn.Module]:
    """Modules that own a parameter together: cut in one, it would be another's no more."""
    owners = Counter(id(each) for part in module.modules() for each in part.parameters(recurse=False))
    return {
        part
        for part in module.modules()
        if any(owners[id(each)] > 1 for each in part.parameters(recurse=False))
    }


def layers_cut_apart(module: nn.Module, examples: tuple[Tensor, ...]) -> set[nn.Module]:
    """Layers whose output channels are reshaped into several axes, be they taken apart or scaled before.

    So are those whose halves a gated linear unit multiplies: the library knows neither.
    """
    made: dict[int, tuple[nn.Module, Tensor]] = {}
    cut: set[nn.Module] = set()

    class Watch(TorchFunctionMode):
        def __torch_function__(self, function: Any, types: Any, args: Any = (), kwargs: Any = None) -> object:
            result = function(*args, **(kwargs or {}))
            name = getattr(function, "__name__", "")
            known = next((made[id(each)] for each in args if id(each) in made), None)
            if known is None:
                return result
            layer, given = known
            if name == "glu":
                cut.add(layer)
            elif name in _RESHAPES:
                axis = -1 if isinstance(layer, nn.Linear) else 1
                if result.ndim > given.ndim and result.shape[axis] != given.shape[axis]:
                    cut.add(layer)
            elif name in _TAKEN_APART:
                for part in result if isinstance(result, tuple | list) else (result,):
                    if isinstance(part, Tensor):
                        made[id(part)] = layer, part
            elif name not in _MIXES and isinstance(result, Tensor) and result.shape == given.shape:
                made[id(result)] = layer, result  # channel for channel, as a factor or an activation
            return result

    def record(layer: nn.Module, _: object, output: Tensor) -> None:
        made[id(output)] = (layer, output)

    with torch.no_grad(), LayerHooks(module, record), Watch():
        module(*examples)
    return cut
