from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.datasets import load_digits

from compression.base import PassContext
from compression.data import Split, Splits
from compression.export import export
from compression.model import OnnxModel, TorchModel
from compression.signature import Array
from compression.training import Training, fit, seeded
from tests.compression.small_digits import DIGITS, digits_net, silent, small_net
from tests.compression.small_images import trained


@pytest.fixture(scope="session")
def splits() -> Splits:
    torch.set_num_threads(1)  # two cores run two of these at once
    images, labels = load_digits(return_X_y=True)
    order = np.random.default_rng(0).permutation(len(images))
    images, labels = (images / 16).astype(np.float32)[order], labels[order]
    cuts = [0, 1000, 1200, 1500, len(images)]
    parts = [Split({"image": images[a:b]}, labels[a:b]) for a, b in pairwise(cuts)]
    return Splits(*parts)


@pytest.fixture(scope="session")
def reference(splits: Splits) -> TorchModel:
    with seeded(0):
        untrained = TorchModel(digits_net(), DIGITS)
    return fit(untrained, splits.train, splits.validation, Training(epochs=5), seed=0, report=silent).model


@pytest.fixture(scope="session")
def artifact(reference: TorchModel) -> OnnxModel:
    return export(reference)


@pytest.fixture(scope="session")
def context(splits: Splits, reference: TorchModel) -> PassContext:
    def quality(outputs: Sequence[Array], against: Sequence[Array], labels: Array | None) -> float:
        ours, theirs = (each[0].argmax(-1) for each in (outputs, against))
        truth = theirs if labels is None else labels
        return float((ours == truth).mean() / (theirs == truth).mean())

    return PassContext(
        splits, reference, {"small": small_net}, Training(epochs=4), 0, silent, quality=quality
    )


@pytest.fixture(scope="session")
def residual(context: PassContext) -> tuple[TorchModel, PassContext]:
    return trained(context)
