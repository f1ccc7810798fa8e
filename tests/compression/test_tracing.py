from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.data import Split, Splits
from compression.export import export
from compression.inference import infer
from compression.model import TorchModel
from compression.signature import Signature, TensorSpec
from compression.tracing import traced
from compression.training import lay_out, predict, seeded

LONGEST, WIDE = 24, 8
TOKENS = Signature(
    (TensorSpec("ids", "int64", ("batch", "length")),), (TensorSpec("logits", "float32", ("batch", 3)),)
)


class Positioned(nn.Module):
    """Attention over tokens, each with its row of a table of positions."""

    table: Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("table", torch.randn(LONGEST, WIDE))
        self.tokens, self.head = nn.Embedding(50, WIDE), nn.Linear(WIDE, 3)
        self.layer = nn.TransformerEncoderLayer(WIDE, 2, 16, batch_first=True)

    def forward(self, ids: Tensor) -> Tensor:
        features = self.tokens(ids) + self.table[: ids.shape[1]]
        return self.head(self.layer(features).mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize(("batch", "length"), [(1, 1), (1, 7), (2, 3), (5, 2), (3, LONGEST)])
def test_a_graph_that_reads_a_table_up_to_the_length_is_right_for_any_length(batch: int, length: int) -> None:
    with seeded(0):
        model = TorchModel(Positioned().eval(), TOKENS)
    graph = traced(model)
    ids = np.random.default_rng(0).integers(0, 50, (batch, length))
    with torch.no_grad():
        wanted, given = (each.module(torch.from_numpy(ids)) for each in (model, graph))
    np.testing.assert_allclose(given[0], wanted, atol=1e-5)
    np.testing.assert_allclose(infer(export(graph), Split({"ids": ids}), batch)[0], wanted, atol=1e-5)


def test_a_graph_runs_however_its_weights_are_laid_out(reference: TorchModel, splits: Splits) -> None:
    """As where it learns in bfloat16, channels last."""
    graph = traced(reference)
    lay_out(graph.module, torch.channels_last)
    rows = splits.test.take(slice(0, 20))
    np.testing.assert_allclose(predict(graph, rows)[0], predict(reference, rows)[0], atol=1e-4)
