"""Scenes of one to three handwritten digits on textured grounds: what each pixel shows, and how many digits.

Composed from scikit-learn's copy of the UCI digits (BSD licence). A small fully convolutional network gives
two outputs, neither of which is a class: it keeps metrics, parity and reports from hardening around accuracy.
It trains from scratch in a minute and a half on two idle cores.
"""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise

import numpy as np
import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn
from torch.nn import functional

from compression.data import Split, Splits
from compression.recipe import Recipe, step
from compression.signature import Array, Signature, TensorSpec
from compression.training import Training
from variants.spec import ModelSpec

_SIDE = 32
_GLYPH = 14
_CLASSES = 11  # the ground, then the digits 0 to 9
_BRIGHTEST = 16.0
_INK = 0.35  # from this brightness on a pixel belongs to its digit
_MOST_DIGITS = 3
_TRIES = 20
_SEED = 48
# Scans and scenes of train, calibration, validation and test: no scan is seen in two of them.
_SCANS = (997, 200, 300, 300)
_SCENES = (2000, 128, 300, 300)


class ScenesNet(nn.Module):
    """Convolutions down to a quarter of the side and up again, and one that counts.

    Ronneberger et al. 2015, "U-Net: Convolutional Networks for Biomedical Image Segmentation", in small.

    Args:
        width: Channels at full size; they double at each halving.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.fine = _convolutions(1, width)
        self.middle = _convolutions(width, 2 * width)
        self.coarse = _convolutions(2 * width, 4 * width, 8 * width)
        self.up_middle = _convolutions(10 * width, 2 * width)
        self.up_fine = _convolutions(3 * width, width)
        self.mask = nn.Conv2d(width, _CLASSES, 1)
        self.count = nn.Conv2d(8 * width, 1, 1)

    def forward(self, image: Tensor) -> tuple[Tensor, Tensor]:
        """Logits `(batch, 11, 32, 32)` and the count `(batch, 1)` of brightness 0..1 `(batch, 1, 32, 32)`."""
        fine = self.fine(image)
        middle = self.middle(functional.max_pool2d(fine, 2))
        coarse = self.coarse(functional.max_pool2d(middle, 2))
        up_middle = self.up_middle(_joined(coarse, middle))
        up_fine = self.up_fine(_joined(up_middle, fine))
        return self.mask(up_fine), self.count(coarse.mean(dim=(2, 3), keepdim=True)).flatten(1)


def _joined(small: Tensor, large: Tensor) -> Tensor:
    return torch.cat([functional.interpolate(small, scale_factor=2.0, mode="nearest"), large], dim=1)


def _convolutions(*channels: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for before, after in pairwise(channels):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
    return nn.Sequential(*layers)


def _teacher() -> nn.Module:
    return ScenesNet(width=8)


def _student() -> nn.Module:
    return ScenesNet(width=6)


def _splits() -> Splits:
    """Scenes composed the same way every time: 2,000 train, 128 calibration, 300 validation, 300 test."""
    digits = load_digits()
    glyphs = _enlarged(digits.images.astype(np.float32)[:, None] / _BRIGHTEST, _GLYPH)[:, 0]
    generator = np.random.default_rng(_SEED)
    parts = np.split(generator.permutation(len(glyphs)), np.cumsum(_SCANS)[:-1])
    return Splits(
        *(
            _composed(glyphs[scans], digits.target[scans], count, generator)
            for scans, count in zip(parts, _SCENES, strict=True)
        )
    )


def _composed(glyphs: Array, digits: Array, count: int, generator: np.random.Generator) -> Split:
    coarse = generator.uniform(0.0, 0.6, (count, 1, 6, 6)).astype(np.float32)
    images = _enlarged(coarse, _SIDE)
    images += generator.normal(0.0, 0.05, images.shape).astype(np.float32)
    masks = np.zeros((count, _SIDE, _SIDE), np.int64)
    for image, mask in zip(images[:, 0], masks, strict=True):
        _draw(image, mask, glyphs, digits, generator)
    return Split({"image": images.clip(0.0, 1.0)}, masks)


def _draw(image: Array, mask: Array, glyphs: Array, digits: Array, generator: np.random.Generator) -> None:
    """Puts different digits down, in place, where their ink meets no other's."""
    for digit in generator.permutation(10)[: generator.integers(1, _MOST_DIGITS + 1)]:
        glyph = glyphs[generator.choice(np.flatnonzero(digits == digit))]
        for box in _places(generator):
            if not (mask[box] > 0)[glyph > _INK].any():
                image[box] = image[box] * (1.0 - glyph) + glyph
                mask[box][glyph > _INK] = digit + 1
                break


def _places(generator: np.random.Generator) -> Iterator[tuple[slice, slice]]:
    for top, left in generator.integers(0, _SIDE - _GLYPH + 1, (_TRIES, 2)):
        yield slice(top, top + _GLYPH), slice(left, left + _GLYPH)


def _enlarged(images: Array, side: int) -> Array:
    """Images `(rows, 1, ...)` of another side, smoothly."""
    tensor = torch.from_numpy(images)
    enlarged: Array = functional.interpolate(
        tensor, (side, side), mode="bilinear", align_corners=True
    ).numpy()
    return enlarged


SPEC = ModelSpec(
    name="scenes",
    description="Digits in textured scenes: a class per pixel and a count (UCI, by way of scikit-learn)",
    factory=_teacher,
    students={"narrow": _student},
    signature=Signature(
        inputs=(TensorSpec("image", "float32", ("batch", 1, _SIDE, _SIDE)),),
        outputs=(
            TensorSpec("mask", "float32", ("batch", _CLASSES, _SIDE, _SIDE)),
            TensorSpec("count", "float32", ("batch", 1)),
        ),
    ),
    splits=_splits,
    metric="mean-iou@mask",
    training=Training(loss="segmentation", epochs=20, learning_rate=1e-2, batch_size=32),
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="fp16", steps=(step("fp16"),)),
        Recipe(name="int8-dynamic", steps=(step("int8-dynamic"),)),
        Recipe(name="int8-static", steps=(step("int8-static"),)),
        Recipe(name="pruned", steps=(step("prune-structured", ratio=0.5, epochs=8),)),
        Recipe(
            name="distilled",
            steps=(step("distill", student="narrow", temperature=2.0, alpha=0.5, epochs=30),),
        ),
    ),
)
