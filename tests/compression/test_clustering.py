from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn
from torch.nn.utils import parametrize

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.clustering import Cluster, ClusterSettings, SharedValues, k_means, shared_values
from compression.export import export
from compression.inspection import nonzero_parameters
from compression.model import OnnxModel, TorchModel
from compression.quantization import DynamicInt8, DynamicInt8Settings, StaticInt8, StaticInt8Settings
from compression.rewriting import baked
from compression.signature import Signature, TensorSpec
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS, accuracy


def clustering(**settings: object) -> Cluster:
    return Cluster(ClusterSettings.model_validate({"epochs": 0, **settings}))


class Mask(nn.Module):
    """Zeros that an earlier pruning made."""

    def __init__(self, kept: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", kept)

    def forward(self, weight: torch.Tensor) -> torch.Tensor:
        return weight * self.kept  # type: ignore[operator]


def masked(model: TorchModel, share: float) -> TorchModel:
    """The model with the smallest weights of each layer masked."""
    module = copy.deepcopy(model.module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear):
            size = layer.weight.detach().abs()
            parametrize.register_parametrization(layer, "weight", Mask(size > size.quantile(share)))
    return TorchModel(module, model.signature)


@given(st.lists(st.floats(-10, 10, width=32), min_size=1, max_size=200), st.integers(1, 20))
def test_each_weight_is_nearest_to_the_mean_of_its_own_cluster(weights: list[float], clusters: int) -> None:
    array = np.array(weights)
    codes = k_means(array, clusters)
    assert sorted(set(codes.tolist())) == list(range(codes.max() + 1))
    assert codes.max() < clusters
    means = np.array([array[codes == code].mean() for code in range(codes.max() + 1)])
    distances = np.abs(array[:, None] - means)
    assert np.allclose(distances[np.arange(len(array)), codes], distances.min(axis=1), atol=1e-9)


def test_layers_share_values_and_fine_tuning_brings_the_answers_back(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    rough, tuned = clustering(clusters=4), clustering(clusters=4, epochs=4)
    tuned.requires(reference, context)
    before = reference.weights_digest()
    shared = tuned.run(reference, context)
    assert reference.weights_digest() == before
    facts = tuned.ensures(reference, shared, context)
    assert [layer["values"] for layer in facts["layers"].values()] == [4] * 5
    exported = export(shared)
    tuned.holds(facts, exported)
    untuned = export(rough.run(reference, context))
    validation = context.splits.validation
    assert accuracy(exported, validation) > max(accuracy(untuned, validation), 0.9)
    assert accuracy(exported, context.splits.test) > accuracy(artifact, context.splits.test) - 0.04


def test_export_keeps_values_shared_and_answers(reference: TorchModel, context: PassContext) -> None:
    """Folded batch normalization would give every channel values of its own."""
    shared = clustering(clusters=8).run(reference, context)
    exported = export(shared)
    weights = {tensor.name: list(tensor.dims) for tensor in exported.proto.graph.initializer}
    assert weights["1.weight"] == [16, 1, 3, 3]
    assert not {"BatchNormalization"} & {node.op_type for node in exported.proto.graph.node}
    rows = context.splits.validation.take(slice(0, 64))
    plain = TorchModel(baked(clustering(clusters=8).run(reference, context).module), DIGITS)
    assert np.array_equal(predict(plain, rows)[0], predict(shared, rows)[0])


def test_zeros_of_a_mask_stay_zero(reference: TorchModel, context: PassContext) -> None:
    sparse = masked(reference, 0.8)
    zeros = nonzero_parameters(export(sparse))
    cluster = clustering(clusters=16, epochs=2)
    shared = cluster.run(sparse, context)
    facts = cluster.ensures(sparse, shared, context)
    assert max(layer["values"] for layer in facts["layers"].values()) <= 16
    exported = export(shared)
    cluster.holds(facts, exported)
    assert nonzero_parameters(exported) <= zeros + 6 * 16 * 2  # batch normalization's scales stand apart


def test_values_stay_shared_when_int8_follows(reference: TorchModel, context: PassContext) -> None:
    cluster = clustering(clusters=12)
    shared = cluster.run(reference, context)
    facts = cluster.ensures(reference, shared, context)
    exported = export(shared)
    cluster.holds(facts, StaticInt8(StaticInt8Settings(rows=64)).run(exported, context))
    cluster.holds(facts, DynamicInt8(DynamicInt8Settings()).run(exported, context))


def test_a_later_training_keeps_them_shared(reference: TorchModel, context: PassContext) -> None:
    cluster = clustering(clusters=12)
    shared = cluster.run(reference, context)
    facts = cluster.ensures(reference, shared, context)
    trained = context.fit(shared, epochs=1)
    assert trained.weights_digest() != shared.weights_digest()
    cluster.holds(facts, export(trained))


def test_a_later_step_that_parts_them_is_found_out(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    cluster = clustering()
    facts = cluster.ensures(reference, cluster.run(reference, context), context)
    with pytest.raises(BrokenPromiseError, match="put cluster behind it"):
        cluster.holds(facts, artifact)


def test_a_step_of_descent_is_the_projected_step_of_the_single_weights() -> None:
    codes = torch.tensor([[0, 1, 1], [2, 2, 2]])
    layer = nn.Linear(3, 2, bias=False)
    parametrize.register_parametrization(layer, "weight", SharedValues(codes, has_zero=True))
    before = layer.weight.detach().clone()
    gradient = torch.tensor([[5.0, 1.0, 3.0], [1.0, 2.0, 6.0]])
    torch.autograd.backward((layer.weight * gradient).sum())
    torch.optim.SGD(layer.parameters(), lr=0.1).step()
    assert torch.allclose(before - layer.weight, 0.1 * torch.tensor([[0, 2.0, 2.0], [3.0, 3.0, 3.0]]))
    assert before[0, 0] == layer.weight[0, 0] == 0


def test_layers_have_numbers_of_their_own(reference: TorchModel, context: PassContext) -> None:
    cluster = clustering(clusters=32, linear_clusters=8, layers={"1": 4}, ignore=["15"])
    facts = cluster.ensures(reference, cluster.run(reference, context), context)
    values = {name: layer["values"] for name, layer in facts["layers"].items()}
    assert values.keys() == {"1", "4", "8", "13"}
    assert (values["1"], values["13"]) == (4, 8)
    assert 8 < values["4"] <= 32
    with pytest.raises(PassRefusedError, match="there is no module nonsense"):
        clustering(layers={"nonsense": 4}).requires(reference, context)


def test_values_are_counted_by_channel_where_these_have_a_scale_each() -> None:
    codes = np.random.default_rng(0).integers(0, 4, (8, 100)).astype(np.float32)
    scales = np.linspace(1, 2, 8, dtype=np.float32)
    assert shared_values(codes, 8) == 4
    assert shared_values(codes * scales[:, None], 8) == 4
    assert shared_values(codes.T * scales, 8) == 4


def test_values_are_not_counted_along_another_axis_than_the_output_channels() -> None:
    many = np.arange(800.0).reshape(8, 100)
    assert shared_values(many, 8) == shared_values(many.T, 8) == 100


def test_nothing_to_share_is_refused(context: PassContext) -> None:
    with pytest.raises(PassRefusedError, match="no convolution or linear layer"):
        clustering().requires(TorchModel(nn.Flatten(), DIGITS), context)


def test_where_all_weights_are_tied_there_is_nothing_to_share(context: PassContext) -> None:
    with seeded(0):
        first, second = nn.Linear(64, 64), nn.Linear(64, 64)
    second.weight = first.weight
    signature = Signature(DIGITS.inputs, (TensorSpec("y", "float32", ("batch", 64)),))
    tied = TorchModel(nn.Sequential(first, second), signature)
    with pytest.raises(PassRefusedError, match="more different weights of its own"):
        clustering().requires(tied, context)


def test_fine_tuning_without_labels_is_refused(reference: TorchModel, context: PassContext) -> None:
    bare = replace(context.splits, train=replace(context.splits.train, labels=None))
    with pytest.raises(PassRefusedError, match="needs labels"):
        clustering(epochs=2).requires(reference, replace(context, splits=bare))
