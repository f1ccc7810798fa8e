from __future__ import annotations

import pytest
from torch import nn

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.export import export
from compression.inference import infer
from compression.inspection import heavy_operators, nonzero_parameters, parameters, weights_by_dtype
from compression.int4 import Int4Settings, Int4Weights
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.pipeline import compress
from compression.recipe import Recipe, step
from compression.sparsity import SemiStructuredPruning, SemiStructuredSettings
from compression.training import Training, fit, seeded
from tests.compression.small_digits import DIGITS, accuracy, silent


def int4(**settings: object) -> Int4Weights:
    return Int4Weights(Int4Settings.model_validate(settings))


@pytest.fixture(scope="module")
def wide(context: PassContext) -> OnnxModel:
    with seeded(0):
        layers = nn.Sequential(
            nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10)
        )
    untrained, splits = TorchModel(layers, DIGITS), context.splits
    fitted = fit(untrained, splits.train, splits.validation, Training(epochs=4), seed=0, report=silent)
    return export(fitted.model)


@pytest.mark.parametrize("settings", [{}, {"symmetric": False, "block_size": 16}, {"accuracy_level": 4}])
def test_products_run_on_four_bits_and_answer_well(
    settings: dict[str, object], wide: OnnxModel, context: PassContext
) -> None:
    each = int4(**settings)
    each.requires(wide, context)
    after = each.run(wide, context)
    facts = each.ensures(wide, after, context)
    each.holds(facts, after)
    assert facts["products"] == 3
    assert after.proto.ByteSize() < 0.3 * wide.proto.ByteSize()
    assert accuracy(after, context.splits.test) >= accuracy(wide, context.splits.test) - 0.03
    for rows in (1, 9):
        assert infer(after, context.splits.test, rows)[0].shape == (rows, 10)
    assert parameters(after) == parameters(wide)
    assert nonzero_parameters(after) <= parameters(wide)
    assert flops(after) == flops(wide)
    assert weights_by_dtype(after) == {"int4": 64 * 128 + 128 * 64 + 64 * 10, "float32": 128 + 64 + 10}
    assert heavy_operators(after) == {"MatMulNBits": 3}


def test_excluded_nodes_stay_float(wide: OnnxModel, context: PassContext) -> None:
    last = [node.name for node in wide.proto.graph.node if node.op_type == "Gemm"][-1]
    each = int4(exclude_nodes=(last,))
    after = each.run(wide, context)
    assert each.ensures(wide, after, context)["products"] == 2
    with pytest.raises(PassRefusedError, match="no node nonsense"):
        int4(exclude_nodes=("nonsense",)).requires(wide, context)


def test_a_model_without_products_is_refused(context: PassContext) -> None:
    with seeded(0):
        layers = nn.Sequential(nn.Unflatten(1, (1, 8, 8)), nn.Conv2d(1, 10, 8), nn.Flatten())
    with pytest.raises(PassRefusedError, match="no MatMul or Gemm"):
        int4().requires(export(TorchModel(layers, DIGITS)), context)


def test_doing_nothing_breaks_the_promise(wide: OnnxModel, context: PassContext) -> None:
    with pytest.raises(BrokenPromiseError, match="0 of 3"):
        int4().ensures(wide, wide, context)
    with pytest.raises(BrokenPromiseError, match="0 of 3"):
        int4().holds({"products": 3}, wide)


@pytest.mark.parametrize("symmetric", [True, False])
def test_the_pattern_of_pruning_survives_four_bits(symmetric: bool, context: PassContext) -> None:
    with seeded(0):
        layers = nn.Sequential(nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 10))
    recipe = Recipe(
        name="both", steps=(step("prune-nm", epochs=0), step("int4-weights", symmetric=symmetric))
    )
    compressed = compress(recipe, TorchModel(layers, DIGITS), context)
    assert compressed.facts[0]["facts"]["patterned"] == ["0", "2"]
    sparse = SemiStructuredPruning(SemiStructuredSettings())
    sparse.holds(compressed.facts[0]["facts"], compressed.artifact)
    dense = compress(Recipe(name="dense", steps=recipe.steps[1:]), TorchModel(layers, DIGITS), context)
    with pytest.raises(BrokenPromiseError, match="0 layers of the artifact have 2 of 4 weights"):
        sparse.holds(compressed.facts[0]["facts"], dense.artifact)
