"""Harmless changes to training rows, so that a model never sees the same image twice. One literal table."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn import functional

Augmentation = Callable[[Tensor, torch.Generator], Tensor]

_SHIFT = 1 / 8  # of the side: 4 pixels of 32, as usual for CIFAR-10
_MOST_CHANNELS = 4


def crop_flip(images: Tensor, generator: torch.Generator) -> Tensor:
    """Shifts each image by up to an eighth of its side, edges mirrored, and flips half of them.

    He et al. 2016, "Deep Residual Learning", section 4.2.

    Args:
        images: `(batch, height, width, channels)` or `(batch, channels, height, width)`, any dtype.
        generator: Draws the shifts and flips.
    """
    last = channels_last(images)
    pixels = images if last else images.permute(0, 2, 3, 1)
    count, height, width = pixels.shape[:3]
    rows = _shifted(count, height, generator)
    columns = _shifted(count, width, generator)
    flipped = torch.rand(count, generator=generator) < 0.5
    columns = torch.where(flipped[:, None], columns.flip(1), columns)
    each = torch.arange(count)[:, None, None]
    moved = pixels[each, rows[:, :, None], columns[:, None, :]]
    return moved if last else moved.permute(0, 3, 1, 2)


def crop_flip_cutout(images: Tensor, generator: torch.Generator) -> Tensor:
    """As `crop_flip`, and paints a square of a quarter of the side over each image in its mean colour.

    DeVries and Taylor 2017, "Improved Regularization of Convolutional Neural Networks with Cutout".
    """
    last = channels_last(images)
    moved = crop_flip(images, generator)
    pixels = moved if last else moved.permute(0, 2, 3, 1)
    count, height, width = pixels.shape[:3]
    hidden = (
        _band(count, height, generator)[:, :, None, None] & _band(count, width, generator)[:, None, :, None]
    )
    mean = pixels.float().mean(dim=(1, 2), keepdim=True).to(pixels.dtype)
    painted = torch.where(hidden, mean, pixels)
    return painted if last else painted.permute(0, 3, 1, 2)


AUGMENTATIONS: dict[str, Augmentation] = {
    "crop-flip": crop_flip,
    "crop-flip-cutout": crop_flip_cutout,
}


def channels_last(images: Tensor) -> bool:
    """Whether the last axis of a batch of images holds the colours, told by its length."""
    return images.shape[-1] <= _MOST_CHANNELS < images.shape[-2]


def shrink(images: Tensor, share: float) -> Tensor:
    """Images with sides of the given share, by averaging pixels; dtype and layout stay.

    Training on small images first is most of the learning at half the cost (Howard 2018, "Training Imagenet
    in 3 hours", as progressive resizing).
    """
    last = channels_last(images)
    planes = (images.permute(0, 3, 1, 2) if last else images).float()
    sides = [max(1, round(side * share)) for side in planes.shape[-2:]]
    small = functional.interpolate(planes, size=sides, mode="bilinear", antialias=True)
    if not images.is_floating_point():
        small = small.round()
    small = small.to(images.dtype)
    return small.permute(0, 2, 3, 1) if last else small


def _band(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Which indices `(count, side)` of an axis lie in a band of a quarter of it, centred anywhere."""
    centres = torch.randint(side, (count, 1), generator=generator)
    return (torch.arange(side)[None, :] - centres).abs() <= side // 8


def _shifted(count: int, side: int, generator: torch.Generator) -> Tensor:
    """Indices `(count, side)` into an axis, shifted by row and mirrored at its ends."""
    most = max(1, round(side * _SHIFT))
    shifts = torch.randint(-most, most + 1, (count, 1), generator=generator)
    indices = torch.arange(side)[None, :] + shifts
    indices = indices.abs()
    return torch.where(indices >= side, 2 * (side - 1) - indices, indices)
