"""The small real model that these tests compress."""

from __future__ import annotations

from torch import nn

from compression.data import Split
from compression.inference import infer
from compression.model import OnnxModel
from compression.signature import Signature, TensorSpec

DIGITS = Signature(
    (TensorSpec("image", "float32", ("batch", 64)),), (TensorSpec("logits", "float32", ("batch", 10)),)
)


def digits_net(widths: tuple[int, int, int] = (16, 32, 64), hidden: int = 32) -> nn.Module:
    layers: list[nn.Module] = [nn.Unflatten(1, (1, 8, 8))]
    for index, (before, after) in enumerate(zip((1, *widths), widths, strict=False)):
        layers += [nn.Conv2d(before, after, 3, padding=1, bias=False), nn.BatchNorm2d(after), nn.ReLU()]
        if index > 0:
            layers.append(nn.MaxPool2d(2))
    head = [nn.Flatten(), nn.Linear(widths[2] * 4, hidden), nn.ReLU(), nn.Linear(hidden, 10)]
    return nn.Sequential(*layers, *head)


def small_net() -> nn.Module:
    return digits_net((8, 16, 16), 16)


def silent(phrase: str, fraction: float) -> None:
    pass


def accuracy(model: OnnxModel, split: Split) -> float:
    assert split.labels is not None
    return float((infer(model, split, len(split))[0].argmax(1) == split.labels).mean())
