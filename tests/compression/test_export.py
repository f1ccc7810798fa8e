from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn

from compression.data import Split, Splits
from compression.export import ExportError, export
from compression.inference import infer
from compression.inspection import parameters
from compression.model import OnnxModel, TorchModel
from compression.operations import UnknownShapeError, flops
from compression.signature import Signature, TensorSpec
from compression.training import predict, seeded
from tests.compression.small_digits import DIGITS


class Listener(nn.Module):
    """Samples of any length, but no shorter than its kernel."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.last = nn.Conv1d(1, 8, 80, stride=4), nn.Linear(8, 3)

    def forward(self, sound: torch.Tensor) -> torch.Tensor:
        return self.last(torch.relu(self.conv(sound)).mean(2))  # type: ignore[no-any-return]


def test_what_takes_no_short_input_is_exported_for_any_it_takes() -> None:
    signature = Signature(
        (TensorSpec("sound", "float32", ("batch", 1, "samples")),),
        (TensorSpec("logits", "float32", ("batch", 3)),),
    )
    with seeded(0):
        model = TorchModel(Listener().eval(), signature)
    exported = export(model)
    for rows, samples in ((1, 80), (3, 1000)):
        split = Split({"sound": np.random.default_rng(0).normal(size=(rows, 1, samples)).astype(np.float32)})
        np.testing.assert_allclose(infer(exported, split, rows)[0], predict(model, split)[0], atol=1e-5)


class Reader(nn.Module):
    """Tokens of a text of any length, read in both directions by a recurrent layer."""

    def __init__(self, kind: type[nn.RNNBase]) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.read = kind(8, 6, num_layers=2, batch_first=True, bidirectional=True, dropout=0.2)
        self.last = nn.Linear(12, 3)

    def forward(self, tokens: torch.Tensor) -> torch.Tensor:
        states, _ = self.read(self.embed(tokens))
        return self.last(states[:, -1] + states.mean(1))  # type: ignore[no-any-return]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_the_steps_of_recurrent_layers_stay_free(kind: type[nn.RNNBase]) -> None:
    signature = Signature(
        (TensorSpec("tokens", "int64", ("batch", "sequence")),),
        (TensorSpec("logits", "float32", ("batch", 3)),),
    )
    with seeded(0):
        model = TorchModel(Reader(kind).eval(), signature)
    exported = export(model)
    assert exported.proto.SerializeToString() == export(model).proto.SerializeToString()
    for rows, length in ((1, 1), (3, 17)):
        split = Split({"tokens": np.random.default_rng(0).integers(0, 20, (rows, length))})
        np.testing.assert_allclose(infer(exported, split, rows)[0], predict(model, split)[0], atol=1e-5)


class Tagger(nn.Module):
    """Two inputs, two outputs and a second symbolic axis."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
        self.encode = nn.TransformerEncoder(layer, 1, enable_nested_tensor=False)
        self.tag = nn.Linear(8, 3)

    def forward(self, tokens: torch.Tensor, weight: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        states = self.encode(self.embed(tokens)) * weight.unsqueeze(-1)
        return self.tag(states), states.mean(1)


TAGGER = Signature(
    (
        TensorSpec("tokens", "int64", ("batch", "sequence")),
        TensorSpec("weight", "float32", ("batch", "sequence")),
    ),
    (
        TensorSpec("tags", "float32", ("batch", "sequence", 3)),
        TensorSpec("summary", "float32", ("batch", 8)),
    ),
)


@pytest.fixture(scope="module")
def tagger() -> TorchModel:
    with seeded(0):
        return TorchModel(Tagger().eval(), TAGGER)


@pytest.fixture(scope="module")
def exported_tagger(tagger: TorchModel) -> OnnxModel:
    return export(tagger)


def test_operators_are_called_by_their_modules_and_no_two_alike(exported_tagger: OnnxModel) -> None:
    names = [node.name for node in exported_tagger.proto.graph.node]
    assert {"embed/Gather", "encode.layers.0.linear1/MatMul", "encode.layers.0.norm1/LayerNormalization"} <= {
        *names
    }
    assert "tag/MatMul" in names
    assert len(set(names)) == len(names)


@pytest.mark.parametrize("rows", [1, 2, 7, 200])
def test_any_batch_gives_what_the_module_gives(
    rows: int, reference: TorchModel, artifact: OnnxModel, splits: Splits
) -> None:
    few = splits.test.take(slice(0, rows))
    np.testing.assert_allclose(infer(artifact, few, rows)[0], predict(reference, few)[0], atol=1e-4)


def test_axes_stay_symbolic_under_their_names(exported_tagger: OnnxModel) -> None:
    tags = exported_tagger.proto.graph.output[0].type.tensor_type.shape.dim
    assert [dim.dim_param or dim.dim_value for dim in tags] == ["batch", "sequence", 3]


@pytest.mark.parametrize(("rows", "length"), [(1, 1), (1, 9), (5, 4)])
def test_several_inputs_and_symbolic_axes_of_any_length(
    rows: int, length: int, tagger: TorchModel, exported_tagger: OnnxModel
) -> None:
    random = np.random.default_rng(0)
    split = Split(
        {
            "weight": random.random((rows, length), np.float32),
            "tokens": random.integers(0, 20, (rows, length)),
        }
    )
    for given, expected in zip(infer(exported_tagger, split, rows), predict(tagger, split), strict=True):
        np.testing.assert_allclose(given, expected, atol=1e-4)


def test_operations_of_a_symbolic_axis_need_its_length(exported_tagger: OnnxModel) -> None:
    with pytest.raises(UnknownShapeError, match='axis "sequence" has no length'):
        flops(exported_tagger)
    short, long = (
        {"weight": np.ones((1, length), np.float32), "tokens": np.ones((1, length), np.int64)}
        for length in (4, 8)
    )
    assert flops(exported_tagger, long) > 2 * flops(exported_tagger, short) > 0


def test_equal_weights_give_equal_bytes_with_no_trace_of_this_machine(
    reference: TorchModel, artifact: OnnxModel
) -> None:
    first, second = (
        model.proto.SerializeToString(deterministic=True) for model in (artifact, export(reference))
    )
    assert first == second
    assert b"File " not in first
    assert b".py" not in first


def test_exporting_says_nothing_and_leaves_the_module_as_it_was(
    reference: TorchModel, capfd: pytest.CaptureFixture[str]
) -> None:
    before = reference.weights_digest()
    reference.module.train()
    export(reference)
    assert reference.module.training
    reference.module.eval()
    assert reference.weights_digest() == before
    assert capfd.readouterr() == ("", "")


def test_all_weights_travel(reference: TorchModel, artifact: OnnxModel) -> None:
    # Batch normalization folds into the convolution before it: two weights per channel become one.
    norms = 16 + 32 + 64
    learned = sum(parameter.numel() for parameter in reference.module.parameters())
    assert parameters(artifact) == learned - norms


def test_operations_are_counted_for_one_row(artifact: OnnxModel) -> None:
    convolutions = 64 * 9 * 1 * 16 + 64 * 9 * 16 * 32 + 16 * 9 * 32 * 64
    assert flops(artifact) == 2 * (convolutions + 256 * 32 + 32 * 10)


def test_a_signature_that_does_not_fit_is_an_error(reference: TorchModel) -> None:
    narrow = Signature(DIGITS.inputs, (TensorSpec("logits", "float32", ("batch", 9)),))
    with pytest.raises(
        ExportError, match=r'output "logits" has shape \[-1, 10\]; the signature says \[-1, 9\]'
    ):
        export(TorchModel(reference.module, narrow))


def test_a_module_that_fixes_the_batch_is_an_error() -> None:
    class Fixed(nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return x.reshape(2, -1)

    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 4)),), (TensorSpec("y", "float32", ("batch", 4)),)
    )
    with pytest.raises(ExportError):
        export(TorchModel(Fixed(), signature))
