"""An artifact that computes something else than its module is found out, however small the numbers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from compression.data import Split
from compression.export import export
from compression.model import TorchModel
from compression.signature import Signature, TensorSpec
from compression.storage import save
from variants.host import this_host
from variants.parity import ParityError, verify
from variants.runtime import reference_runtime

SIGNATURE = Signature(
    (TensorSpec("x", "float32", ("batch", 4)),),
    (TensorSpec("small", "float32", ("batch", 4)), TensorSpec("large", "float32", ("batch", 4))),
)
ROWS = Split({"x": np.random.default_rng(0).normal(size=(16, 4)).astype(np.float32)})


class Scaled(nn.Module):
    def __init__(self, small: float, large: float) -> None:
        super().__init__()
        self.scales = nn.Parameter(torch.tensor([small, large]))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        return x * self.scales[0], x * self.scales[1]


@pytest.mark.parametrize(("small", "is_same"), [(1e-4, True), (-2e-4, False), (1.1e-4, False)])
def test_each_output_is_held_against_its_own_size(tmp_path: Path, small: float, is_same: bool) -> None:
    path = save(export(TorchModel(Scaled(small, 1e3), SIGNATURE)), tmp_path / "model.onnx")
    module = TorchModel(Scaled(1e-4, 1e3), SIGNATURE)
    if is_same:
        assert verify(path, reference_runtime(this_host()), SIGNATURE, ROWS, module)["export_error"] < 1e-3
        return
    with pytest.raises(ParityError, match=r"graph's \"small\" differs from the module's by"):
        verify(path, reference_runtime(this_host()), SIGNATURE, ROWS, module)
