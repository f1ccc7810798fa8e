from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compression.base import PassContext, PassRefusedError
from compression.data import Split
from compression.export import export
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.ratio_search import RatioSearch, RatioSearchSettings, cross_validated, recalibrated
from compression.training import PREDICT_BATCH, predict
from tests.compression.small_digits import DIGITS, accuracy


def search(**settings: object) -> RatioSearch:
    small = {"epochs": 0, "trials": 12, "rows": 200, "folds": 2, "round_to": 4}
    return RatioSearch(RatioSearchSettings.model_validate({**small, **settings}))


@pytest.mark.parametrize("method", ["greedy", "evolutionary"])
def test_layers_get_widths_of_their_own_within_the_budget(
    method: str, reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    prune = search(method=method, epochs=3, target_macs=0.4)
    prune.requires(reference, context)
    before = reference.weights_digest()
    narrow = prune.run(reference, context)
    facts = prune.ensures(reference, narrow, context)
    assert reference.weights_digest() == before
    assert facts["search"]["loss"] <= facts["search"]["uniform_loss"]
    assert facts["search"]["judged"] > 4
    exported = export(narrow)
    prune.holds(facts, exported)
    assert flops(exported) <= 0.4 * flops(artifact)
    assert accuracy(exported, context.splits.test) > 0.85


def test_a_layer_that_does_not_matter_gives_most(reference: TorchModel, context: PassContext) -> None:
    module = copy.deepcopy(reference.module)
    with torch.no_grad():
        module[8].weight[:, 4:] = 0.0  # the third convolution reads four channels of the second
    prune = search(method="greedy", target_macs=0.5, trials=24)
    useless = TorchModel(module, DIGITS)
    facts = prune.ensures(useless, prune.run(useless, context), context)
    left = {name: after / before for name, (before, after) in facts["widths"].items()}
    assert min(left, key=lambda name: left[name]) == "4"


def test_the_same_seed_finds_the_same_widths(reference: TorchModel, context: PassContext) -> None:
    first, second = (search().run(reference, context).weights_digest() for _ in range(2))
    assert first == second


def test_the_best_of_many_is_judged_by_rows_that_did_not_choose_it() -> None:
    assert cross_validated([[0.0, 1.0], [1.0, 0.0]]) == 1.0
    assert cross_validated([[0.1, 0.1], [1.0, 1.0]]) == pytest.approx(0.1)


def test_normalizations_are_measured_anew_on_the_rows(reference: TorchModel, context: PassContext) -> None:
    shifted = copy.deepcopy(reference.module)
    with torch.no_grad():
        for part in shifted:
            if isinstance(part, nn.BatchNorm2d):
                part.running_mean += 3.0
    labels = context.splits.validation.labels
    mended = recalibrated(TorchModel(shifted, DIGITS), context.splits.calibration)
    quality = [
        np.mean(predict(model, context.splits.validation)[0].argmax(1) == labels)
        for model in (TorchModel(shifted, DIGITS), mended, reference)
    ]
    assert quality[0] < 0.5
    assert quality[1] == pytest.approx(quality[2], abs=0.03)


def test_every_row_weighs_the_same_in_normalizations_measured_anew(reference: TorchModel) -> None:
    plain = np.random.default_rng(0).normal(size=(PREDICT_BATCH, 64)).astype(np.float32)
    rows = np.concatenate([plain, 100 + plain[:2]])  # a batch of its own, if batches were full
    mended = recalibrated(reference, Split({"image": rows})).module
    exact = copy.deepcopy(reference.module)
    first = next(part for part in mended if isinstance(part, nn.BatchNorm2d))
    features = exact[:2](torch.from_numpy(rows))  # type: ignore[index]
    assert torch.allclose(first.running_mean, features.mean((0, 2, 3)), rtol=0.02, atol=0.02)


def test_what_cannot_work_is_refused(reference: TorchModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="Raise target_macs"):
        search(target_macs=0.001).run(reference, context)
    bare = replace(context.splits, validation=replace(context.splits.validation, labels=None))
    with pytest.raises(PassRefusedError, match="without labels"):
        search().requires(reference, replace(context, splits=bare))
    with pytest.raises(PassRefusedError, match="all its channels are outputs"):
        search().requires(TorchModel(nn.Linear(64, 10), DIGITS), context)
