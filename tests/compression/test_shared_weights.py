"""Weights that modules share stay as they are: rounded or masked in one place, both would be stored."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.base import AnyPass, PassContext
from compression.data import Split, Splits
from compression.export import export
from compression.inspection import parameters
from compression.model import TorchModel
from compression.recipe import Step
from compression.registry import make_pass
from compression.signature import Signature, TensorSpec
from compression.training import seeded

_WORDS, _WIDTH = 60, 32


class Tied(nn.Module):
    """A table of words that is also what scores them, and one layer of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.table = nn.Embedding(_WORDS, _WIDTH)
        self.body = nn.Linear(_WIDTH, _WIDTH)
        self.head = nn.Linear(_WIDTH, _WORDS, bias=False)
        self.head.weight = self.table.weight

    def forward(self, tokens: Tensor) -> Tensor:
        """Scores `(batch, words)` of tokens `(batch, 4)`."""
        scores: Tensor = self.head(torch.relu(self.body(self.table(tokens).mean(dim=1))))
        return scores


@pytest.fixture(scope="module")
def tied() -> TorchModel:
    signature = Signature(
        (TensorSpec("tokens", "int64", ("batch", 4)),), (TensorSpec("scores", "float32", ("batch", _WORDS)),)
    )
    with seeded(0):
        return TorchModel(Tied().eval(), signature)


@pytest.fixture(scope="module")
def words(context: PassContext) -> PassContext:
    tokens = np.random.default_rng(0).integers(0, _WORDS, (4, 64, 4))
    return replace(context, splits=Splits(*(Split({"tokens": each}, each[:, 0]) for each in tokens)))


@pytest.mark.parametrize(
    ("name", "settings"),
    [
        ("prune-unstructured", {"ratio": 0.5}),
        ("prune-nm", {}),
        ("cluster", {"clusters": 8}),
        ("pow2-weights", {}),
        ("fp8-weights", {}),
    ],
)
def test_what_modules_share_is_stored_once_still(
    name: str, settings: dict[str, object], tied: TorchModel, words: PassContext
) -> None:
    each: AnyPass = make_pass(Step(pass_name=name, settings={"epochs": 0, **settings}))
    each.requires(tied, words)
    after = each.run(tied, words)
    each.ensures(tied, after, words)
    graph = export(after) if isinstance(after, TorchModel) else after
    assert parameters(graph) == parameters(export(tied))
