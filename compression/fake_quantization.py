"""Eight-bit rounding that a module can learn under: forward rounds, backward passes straight through."""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

ACTIVATION_MAX = 255
SMALLEST = 1e-8
# How much faster than weights learned steps and limits move.
QUICKER = 10.0
# Share of the newest batch in the running extremes of an activation.
MOMENTUM = 0.01

RangeRule = Literal["extremes", "step", "clipping"]


def rounded(values: Tensor) -> Tensor:
    """Nearest integers; the gradient passes as if nothing was rounded (Bengio et al. 2013)."""
    return values + (values.round() - values).detach()


def scaled_gradient(values: Tensor, factor: float | Tensor) -> Tensor:
    """The same values; their gradient is multiplied."""
    slowed = values * factor
    return (values - slowed).detach() + slowed


class WeightQuantizer(nn.Module):
    """Signed symmetric integers with one scale per output channel; a weight of zero stays zero.

    Args:
        weight: The weight `(..., channels, ...)` to begin with.
        axis: Where the output channels are.
        learned: Whether the scales are learned; otherwise they follow the largest weight of each channel.
        bits: Length of an integer.
    """

    def __init__(self, weight: Tensor, axis: int, learned: bool, bits: int = 8) -> None:
        super().__init__()
        self.axis = axis
        self.most: int = 2 ** (bits - 1) - 1  # without the one more below, zero is exactly zero
        self.learned = learned
        if learned:
            start = self._largest(weight) / self.most
            self.register_buffer("start", start)
            self.factor = nn.Parameter(torch.ones(start.numel()))

    def scale(self, weight: Tensor) -> Tensor:
        """One scale per channel, of a shape that broadcasts to the weight."""
        if not self.learned:
            return self._largest(weight) / self.most
        start = self.get_buffer("start")
        pace = _pace(start, weight.numel() / start.numel(), self.most)
        factor = scaled_gradient(_quick(self.factor.reshape(start.shape)), pace)
        return start * factor.abs().clamp(min=SMALLEST)

    def codes(self, weight: Tensor) -> Tensor:
        """The integers that stand for the weight, as floats."""
        return rounded((weight / self.scale(weight)).clamp(-self.most, self.most))

    def forward(self, weight: Tensor) -> Tensor:
        """The weight as eight bits hold it."""
        weight = weight.float()
        return self.codes(weight) * self.scale(weight)

    def extra_repr(self) -> str:
        """What tells this quantizer from others."""
        return f"axis={self.axis}, learned={self.learned}, most={self.most}"

    def _largest(self, weight: Tensor) -> Tensor:
        others = [axis for axis in range(weight.ndim) if axis != self.axis]
        return weight.detach().abs().amax(others, keepdim=True).clamp(min=SMALLEST)


class ActivationQuantizer(nn.Module):
    """Unsigned integers with one scale and zero point for a whole activation.

    `extremes` follows a running mean of each batch's extremes (Jacob et al. 2018). `step` learns the scale by
    its gradient (Esser et al. 2020, "Learned Step Size Quantization"). `clipping` learns the extremes
    themselves (Choi et al. 2018, "PACT: Parameterized Clipping Activation").

    Args:
        rule: How the range moves in training.
    """

    def __init__(self, rule: RangeRule) -> None:
        super().__init__()
        self.rule = rule
        self.watching = True
        self.register_buffer("low", torch.zeros(1))
        self.register_buffer("high", torch.zeros(1))
        if rule == "step":
            self.factor = nn.Parameter(torch.ones(1))
        if rule == "clipping":
            self.stretch = nn.Parameter(torch.ones(2))

    def forward(self, values: Tensor) -> Tensor:
        """The values as eight bits hold them; while watching, as they are."""
        values = values.float()
        if self.watching:
            self._see(values, 1.0)
            return values
        if self.training and self.rule == "extremes":
            self._see(values, MOMENTUM)
        if self.rule == "clipping":
            low, high = self._range()
            values = torch.minimum(torch.maximum(values, low), high)
        pace = _pace(self._scale(), values[:1].numel(), ACTIVATION_MAX) if self.rule == "step" else None
        scale, zero = self._grid(pace)
        codes = rounded((values / scale + zero).clamp(0, ACTIVATION_MAX))
        return (codes - zero) * scale

    def frozen(self) -> tuple[float, int]:
        """Scale and zero point as they are now."""
        with torch.no_grad():
            scale, zero = self._grid(None)
        return float(scale), int(zero)

    def extra_repr(self) -> str:
        """What tells this quantizer from others."""
        return f"rule={self.rule}"

    def _see(self, values: Tensor, share: float) -> None:
        """Widens the range (while watching) or moves it towards what the values span; zero stays inside."""
        low, high = values.detach().amin().clamp(max=0), values.detach().amax().clamp(min=0)
        own_low, own_high = self.get_buffer("low"), self.get_buffer("high")
        if share == 1.0:
            own_low.copy_(torch.minimum(own_low, low))
            own_high.copy_(torch.maximum(own_high, high))
        else:
            own_low.lerp_(low.expand(1), share)
            own_high.lerp_(high.expand(1), share)

    def _range(self) -> tuple[Tensor, Tensor]:
        low, high = self.get_buffer("low"), self.get_buffer("high")
        if self.rule == "clipping":
            stretch = _quick(self.stretch).abs()
            low, high = low * stretch[:1], high * stretch[1:]
        return low, high

    def _scale(self) -> Tensor:
        low, high = self._range()
        return ((high - low) / ACTIVATION_MAX).clamp(min=SMALLEST).detach()

    def _grid(self, pace: Tensor | None) -> tuple[Tensor, Tensor]:
        scale = self._scale()
        zero = (-self._range()[0].detach() / scale).round().clamp(0, ACTIVATION_MAX)
        if self.rule == "step":
            factor = _quick(self.factor)
            if pace is not None:
                factor = scaled_gradient(factor, pace)
            scale = scale * factor.abs().clamp(min=SMALLEST)
        return scale, zero


def _quick(factor: Tensor) -> Tensor:
    """A learned factor, which moves `QUICKER` times as fast as weights do under an optimizer of even steps.

    AdamW moves each parameter by about the learning rate, and fine-tuning's hardly moves a factor near one.
    """
    return 1.0 + QUICKER * (factor - 1.0)


def _pace(scale: Tensor, values: float, largest: int) -> Tensor:
    """Factor of the gradient of a learned scale (Esser et al. 2020, section 2.2).

    The parameter is relative to the scale that it began with, so that any optimizer moves it in proportion.
    """
    return 1.0 / (math.sqrt(values * largest) * scale.square() * QUICKER**2)
