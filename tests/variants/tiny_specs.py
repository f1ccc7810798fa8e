"""Specs small enough to build in a test: `mipgate build tests.variants.tiny_specs:TINY`."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import torch
from torch import nn

from compression.data import Split, Splits
from compression.recipe import Recipe, step
from compression.signature import Signature, TensorSpec
from compression.training import Training
from variants.spec import ModelSpec

WIDTH, CLASSES = 64, 3


def _net(hidden: int) -> nn.Module:
    return nn.Sequential(nn.Linear(WIDTH, hidden), nn.ReLU(), nn.Linear(hidden, CLASSES))


def _teacher() -> nn.Module:
    return _net(256)


def _student(width: int = 32) -> nn.Module:
    return _net(width)


def _split(generator: np.random.Generator, rows: int) -> Split:
    x = generator.normal(size=(rows, WIDTH)).astype(np.float32)
    return Split({"x": x}, x[:, :CLASSES].argmax(axis=1))


def _splits() -> Splits:
    generator = np.random.default_rng(0)
    return Splits(*(_split(generator, rows) for rows in (64, 64, 80, 80)))


TINY = ModelSpec(
    name="tiny",
    factory=_teacher,
    students={"narrow": _student},
    train_reference=False,
    signature=Signature(
        (TensorSpec("x", "float32", ("batch", WIDTH)),), (TensorSpec("y", "float32", ("batch", CLASSES)),)
    ),
    splits=_splits,
    metric="accuracy",
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="fp16", steps=(step("fp16"),)),
        Recipe(name="int8-then-int4", steps=(step("int8-dynamic"), step("int4-weights"))),
        Recipe(name="backwards", steps=(step("fp16"), step("prune-structured"))),
    ),
)

# Another reference of the same model.
RETRAINED = replace(TINY, seed=1, recipes=TINY.recipes[:2])

ENDLESS = replace(
    TINY,
    recipes=(
        *TINY.recipes[:2],
        Recipe(name="endless", steps=(step("distill", student="narrow", epochs=1_000_000),)),
    ),
)

UNSEEDED = replace(
    TINY, splits=lambda: Splits(*(_split(np.random.default_rng(), rows) for rows in (64, 64, 80, 80)))
)


def _drawn() -> nn.Module:
    module = nn.Sequential(nn.Linear(WIDTH, WIDTH), nn.ReLU(), nn.Linear(WIDTH, CLASSES))
    weight = np.random.default_rng().normal(size=(WIDTH, WIDTH)).astype(np.float32)
    module[0].weight.data = torch.from_numpy(weight)
    return module


DRAWN = replace(TINY, factory=_drawn, recipes=TINY.recipes[:2])


def _tied() -> nn.Module:
    first = nn.Linear(WIDTH, WIDTH)
    return nn.Sequential(first, nn.ReLU(), first, nn.Linear(WIDTH, CLASSES))


TIED = replace(
    TINY, factory=_tied, train_reference=True, training=Training(epochs=1), recipes=TINY.recipes[:2]
)

CONTROLLED = replace(
    TINY, recipes=(*TINY.recipes[:2], Recipe(name="control", steps=(step("fp16"),), by_default=False))
)

MISSPELLED = replace(TINY, recipes=(*TINY.recipes[:2], Recipe(name="typo", steps=(step("fp61"),))))

PACKED = replace(
    TINY,
    recipes=(
        TINY.recipes[0],
        Recipe(name="packed", steps=(step("cluster", clusters=8, epochs=0), step("huffman"))),
    ),
)
