"""The few values that weights of less than eight bits may have, and rounding to them that learns."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

import ml_dtypes
import numpy as np
import torch
from torch import Tensor, nn

from compression.codebook import Codes

# Stands for the zero of a layer without weights: far below any that a channel is scaled by.
SMALLEST = 1e-30
E4M3_MAX = 448.0

# Of a weight and the axis of its output channels: the values, ascending, and a factor that broadcasts to the
# weight, or None.
Grid = Callable[[Tensor, int], tuple[Tensor, Tensor | None]]


def powers_of_two(bits: int, weight: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """Zero and signed powers of two: as many exponents as fit, down from that of the largest weight."""
    # Zhou et al. 2017, equation 2: the largest power is the one that the largest weight is nearest to.
    largest = int(torch.floor(torch.log2(_largest(weight) * 4 / 3)))
    powers = 2.0 ** torch.arange(largest - 2 ** (bits - 1) + 2, largest + 1, dtype=torch.float32)
    return torch.cat([-powers.flip(0), torch.zeros(1), powers]), None


def fixed_points(bits: int, weight: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """Multiples of one power of two for the whole layer, as fine as the largest weight allows."""
    step = 2.0 ** (int(torch.ceil(torch.log2(_largest(weight)))) - (bits - 1))
    most = 2 ** (bits - 1) - 1
    return torch.arange(-most, most + 1, dtype=torch.float32) * step, None


def signs(weight: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """Minus and plus one, times the mean size of each output channel's weights."""
    return torch.tensor([-1.0, 1.0]), weight.abs().mean(_others(weight, axis), keepdim=True)


def eight_bit_floats(weight: Tensor, axis: int) -> tuple[Tensor, Tensor | None]:
    """The finite E4M3 numbers, times a factor that brings each output channel's largest weight to the end."""
    largest = weight.abs().amax(_others(weight, axis), keepdim=True).clamp(min=SMALLEST)
    return E4M3.clone(), largest / E4M3_MAX


def _e4m3() -> Tensor:
    numbers = np.arange(256, dtype=np.uint8).view(ml_dtypes.float8_e4m3fn).astype(np.float32)
    return torch.from_numpy(np.unique(numbers[np.isfinite(numbers)]))


E4M3 = _e4m3()


def bound(grid: Callable[[int, Tensor, int], tuple[Tensor, Tensor | None]], bits: int) -> Grid:
    """A grid for codes of so many bits."""
    return partial(grid, bits)


class GridRounding(nn.Module):
    """Rounds a weight to the nearest value of a grid that follows the weight.

    The gradient passes straight through (Bengio et al. 2013), so that it trains the weight behind.

    Args:
        grid: Which values there are.
        axis: Where the output channels are.
        bits: Length of a code.
    """

    def __init__(self, grid: Grid, axis: int, bits: int) -> None:
        super().__init__()
        self.grid = grid
        self.axis = axis
        self.bits = bits

    def forward(self, weight: Tensor) -> Tensor:
        """The weight with each value on the grid."""
        weight = weight.float()
        indices, book, scale = self._nearest(weight.detach())
        values = book[indices] if scale is None else book[indices] * scale
        return weight + (values - weight).detach()

    def codes(self, weight: Tensor) -> Codes:
        """The weight as codes."""
        indices, book, scale = self._nearest(weight.detach())
        factor = None if scale is None else scale.cpu().numpy()
        return Codes(indices.cpu().numpy(), book.cpu().numpy(), self.bits, factor)

    def extra_repr(self) -> str:
        """What tells this rounding from others."""
        name = self.grid.func.__name__ if isinstance(self.grid, partial) else self.grid.__name__
        return f"{name}, axis={self.axis}, bits={self.bits}"

    def _nearest(self, weight: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
        book, scale = self.grid(weight, self.axis)
        book = book.to(weight.device)
        relative = weight if scale is None else weight / scale.clamp(min=SMALLEST)
        return torch.bucketize(relative.contiguous(), (book[1:] + book[:-1]) / 2), book, scale


def _largest(weight: Tensor) -> Tensor:
    return weight.abs().amax().clamp(min=SMALLEST)


def _others(weight: Tensor, axis: int) -> list[int]:
    return [each for each in range(weight.ndim) if each != axis]
