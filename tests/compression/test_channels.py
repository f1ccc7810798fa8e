from __future__ import annotations

import numpy as np
import pytest
from torch import Tensor, nn

from compression.channels import multiply_accumulates
from compression.data import Split
from compression.export import export
from compression.model import TorchModel
from compression.operations import flops
from compression.signature import Signature, TensorSpec
from compression.training import seeded

STEPS, WIDE, HIDDEN = 6, 16, 8
SEQUENCES = Signature(
    (TensorSpec("x", "float32", ("batch", STEPS, WIDE)),),
    (TensorSpec("y", "float32", ("batch", STEPS, WIDE)),),
)
ROWS = Split({"x": np.ones((3, STEPS, WIDE), np.float32)})


class Recurrent(nn.Module):
    """Two recurrent layers in both directions."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.layers = kind(WIDE, HIDDEN, num_layers=2, batch_first=True, bidirectional=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.layers(x)[0]  # type: ignore[no-any-return]


@pytest.mark.parametrize(("kind", "gates"), [(nn.LSTM, 4), (nn.GRU, 3), (nn.RNN, 1)])
def test_recurrent_layers_count_in_the_module_as_in_its_graph(kind: type[nn.RNNBase], gates: int) -> None:
    with seeded(0):
        model = TorchModel(Recurrent(kind).eval(), SEQUENCES)
    applied = 2 * STEPS * 2 * gates * HIDDEN * (WIDE + HIDDEN)
    assert multiply_accumulates(model, ROWS) == flops(export(model)) / 2 == applied


def test_attention_counts_in_the_module_as_in_its_graph() -> None:
    with seeded(0):
        layer = nn.TransformerEncoderLayer(WIDE, 2, 32, batch_first=True)
    model = TorchModel(layer.eval(), SEQUENCES)
    of_weights, of_tokens = STEPS * (4 * WIDE * WIDE + 2 * 32 * WIDE), 2 * STEPS * STEPS * WIDE
    assert multiply_accumulates(model, ROWS) == flops(export(model)) / 2 == of_weights + of_tokens
