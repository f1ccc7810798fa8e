from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.export import export
from compression.inspection import nonzero_parameters, parameters
from compression.layer_weights import layer_weights
from compression.model import OnnxModel, TorchModel
from compression.pipeline import RecipeError, compress
from compression.pruning import StructuredPruning, StructuredPruningSettings
from compression.recipe import Recipe, Step, step
from compression.sparsity import (
    SemiStructuredPruning,
    SemiStructuredSettings,
    UnstructuredPruning,
    UnstructuredPruningSettings,
)
from compression.training import seeded
from tests.compression.small_digits import DIGITS, accuracy


def unstructured(**settings: object) -> UnstructuredPruning:
    return UnstructuredPruning(UnstructuredPruningSettings.model_validate({"epochs": 0, **settings}))


def semi_structured(**settings: object) -> SemiStructuredPruning:
    return SemiStructuredPruning(SemiStructuredSettings.model_validate({"epochs": 0, **settings}))


def zeros(model: OnnxModel) -> int:
    return parameters(model) - nonzero_parameters(model)


def test_the_smallest_weights_of_all_layers_are_zero_and_stay_so_while_others_learn(
    reference: TorchModel, context: PassContext
) -> None:
    prune = unstructured(ratio=0.8, rounds=2, epochs=2)
    prune.requires(reference, context)
    before = reference.weights_digest()
    sparse = prune.run(reference, context)
    facts = prune.ensures(reference, sparse, context)
    assert reference.weights_digest() == before
    assert facts["sparsity"] == pytest.approx(0.8, abs=1e-3)
    assert len({round(share, 2) for share in facts["layers"].values()}) > 1
    exported = export(sparse)
    prune.holds(facts, exported)
    assert zeros(exported) >= facts["zeros"]
    assert accuracy(exported, context.splits.test) > 0.9


def test_a_layer_of_few_weights_has_the_nearest_whole_number_of_zeros(context: PassContext) -> None:
    with seeded(0):
        few = TorchModel(nn.Sequential(nn.Linear(64, 3), nn.ReLU(), nn.Linear(3, 10)).eval(), DIGITS)
    prune = unstructured(ratio=0.7)
    assert prune.ensures(few, prune.run(few, context), context)["zeros"] == 134 + 21


def test_locally_every_layer_loses_the_same_share(reference: TorchModel, context: PassContext) -> None:
    prune = unstructured(ratio=0.5, global_pruning=False, ignore=["14"])
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert "14" not in facts["layers"]
    assert all(share == pytest.approx(0.5, abs=0.01) for share in facts["layers"].values())


def test_biases_and_normalizations_are_left_alone(reference: TorchModel, context: PassContext) -> None:
    sparse = unstructured(ratio=0.9).run(reference, context).module.state_dict()
    for name, value in reference.module.state_dict().items():
        if value.ndim == 1:
            assert torch.equal(sparse[name], value)


def test_the_last_round_above_the_floor_is_kept(reference: TorchModel, context: PassContext) -> None:
    prune = unstructured(ratio=0.99, rounds=4, floor=0.9)
    facts = prune.ensures(reference, prune.run(reference, context), context)
    assert facts["stopped_by_floor"]
    assert 0.5 < facts["sparsity"] < 0.99


@pytest.mark.parametrize("m", [4, 8])
def test_two_of_m_weights_live_in_the_exported_graph(
    m: int, reference: TorchModel, context: PassContext
) -> None:
    prune = semi_structured(n=2, m=m, epochs=2)
    prune.requires(reference, context)
    sparse = prune.run(reference, context)
    facts = prune.ensures(reference, sparse, context)
    assert facts["patterned"] == ["4", "8", "13", "15"]
    assert facts["left_alone"] == ["1"]  # one input channel
    exported = export(sparse)
    prune.holds(facts, exported)
    patterned = 0
    for weight in layer_weights(exported):
        values = np.moveaxis(weight.values, weight.input_axis, -1)
        if values.shape[-1] % m == 0:
            assert (np.count_nonzero(values.reshape(-1, m), axis=1) == 2).all()
            patterned += 1
    assert patterned == 4
    assert accuracy(exported, context.splits.test) > 0.85


@pytest.mark.parametrize(
    "later",
    [
        step("fp16"),
        step("int8-static"),
        step("int8-dynamic"),
        step("int8-qat", epochs=1),
        step("cluster", epochs=0),
    ],
    ids=lambda later: later.pass_name,
)
def test_zeros_of_two_masks_survive_other_number_formats(
    later: Step, reference: TorchModel, context: PassContext
) -> None:
    masks = (step("prune-nm", epochs=0), step("prune-unstructured", ratio=0.7, epochs=0))
    made = compress(Recipe(name="sparse", steps=(*masks, later)), reference, context)
    semi_structured().holds(made.facts[0]["facts"], made.artifact)
    assert made.facts[1]["facts"]["sparsity"] == pytest.approx(0.7, abs=1e-3)
    assert zeros(made.artifact) >= made.facts[1]["facts"]["zeros"] > made.facts[0]["facts"]["zeros"]


def test_a_later_step_that_fills_the_zeros_is_found_out(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    for prune in (unstructured(), semi_structured()):
        facts = prune.ensures(reference, prune.run(reference, context), context)
        with pytest.raises(BrokenPromiseError, match="filled them"):
            prune.holds(facts, artifact)
    steps = (step("prune-unstructured", epochs=0), step("distill", student="small", epochs=1))
    with pytest.raises(RecipeError, match="distill cannot come after prune-unstructured: small begins anew"):
        compress(Recipe(name="lost", steps=steps), reference, context)


def test_channels_are_not_cut_under_a_mask(reference: TorchModel, context: PassContext) -> None:
    steps = (step("prune-unstructured", epochs=0), step("prune-structured", epochs=0))
    with pytest.raises(RecipeError, match="prune-unstructured holds weights in their shape"):
        compress(Recipe(name="wrong", steps=steps), reference, context)
    narrow = StructuredPruning(StructuredPruningSettings(epochs=0)).run(reference, context)
    facts = unstructured().ensures(narrow, unstructured().run(narrow, context), context)
    assert facts["sparsity"] == pytest.approx(0.8, abs=1e-3)


def test_what_cannot_work_is_refused(reference: TorchModel, context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="no convolution or linear layer"):
        unstructured().requires(TorchModel(nn.ReLU(), DIGITS), context)
    with pytest.raises(PassRefusedError, match="there is no module nonsense"):
        unstructured(ignore=["nonsense"]).requires(reference, context)
    with pytest.raises(PassRefusedError, match="multiples of 7"):
        semi_structured(n=3, m=7).requires(reference, context)
    with pytest.raises(ValueError, match="n must be less than m"):
        semi_structured(n=4, m=4)
    bare = replace(context.splits, train=replace(context.splits.train, labels=None))
    with pytest.raises(PassRefusedError, match="needs labels"):
        semi_structured(epochs=1).requires(reference, replace(context, splits=bare))


def test_a_model_that_is_as_sparse_already_breaks_the_promise(
    reference: TorchModel, context: PassContext
) -> None:
    prune = unstructured(ratio=0.5)
    sparse = prune.run(reference, context)
    with pytest.raises(BrokenPromiseError, match="no weight became zero"):
        prune.ensures(sparse, prune.run(sparse, context), context)
