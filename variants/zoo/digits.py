"""Handwritten digits, 8x8 pixels: scikit-learn's bundled copy of the UCI test set (BSD licence).

1,797 real scans by 13 writers, classified by a small convolutional network. It builds in a minute and
serves as quick start and as the model of the tests.
"""

from __future__ import annotations

import numpy as np
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from compression.data import Split, Splits
from compression.recipe import Recipe, step
from compression.signature import Signature, TensorSpec
from compression.training import Training
from variants.serving_spec import TierSpec
from variants.spec import ModelSpec

_SIDE = 8
_BRIGHTEST = 16.0
_CLASSES = 10
_SEED = 20


class DigitsNet(nn.Module):
    """Three 3x3 convolutions and two linear layers over one 8x8 image.

    Args:
        width: Channels of the first two convolutions; everything else grows with it.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            *_convolution(1, width),
            *_convolution(width, width, stride=2),
            *_convolution(width, 2 * width),
            nn.MaxPool2d(2),
        )
        self.classifier = nn.Sequential(
            nn.Linear(2 * width * (_SIDE // 4) ** 2, 12 * width),
            nn.ReLU(),
            nn.Linear(12 * width, _CLASSES),
        )

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(batch, 10)` of pixel values 0..16 `(batch, 64)`."""
        pixels = image.reshape(-1, 1, _SIDE, _SIDE) / _BRIGHTEST
        return self.classifier(self.features(pixels).flatten(1))  # type: ignore[no-any-return]


def _convolution(channels_in: int, channels_out: int, stride: int = 1) -> list[nn.Module]:
    return [
        nn.Conv2d(channels_in, channels_out, 3, stride=stride, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(),
    ]


def _teacher() -> nn.Module:
    return DigitsNet(width=32)


def _student(width: int = 8) -> nn.Module:
    return DigitsNet(width)


def _splits() -> Splits:
    """Stratified by digit: 957 train, 120 calibration, 360 validation, 360 test."""
    digits = load_digits()
    remaining = np.arange(len(digits.data))
    parts = {}
    for name, size in (("test", 360), ("validation", 360), ("calibration", 120)):
        remaining, parts[name] = train_test_split(
            remaining, test_size=size, random_state=_SEED, stratify=digits.target[remaining]
        )
    images, labels = digits.data.astype(np.float32), digits.target.astype(np.int64)
    return Splits(
        train=Split({"image": images[remaining]}, labels[remaining]),
        **{name: Split({"image": images[rows]}, labels[rows]) for name, rows in parts.items()},
    )


SPEC = ModelSpec(
    name="digits",
    description="Handwritten digits, 8x8 pixels (UCI, by way of scikit-learn)",
    factory=_teacher,
    students={"narrow": _student},
    signature=Signature(
        inputs=(TensorSpec("image", "float32", ("batch", _SIDE * _SIDE)),),
        outputs=(TensorSpec("logits", "float32", ("batch", _CLASSES)),),
    ),
    splits=_splits,
    metric="accuracy",
    tiers=(
        TierSpec("accurate", min_quality_ratio=0.999, deadline_ms=200),
        TierSpec("balanced", min_quality_ratio=0.99, deadline_ms=100),
        TierSpec("fast", min_quality_ratio=0.97, deadline_ms=50),
    ),
    training=Training(epochs=20, autocast=True),
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="fp16", steps=(step("fp16"),)),
        Recipe(name="int8-dynamic", steps=(step("int8-dynamic"),)),
        Recipe(name="int8-static", steps=(step("int8-static"),)),
        Recipe(name="pruned", steps=(step("prune-structured", ratio=0.5, epochs=20),)),
        Recipe(
            name="distilled",
            steps=(step("distill", student="narrow", temperature=4.0, alpha=0.7, epochs=40),),
        ),
        Recipe(
            name="pruned-distilled-int8",
            steps=(
                step("prune-structured", ratio=0.5, epochs=20),
                step("distill", student="current", temperature=4.0, alpha=0.7),
                step("int8-static"),
            ),
        ),
    ),
)
