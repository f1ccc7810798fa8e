from __future__ import annotations

import pytest
import torch
from torch import nn

from compression.base import AnyPass, BrokenPromiseError, PassContext
from compression.channels import parameters_of
from compression.export import export
from compression.inspection import parameters
from compression.model import TorchModel
from compression.recipe import Step, step
from compression.registry import make_pass
from compression.training import seeded
from tests.compression.small_digits import DIGITS


class Filtered(nn.Module):
    """Learned layers behind constants that are larger, beside one that no answer needs."""

    bank: torch.Tensor
    folding: torch.Tensor

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("bank", torch.randn(64, 256) / 16)
        self.register_buffer("folding", torch.randn(256, 32) / 16)
        self.register_buffer("unread", torch.randn(300, 300))
        self.first, self.second, self.last = nn.Linear(32, 64), nn.Linear(64, 64), nn.Linear(64, 10)

    def forward(self, image: torch.Tensor) -> torch.Tensor:
        features = (image @ self.bank).abs().log1p() @ self.folding
        return self.last(torch.relu(self.second(torch.relu(self.first(features)))))  # type: ignore[no-any-return]


@pytest.mark.parametrize(
    "given",
    [
        step("prune-structured", ratio=0.5, epochs=1),
        step("low-rank", ratio=0.2, epochs=1),
        step("prune-depth", blocks=["second"], epochs=1),
    ],
    ids=lambda given: given.pass_name,
)
def test_constants_of_the_module_count_on_both_sides_of_what_is_stored(
    given: Step, context: PassContext
) -> None:
    with seeded(0):
        model = TorchModel(Filtered(), DIGITS)
    each: AnyPass = make_pass(given)
    each.requires(model, context)
    after = each.run(model, context)
    facts = each.ensures(model, after, context)
    artifact = export(after)
    assert parameters(artifact) > 2 * parameters_of(model.module)
    each.holds(facts, artifact)
    with pytest.raises(BrokenPromiseError, match=f"nearer to the .* before {each.name}"):
        each.holds(facts, export(model))
