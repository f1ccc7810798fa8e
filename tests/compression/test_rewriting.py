"""Layers written otherwise answer as before, and are compressed like any other."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import nn
from transformers.pytorch_utils import Conv1D

from compression.base import PassContext
from compression.data import Split
from compression.export import export
from compression.inference import infer
from compression.model import TorchModel
from compression.pipeline import compress
from compression.recipe import Recipe, step
from compression.rewriting import modernized
from compression.signature import Signature, TensorSpec
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS

PRUNED = Recipe(name="pruned", steps=(step("prune-structured", epochs=1),))


class Bags(nn.Module):
    """Words of a text looked up and reduced, weighted where the mode has weights."""

    def __init__(self, mode: str, padding_idx: int | None) -> None:
        super().__init__()
        self.words = nn.EmbeddingBag(20, 8, mode=mode, padding_idx=padding_idx)

    def forward(self, words: torch.Tensor) -> torch.Tensor:
        weights = words.float() if self.words.mode == "sum" else None
        return torch.cat([self.words(words, None, weights), self.words(words)], 1)


@pytest.mark.parametrize("mode", ["sum", "mean", "max"])
@pytest.mark.parametrize("padding_idx", [None, 3])
def test_bags_of_embeddings_are_exported_without_a_loop(mode: str, padding_idx: int | None) -> None:
    signature = Signature(
        (TensorSpec("words", "int64", ("batch", "length")),),
        (TensorSpec("y", "float32", ("batch", 16)),),
    )
    with seeded(0):
        model = TorchModel(Bags(mode, padding_idx).eval(), signature)
    exported = export(model)
    assert not {"Loop", "SequenceEmpty"} & {node.op_type for node in exported.proto.graph.node}
    words = np.random.default_rng(0).integers(0, 6, (50, 7))
    words[0] = 3  # nothing but padding
    split = Split({"words": words})
    np.testing.assert_allclose(infer(exported, split, 50)[0], predict(model, split)[0], atol=1e-5)


@pytest.mark.filterwarnings("ignore:.*weight_norm. is deprecated")
@pytest.mark.parametrize("norm", [nn.utils.parametrizations.weight_norm, nn.utils.weight_norm])
def test_layers_with_a_weight_norm_are_pruned_like_any_other(
    norm: Callable[[nn.Module], nn.Module], context: PassContext
) -> None:
    with seeded(0):
        module = nn.Sequential(norm(nn.Linear(64, 32)), nn.ReLU(), norm(nn.Linear(32, 10)))
    model = TorchModel(modernized(module).eval(), DIGITS)
    made = compress(PRUNED, model, context)
    assert made.facts[0]["facts"]["widths"] == {"0": [32, 16]}
    rows = context.splits.test
    assert made.torch_model is not None
    np.testing.assert_allclose(
        infer(made.artifact, rows, 300)[0], predict(made.torch_model, rows)[0], atol=1e-4
    )


def test_linear_layers_of_gpt2_are_pruned_like_any_other(context: PassContext) -> None:
    with seeded(0):
        model = TorchModel(nn.Sequential(Conv1D(32, 64), nn.ReLU(), Conv1D(10, 32)).eval(), DIGITS)
    before = predict(model, context.splits.test)[0]
    exported = compress(Recipe(name="fp32"), model, context)
    np.testing.assert_allclose(infer(exported.artifact, context.splits.test, 300)[0], before, atol=1e-4)
    assert compress(PRUNED, model, context).facts[0]["facts"]["widths"] == {"0": [32, 16]}
