"""Specs with transforms, small enough to build in a test: one takes texts, the other pictures."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers, processors
from torch import Tensor, nn

from compression.data import Split, Splits
from compression.recipe import Recipe
from compression.signature import Signature, TensorSpec
from variants.comparison import Baseline
from variants.home import subfolder
from variants.serving_spec import transform
from variants.spec import ModelSpec

WORDS = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "buy", "now", "see", "you", "at", "noon")
SIDE = 4


def tokenizer() -> Tokenizer:
    """Splits at spaces; a word more than `WORDS` has is unknown."""
    made = Tokenizer(models.WordLevel({word: number for number, word in enumerate(WORDS)}, "[UNK]"))
    made.pre_tokenizer = pre_tokenizers.Whitespace()
    made.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    return made


def tokenizer_file() -> Path:
    path = subfolder("work") / "tiny-tokenizer.json"
    tokenizer().save(str(path))
    return path


class Selling(nn.Module):
    """Logits: how many words do not sell, and how many do."""

    def __init__(self) -> None:
        super().__init__()
        table = torch.tensor(
            [[float(word not in ("buy", "now")), float(word in ("buy", "now"))] for word in WORDS]
        )
        self.scores = nn.Embedding.from_pretrained(table)

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        return (self.scores(input_ids) * attention_mask.unsqueeze(2).float()).sum(1)


class Brightest(nn.Module):
    """Logits: the mean of each colour."""

    def __init__(self) -> None:
        super().__init__()
        self.scale = nn.Parameter(torch.full((3,), 1 / 255))

    def forward(self, image: Tensor) -> Tensor:
        return image.float().mean((1, 2)) * self.scale


def _text_split(generator: np.random.Generator) -> Split:
    ids = generator.integers(4, len(WORDS), (24, 12))
    selling = ((ids == 4) | (ids == 5)).sum(1) > 6
    return Split({"input_ids": ids, "attention_mask": np.ones_like(ids)}, selling.astype(np.int64))


def _picture_split(generator: np.random.Generator) -> Split:
    pixels = generator.integers(0, 256, (24, SIDE, SIDE, 3)).astype(np.uint8)
    return Split({"image": pixels}, pixels.mean((1, 2)).argmax(1))


def _text_splits() -> Splits:
    generator = np.random.default_rng(0)
    return Splits(*(_text_split(generator) for _ in range(4)))


def _picture_splits() -> Splits:
    generator = np.random.default_rng(0)
    return Splits(*(_picture_split(generator) for _ in range(4)))


def _baseline() -> Baseline:
    """Always says ham."""
    labels = _text_splits().test.labels
    assert labels is not None
    return Baseline("ham, always", np.tile([0.0, -5.0], (len(labels), 1)), labels, 0.01)


TEXT = ModelSpec(
    name="mail",
    factory=Selling,
    train_reference=False,
    signature=Signature(
        tuple(TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")),
        (TensorSpec("logits", "float32", ("batch", 2)),),
    ),
    splits=_text_splits,
    metric="accuracy",
    recipes=(Recipe(name="fp32"),),
    transforms=(transform("tokenize", max_tokens=16), transform("labels", names=("ham", "spam"))),
    files={"tokenizer.json": tokenizer_file},
    baseline=_baseline,
)
PICTURE = ModelSpec(
    name="colours",
    factory=Brightest,
    train_reference=False,
    signature=Signature(
        (TensorSpec("image", "uint8", ("batch", SIDE, SIDE, 3)),),
        (TensorSpec("logits", "float32", ("batch", 3)),),
    ),
    splits=_picture_splits,
    metric="accuracy",
    recipes=(Recipe(name="fp32"),),
    transforms=(transform("image"), transform("labels", names=("red", "green", "blue"), top_k=2)),
)
