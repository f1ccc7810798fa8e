from __future__ import annotations

import copy
from dataclasses import replace

import numpy as np
import onnx
import pytest
import torch
from onnx import numpy_helper
from torch import Tensor, fx, nn
from torch.nn.utils import parametrize

from compression.base import BrokenPromiseError, PassContext, PassRefusedError
from compression.data import Split, Splits
from compression.fake_quantization import QUICKER
from compression.inference import infer
from compression.inspection import parameters, quantized_operators
from compression.model import OnnxModel, TorchModel
from compression.operations import flops
from compression.pipeline import compress
from compression.qat import QuantizationAwareTraining
from compression.qat_graph import converted
from compression.recipe import Recipe, step
from compression.signature import Array, Signature, TensorSpec
from compression.training import Training, seeded
from tests.compression.small_digits import DIGITS, accuracy, silent


def qat(**settings: object) -> QuantizationAwareTraining:
    given = QuantizationAwareTraining.settings_class.model_validate({"epochs": 1, **settings})
    return QuantizationAwareTraining(given)  # type: ignore[arg-type]


def ran(each: QuantizationAwareTraining, model: TorchModel, context: PassContext) -> OnnxModel:
    each.requires(model, context)
    after = each.run(model, context)
    each.holds(each.ensures(model, after, context), after)
    return after


@pytest.mark.parametrize(
    "settings",
    [{}, {"learned_step": True}, {"clipping": "pact", "teacher": 0.5}],
    ids=["extremes", "learned step", "pact with a teacher"],
)
def test_integers_answer_as_well_as_floats(
    settings: dict[str, object], reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    before = reference.weights_digest()
    after = ran(qat(**settings), reference, context)
    assert reference.weights_digest() == before
    assert quantized_operators(after) == {"Conv": 3, "Gemm": 2}
    assert layout(after) == ({onnx.TensorProto.UINT8}, [10, 16, 32, 32, 64])
    assert after.proto.graph.node[-1].op_type == "Gemm", "the answers are not rounded"
    assert parameters(after) == pytest.approx(parameters(artifact), rel=0.01)
    assert flops(after) == flops(artifact)
    assert after.proto.ByteSize() < 0.45 * artifact.proto.ByteSize()
    assert accuracy(after, context.splits.test) >= accuracy(artifact, context.splits.test) - 0.02
    for rows in (1, 9):
        assert infer(after, context.splits.test, rows)[0].shape == (rows, 10)


@pytest.mark.parametrize("settings", [{"learned_step": True}, {"clipping": "pact"}], ids=str)
def test_steps_and_limits_are_learned(
    settings: dict[str, object], reference: TorchModel, context: PassContext, monkeypatch: pytest.MonkeyPatch
) -> None:
    learned: list[Tensor] = []

    def seen(module: fx.GraphModule) -> fx.GraphModule:
        learned.extend(p for name, p in module.named_parameters() if name.endswith(("factor", "stretch")))
        return converted(module)

    monkeypatch.setattr("compression.qat.converted", seen)
    qat(**settings, epochs=2).run(reference, context)
    assert max(float(QUICKER * (each.detach() - 1.0).abs().max()) for each in learned) > 0.005


@pytest.mark.parametrize("name", ["int8-qat", "pow2-weights"])
def test_a_module_that_flattens_features_learns_with_autocast(
    name: str, reference: TorchModel, context: PassContext
) -> None:
    """Where the processor has bfloat16, activations lie channels last."""
    casting = replace(context, training=replace(context.training, autocast=True))
    made = compress(Recipe(name="tried", steps=(step(name, epochs=1),)), reference, casting)
    assert accuracy(made.artifact, context.splits.test) > 0.9


def test_weights_of_seven_bits_leave_room_for_sums_of_sixteen(
    reference: TorchModel, context: PassContext
) -> None:
    after = ran(qat(reduce_range=True), reference, context)
    assert max(int(np.abs(codes.astype(int)).max()) for codes in integers(after)) == 63
    assert accuracy(after, context.splits.test) > 0.9


def test_zeros_that_nothing_holds_may_learn(reference: TorchModel, context: PassContext) -> None:
    module = copy.deepcopy(reference.module)
    with torch.no_grad():
        next(part for part in module if isinstance(part, nn.Conv2d)).weight[:4] = 0.0
    ran(qat(), TorchModel(module, DIGITS), context)


def test_masked_weights_stay_zero(reference: TorchModel, context: PassContext) -> None:
    sparse = masked(reference)
    after = ran(qat(learned_step=True), sparse, context)
    shares = [(codes == 0).mean() for codes in integers(after) if codes.size > 1000]
    assert len(shares) == 3
    assert min(shares) >= 0.5


def test_it_follows_pruning_and_distillation(reference: TorchModel, context: PassContext) -> None:
    recipe = Recipe(
        name="whole",
        steps=(
            step("prune-structured", ratio=0.4, epochs=1),
            step("distill", student="current", epochs=2),
            step("int8-qat", epochs=1, teacher=0.7),
        ),
    )
    assert accuracy(compress(recipe, reference, context).artifact, context.splits.test) > 0.85


def test_residual_blocks_and_attention_compute_on_integers() -> None:
    with seeded(0):
        model = TorchModel(Mixed(), MIXED)
    splits = Splits(*(bright(rows, seed) for seed, rows in enumerate((200, 64, 64, 64))))
    context = PassContext(splits, model, {}, Training(epochs=2), 0, silent)
    after = ran(qat(learning_rate=1e-3), model, context)
    assert quantized_operators(after) == {"Conv": 2, "MatMul": 2, "Gemm": 2}
    residual = next(node for node in after.proto.graph.node if node.op_type == "Add")
    makers = {name: node for node in after.proto.graph.node for name in node.output}
    assert [makers[name].op_type for name in residual.input] == ["DequantizeLinear"] * 2
    readers = [node.op_type for node in after.proto.graph.node if residual.output[0] in node.input]
    assert readers == ["QuantizeLinear"]


def test_it_needs_labels_or_a_teacher(reference: TorchModel, context: PassContext) -> None:
    bare = {name: Split(split.inputs) for name, split in context.splits.items()}
    unlabelled = replace(context, splits=Splits(**bare))
    with pytest.raises(PassRefusedError, match="no labels"):
        qat().requires(reference, unlabelled)
    qat(teacher=1.0).requires(reference, unlabelled)
    with pytest.raises(PassRefusedError, match="no reference"):
        qat(teacher=1.0).requires(reference, replace(context, reference=None))


def test_a_module_without_layers_is_refused(context: PassContext) -> None:
    same = Signature(DIGITS.inputs, (TensorSpec("same", "float32", ("batch", 64)),))
    with pytest.raises(PassRefusedError, match="no convolution"):
        qat().requires(TorchModel(nn.Sequential(nn.LayerNorm(64)), same), context)


def test_doing_nothing_breaks_the_promise(
    reference: TorchModel, artifact: OnnxModel, context: PassContext
) -> None:
    with pytest.raises(BrokenPromiseError, match="0 of 5 layers"):
        qat().ensures(reference, artifact, context)
    with pytest.raises(BrokenPromiseError, match="still quantized"):
        qat().holds({"quantized_operators": {"Conv": 3}}, artifact)


class Mask(nn.Module):
    kept: Tensor

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.register_buffer("kept", weight.abs() > weight.abs().median())

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.kept


def masked(model: TorchModel) -> TorchModel:
    module = copy.deepcopy(model.module)
    for layer in module.modules():
        if isinstance(layer, nn.Conv2d | nn.Linear) and layer.weight.numel() > 1000:
            parametrize.register_parametrization(layer, "weight", Mask(layer.weight.detach()))
    return TorchModel(module, model.signature)


def layout(model: OnnxModel) -> tuple[set[int], list[int]]:
    """Types of activations, and how many scales each weight has."""
    stored = {tensor.name: tensor for tensor in model.proto.graph.initializer}
    zeros = {
        stored[node.input[2]].data_type for node in model.proto.graph.node if node.op_type == "QuantizeLinear"
    }
    scales = [
        numpy_helper.to_array(stored[node.input[1]]).size
        for node in model.proto.graph.node
        if node.op_type == "DequantizeLinear" and node.input[0] in stored
        if stored[node.input[0]].data_type == onnx.TensorProto.INT8
    ]
    return zeros, sorted(scales)


def integers(model: OnnxModel) -> list[Array]:
    return [
        numpy_helper.to_array(tensor)
        for tensor in model.proto.graph.initializer
        if tensor.data_type == onnx.TensorProto.INT8
    ]


MIXED = Signature(
    (TensorSpec("image", "uint8", ("batch", 8, 8, 3)),), (TensorSpec("logits", "float32", ("batch", 10)),)
)


class Mixed(nn.Module):
    """Pixels through a residual block of convolutions, then attention."""

    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Conv2d(3, 16, 3, padding=1, bias=False)
        self.first_norm = nn.BatchNorm2d(16)
        self.second = nn.Conv2d(16, 16, 3, padding=1, bias=False)
        self.second_norm = nn.BatchNorm2d(16)
        self.relu = nn.ReLU(inplace=True)
        self.enter = nn.Linear(16, 64)
        self.attention = nn.MultiheadAttention(64, 4, batch_first=True)
        self.norm = nn.LayerNorm(64)
        self.leave = nn.Linear(64, 10)

    def forward(self, image: Tensor) -> Tensor:
        features = self.relu(self.first_norm(self.first((image.permute(0, 3, 1, 2).float() - 120) / 64)))
        features = features + self.relu(self.second_norm(self.second(features)))
        tokens = self.enter(nn.functional.max_pool2d(features, 2).flatten(2).transpose(1, 2))
        tokens = self.norm(tokens + self.attention(tokens, tokens, tokens, need_weights=False)[0])
        return self.leave(tokens.mean(1))  # type: ignore[no-any-return]


def bright(rows: int, seed: int) -> Split:
    """Noise with a bright spot at one of ten places."""
    random = np.random.default_rng(seed)
    labels = random.integers(0, 10, rows)
    images = random.integers(0, 120, (rows, 8, 8, 3))
    images[np.arange(rows), labels % 8, :, labels // 8] += 130
    return Split({"image": images.astype(np.uint8)}, labels)


class Positions(nn.Module):
    """Tokens with a learned place in a table, which holds texts of up to 32."""

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.places = nn.Embedding(16, 32), nn.Parameter(torch.randn(32, 32) / 4)
        self.encode = nn.TransformerEncoderLayer(32, 2, 64, dropout=0.0, batch_first=True)
        self.last = nn.Linear(32, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        states = self.encode(self.embed(tokens) + self.places[: tokens.shape[1]])
        return self.last(states.mean(1))  # type: ignore[no-any-return]


def test_a_table_of_positions_bounds_a_free_axis_and_fixes_it_not(context: PassContext) -> None:
    signature = Signature(
        (TensorSpec("tokens", "int64", ("batch", "sequence")),),
        (TensorSpec("logits", "float32", ("batch", 3)),),
    )
    tokens = np.random.default_rng(0).integers(0, 16, (400, 9))
    parts = {"train": slice(0, 200), "calibration": slice(200, 260), "validation": slice(260, 330)}
    splits = Splits(
        **{
            name: Split({"tokens": tokens[rows]}, (tokens[rows] == 3).sum(1).clip(0, 2))
            for name, rows in (parts | {"test": slice(330, 400)}).items()
        }
    )
    with seeded(0):
        model = TorchModel(Positions().eval(), signature)
    task = replace(context, splits=splits, reference=model, training=Training(epochs=2), checkpoints=None)
    after = ran(qat(), model, task)
    assert quantized_operators(after)
    for rows, length in ((1, 1), (3, 32), (5, 4)):
        given = Split({"tokens": np.random.default_rng(1).integers(0, 16, (rows, length))})
        assert infer(after, given, rows)[0].shape == (rows, 3)
