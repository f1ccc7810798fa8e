"""Small networks for images, one per idea of how to spend few operations: students for distillation.

Each is a stem and three stages that halve the sides and double the channels, then a mean over positions and a
linear layer. Widths are multiples of 8, as vector units like them.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise

import torch
from torch import Tensor, nn

from compression.reparameterization import Branches

STAGES = 3
MULTIPLE = 8

# (channels in, channels out, depth) -> a stage that halves the sides.
Stage = Callable[[int, int, int], nn.Module]
# The channels of a shuffled stage, each `(batch, channels / 4, height, width)`.
Quarters = tuple[Tensor, Tensor, Tensor, Tensor]


class StudentNet(nn.Module):
    """An image classifier of one family.

    Args:
        planes: Turns the model's input into `(batch, channels, height, width)` around zero; without weights.
        features: Makes `(batch, width, ...)` of it.
        width: Channels that the features have.
        classes: How many logits there are.
    """

    def __init__(self, planes: nn.Module, features: nn.Module, width: int, classes: int) -> None:
        super().__init__()
        self.planes = planes
        self.features = features
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.classifier = nn.Linear(width, classes)

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(batch, classes)`."""
        features = self.pool(self.features(self.planes(image)))
        return self.classifier(features.flatten(1))  # type: ignore[no-any-return]


class ShuffleUnit(nn.Module):
    """Half of the channels pass by, the other half is convolved, and the halves mix for the next unit.

    Ma et al. 2018, "ShuffleNet V2", figure 3c, after its guidelines: equal widths, no groups but depthwise
    ones, no sums. Channels are held as quarters, two of each half trade places: the paper's shuffle and split
    without moving channels in memory, and each quarter may be pruned.
    """

    def __init__(self, quarter: int) -> None:
        super().__init__()
        self.body = _convolution(2 * quarter, 2 * quarter, 1)
        self.ends = _Halves(2 * quarter, 2 * quarter)

    def forward(self, quarters: Quarters) -> Quarters:
        """Four quarters, of which two are new."""
        first, worked, second, also_worked = quarters
        return second, first, *self.ends(self.body(torch.cat([worked, also_worked], dim=1)))


class ShuffleDown(nn.Module):
    """Both halves of the channels are made of all that comes in, at half the sides (figure 3d)."""

    def __init__(self, channels_in: int, channels_out: int) -> None:
        super().__init__()
        half = channels_out // 2
        self.beside = _Halves(channels_in, half, stride=2)
        self.body = _convolution(channels_in, half, 1)
        self.ends = _Halves(half, half, stride=2)

    def forward(self, features: Tensor) -> Quarters:
        """Four quarters of `channels_out` channels."""
        return *self.beside(features), *self.ends(self.body(features))


class _Halves(nn.Module):
    """A depthwise convolution, then a pointwise one for each half of the channels."""

    def __init__(self, channels_in: int, channels_out: int, stride: int = 1) -> None:
        super().__init__()
        self.spread = _depthwise(channels_in, stride)
        self.left = _convolution(channels_in, channels_out // 2, 1)
        self.right = _convolution(channels_in, channels_out // 2, 1)

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        spread = self.spread(features)
        return self.left(spread), self.right(spread)


class _Join(nn.Module):
    def forward(self, quarters: Quarters) -> Tensor:
        return torch.cat(quarters, dim=1)


class CrossStage(nn.Module):
    """Half of the channels skip the residual blocks and join at the end.

    Wang et al. 2020, "CSPNet", section 3; two 1x1 convolutions make the halves, so that each may be pruned.
    """

    def __init__(self, channels: int, depth: int) -> None:
        super().__init__()
        half = channels // 2
        self.beside = _convolution(channels, half, 1)
        self.body = nn.Sequential(_convolution(channels, half, 1), *(_Residual(half) for _ in range(depth)))
        self.join = _convolution(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        """As many channels as come in."""
        return self.join(torch.cat([self.beside(features), self.body(features)], dim=1))  # type: ignore[no-any-return]


class OneShot(nn.Module):
    """A chain of convolutions whose outputs are all joined once, at its end.

    Lee et al. 2019, "An Energy and GPU-Computation Efficient Backbone Network" (VoVNet), section 4.1.
    """

    def __init__(self, channels_in: int, channels_out: int, depth: int) -> None:
        super().__init__()
        inner = channels_out // 2
        widths = [channels_in, *[inner] * depth]
        self.chain = nn.ModuleList(_convolution(a, b) for a, b in pairwise(widths))
        self.join = _convolution(sum(widths), channels_out, 1)

    def forward(self, features: Tensor) -> Tensor:
        """`channels_out` channels."""
        seen = [features]
        for layer in self.chain:
            seen.append(layer(seen[-1]))
        return self.join(torch.cat(seen, dim=1))  # type: ignore[no-any-return]


class _Residual(nn.Module):
    def __init__(self, channels: int) -> None:
        super().__init__()
        self.body = nn.Sequential(_convolution(channels, channels), _convolution(channels, channels))

    def forward(self, features: Tensor) -> Tensor:
        return features + self.body(features)  # type: ignore[no-any-return]


def _plain(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    """Simonyan and Zisserman 2015, "Very Deep Convolutional Networks" (VGG): convolutions, then a maximum."""
    more = [_convolution(channels_out, channels_out) for _ in range(depth - 1)]
    return nn.Sequential(_convolution(channels_in, channels_out), *more, nn.MaxPool2d(2))


def _separable(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    """Howard et al. 2017, "MobileNets", section 3.1: each plane on its own, then all planes per position."""
    layers: list[nn.Module] = []
    for index in range(depth):
        first = channels_in if index == 0 else channels_out
        spread = _depthwise(first, stride=2 if index == 0 else 1)
        layers += [spread, nn.ReLU(inplace=True), _convolution(first, channels_out, 1)]
    return nn.Sequential(*layers)


def _shuffled(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    units = [ShuffleUnit(channels_out // 4) for _ in range(depth - 1)]
    return nn.Sequential(ShuffleDown(channels_in, channels_out), *units, _Join())


def _branched(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    """Ding et al. 2021, "RepVGG": 3x3, 1x1 and identity beside each other, one 3x3 after `fuse`."""
    layers: list[nn.Module] = [_branches(channels_in, channels_out, stride=2), nn.ReLU()]
    for _ in range(depth - 1):
        layers += [_branches(channels_out, channels_out), nn.ReLU()]
    return nn.Sequential(*layers)


def _cross_stage(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    return nn.Sequential(
        _convolution(channels_in, channels_out), nn.MaxPool2d(2), CrossStage(channels_out, depth)
    )


def _one_shot(channels_in: int, channels_out: int, depth: int) -> nn.Module:
    return nn.Sequential(nn.MaxPool2d(2), OneShot(channels_in, channels_out, depth))


FAMILIES: dict[str, Stage] = {
    "cspnet": _cross_stage,
    "mobilenet": _separable,
    "repvgg": _branched,
    "shufflenet": _shuffled,
    "vgg": _plain,
    "vovnet": _one_shot,
}


def make_student(
    family: str, planes: nn.Module, channels: int, classes: int, *, width: int, depth: int = 2
) -> StudentNet:
    """An untrained student.

    Args:
        family: Name in `FAMILIES`.
        planes: Turns the model's input into `(batch, channels, height, width)`.
        channels: How many planes there are: 3 for colours.
        classes: How many logits there are.
        width: Channels of the stem, a multiple of 8; the three stages have two, four and eight times as many.
        depth: Layers, units or blocks of each stage.

    Raises:
        ValueError: The family does not exist, or the width is no multiple of 8.
    """
    if family not in FAMILIES:
        raise ValueError(f'no family "{family}". There are {", ".join(FAMILIES)}.')
    if width < MULTIPLE or width % MULTIPLE:
        raise ValueError(f"width {width} is no multiple of {MULTIPLE}. Use {max(width // 8, 1) * 8}.")
    stem = [_branches(channels, width), nn.ReLU()] if family == "repvgg" else [_convolution(channels, width)]
    widths = [width * 2**stage for stage in range(STAGES + 1)]
    stages = [FAMILIES[family](a, b, depth) for a, b in pairwise(widths)]
    return StudentNet(planes, nn.Sequential(*stem, *stages), widths[-1], classes)


def _convolution(channels_in: int, channels_out: int, side: int = 3) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, side, padding=side // 2, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _depthwise(channels: int, stride: int = 1) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, channels, 3, stride, padding=1, groups=channels, bias=False),
        nn.BatchNorm2d(channels),
    )


def _branches(channels_in: int, channels_out: int, stride: int = 1) -> Branches:
    beside = [
        nn.Sequential(
            nn.Conv2d(channels_in, channels_out, side, stride, padding=side // 2, bias=False),
            nn.BatchNorm2d(channels_out),
        )
        for side in (3, 1)
    ]
    identity = [nn.BatchNorm2d(channels_out)] if channels_in == channels_out and stride == 1 else []
    return Branches([*beside, *identity])
