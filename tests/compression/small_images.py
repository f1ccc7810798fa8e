"""Digits as uint8 images through a residual network that normalizes them itself."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from torch import Tensor, nn

from compression.base import PassContext
from compression.data import Split, Splits
from compression.model import TorchModel
from compression.signature import Signature, TensorSpec
from compression.training import Training, fit, seeded
from tests.compression.small_digits import silent

IMAGES = Signature(
    (TensorSpec("image", "uint8", ("batch", 8, 8, 1)),), (TensorSpec("logits", "float32", ("batch", 10)),)
)


class ResidualNet(nn.Module):
    """A convolution, a residual block, a pooled linear head."""

    def __init__(self, width: int = 16) -> None:
        super().__init__()
        self.first = convolution(1, width)
        self.second = convolution(width, width)
        self.third = convolution(width, 2 * width)
        self.head = nn.Linear(2 * width, 10)

    def forward(self, image: Tensor) -> Tensor:
        pixels = (image.permute(0, 3, 1, 2).float() - 80.0) / 90.0
        features = self.first(pixels)
        features = nn.functional.max_pool2d(features + self.second(features), 2)
        pooled = nn.functional.adaptive_max_pool2d(self.third(features), 1)
        return self.head(pooled.flatten(1))  # type: ignore[no-any-return]


def convolution(before: int, after: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU(inplace=True)
    )


def as_images(splits: Splits) -> Splits:
    return Splits(
        **{
            name: Split(
                {"image": (split.inputs["image"] * 255).astype(np.uint8).reshape(-1, 8, 8, 1)}, split.labels
            )
            for name, split in splits.items()
        }
    )


def trained(context: PassContext) -> tuple[TorchModel, PassContext]:
    """The network after three epochs, and the context that it is compressed in."""
    splits = as_images(context.splits)
    with seeded(0):
        untrained = TorchModel(ResidualNet(), IMAGES)
    model = fit(untrained, splits.train, splits.validation, Training(epochs=4), seed=0, report=silent).model
    return model, replace(context, splits=splits, reference=model)
