from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.base import PassContext
from compression.checkpoint import Checkpoint, Checkpoints
from compression.data import Split, Splits
from compression.losses import Batch, TrainingError, labelled_loss
from compression.model import TorchModel
from compression.signature import Signature, TensorSpec
from compression.training import Training, fit, lay_out, predict, seeded
from tests.compression.small_digits import DIGITS, digits_net, silent

QUICK = Training(epochs=2)


def fresh() -> TorchModel:
    with seeded(1):
        return TorchModel(digits_net((8, 8, 16), 16), DIGITS)


def trained(splits: Splits, training: Training = QUICK, seed: int = 0) -> TorchModel:
    return fit(fresh(), splits.train, splits.validation, training, seed=seed, report=silent).model


def test_the_reference_learns(reference: TorchModel, splits: Splits) -> None:
    assert splits.test.labels is not None
    assert (predict(reference, splits.test)[0].argmax(1) == splits.test.labels).mean() > 0.95


def test_the_same_seed_gives_the_same_weights_and_another_seed_does_not(splits: Splits) -> None:
    assert trained(splits).weights_digest() == trained(splits).weights_digest()
    assert trained(splits).weights_digest() != trained(splits, seed=1).weights_digest()


def test_fitting_leaves_the_callers_model_and_randomness_alone(splits: Splits) -> None:
    model = fresh()
    before, state = model.weights_digest(), torch.get_rng_state()
    fit(model, splits.train, splits.validation, QUICK, seed=0, report=silent)
    assert model.weights_digest() == before
    assert torch.equal(torch.get_rng_state(), state)


def test_the_best_epoch_is_kept_not_the_last(splits: Splits) -> None:
    losses: list[float] = []

    def listen(phrase: str, fraction: float) -> None:
        losses.append(float(phrase.rsplit(" ", 1)[1]))

    wild = Training(epochs=6, learning_rate=0.05)
    model = fit(fresh(), splits.train, splits.validation, wild, seed=3, report=listen).model
    logits = torch.from_numpy(predict(model, splits.validation)[0])
    kept = nn.functional.cross_entropy(logits, torch.from_numpy(splits.validation.labels))
    assert float(kept) == pytest.approx(min(losses), abs=1e-4)
    assert not model.module.training


def test_autocast_learns_too(splits: Splits) -> None:
    model = trained(splits, Training(epochs=4, learning_rate=1e-2, autocast=True))
    assert splits.test.labels is not None
    assert (predict(model, splits.test)[0].argmax(1) == splits.test.labels).mean() > 0.7


def test_progress_ends_at_one(splits: Splits) -> None:
    fractions: list[float] = []
    fit(
        fresh(), splits.train, splits.validation, QUICK, seed=0, report=lambda _, done: fractions.append(done)
    )
    assert fractions == [0.5, 1.0]


def test_inputs_reach_the_module_in_signature_order_and_outputs_come_back_so() -> None:
    class Difference(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.scale = nn.Parameter(torch.ones(1))

        def forward(self, left: torch.Tensor, right: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return self.scale * (left - right), left

    tensors = [TensorSpec(name, "float32", ("batch", 2)) for name in ("left", "right", "difference", "same")]
    model = TorchModel(Difference(), Signature(tuple(tensors[:2]), tuple(tensors[2:])))
    left, right = np.full((3, 2), 5, np.float32), np.full((3, 2), 2, np.float32)
    difference, same = predict(model, Split({"right": right, "left": left}))
    assert (difference == 3).all()
    assert (same == 5).all()


def test_a_regression_is_trained_on_squared_error() -> None:
    values = np.random.default_rng(0).normal(size=(200, 3)).astype(np.float32)
    split = Split({"x": values}, values.sum(1))
    x, y = TensorSpec("x", "float32", ("batch", 3)), TensorSpec("y", "float32", ("batch", 1))
    with seeded(0):
        model = TorchModel(nn.Linear(3, 1), Signature((x,), (y,)))
    training = Training(loss="mse", epochs=40, learning_rate=0.1, weight_decay=0.0)
    model = fit(model, split, split, training, seed=0, report=silent).model
    assert np.abs(predict(model, split)[0][:, 0] - split.labels).max() < 0.1


def test_a_last_batch_of_one_row_does_not_break_batch_normalization(splits: Splits) -> None:
    odd = splits.train.take(slice(0, 65))
    fit(fresh(), odd, splits.validation, Training(epochs=1, batch_size=64), seed=0, report=silent)


def test_batches_of_one_row_are_learned_from(splits: Splits) -> None:
    few = splits.train.take(slice(0, 20))
    with seeded(0):
        model = TorchModel(nn.Sequential(nn.Linear(64, 10)), DIGITS)
    learned = fit(model, few, few, Training(epochs=1, batch_size=1), seed=0, report=silent)
    assert learned.curve[0].train_loss > 0
    assert learned.model.weights_digest() != model.weights_digest()


def test_only_four_dimensional_weights_are_laid_out_anew() -> None:
    module = nn.Sequential(nn.Conv3d(2, 4, 3), nn.Conv2d(2, 4, 3))
    before = module[1].weight.detach().clone()
    lay_out(module, torch.channels_last)
    assert module[1].weight.is_contiguous(memory_format=torch.channels_last)
    assert torch.equal(module[1].weight, before)
    assert module[0].weight.is_contiguous()


def test_missing_labels_are_an_error_that_says_so(splits: Splits) -> None:
    bare = replace(splits.train, labels=None)
    with pytest.raises(TrainingError, match="needs labels"):
        fit(fresh(), bare, splits.validation, QUICK, seed=0, report=silent)


@pytest.mark.parametrize("setting", [{"augmentation": "crop-flip"}, {"small_images": 0.5}])
def test_pictures_do_not_move_under_labels_that_lie_over_them(setting: dict[str, Any]) -> None:
    pixels = np.zeros((8, 3, 16, 16), np.float32)
    split = Split({"x": pixels}, np.zeros((8, 16, 16), np.int64))
    signature = Signature(
        (TensorSpec("x", "float32", ("batch", 3, 16, 16)),),
        (TensorSpec("y", "float32", ("batch", 2, 16, 16)),),
    )
    dense = TorchModel(nn.Conv2d(3, 2, 1), signature)
    wrong = Training(epochs=1, loss="segmentation", **setting)
    with pytest.raises(TrainingError, match=f"{next(iter(setting))} would change the pictures"):
        fit(dense, split, split, wrong, seed=0, report=silent)


def test_where_nothing_can_learn_the_error_says_so(splits: Splits) -> None:
    frozen = fresh()
    frozen.module.requires_grad_(False)
    with pytest.raises(TrainingError, match="no parameter that learns"):
        fit(frozen, splits.train, splits.validation, QUICK, seed=0, report=silent)


@pytest.mark.parametrize("loss", ["cross_entropy", "segmentation"])
def test_what_is_not_labelled_teaches_nothing(loss: str) -> None:
    scores = torch.randn(2, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    labels = torch.randint(3, (2, 4, 4), generator=torch.Generator().manual_seed(1))
    marked = labels.clone()
    marked[:, 0] = 255
    judge = labelled_loss(loss)
    given = judge((scores,), Batch(torch.arange(2), (), marked))
    wanted = functional.cross_entropy(scores[:, :, 1:], labels[:, 1:])
    assert given == pytest.approx(float(wanted), rel=1e-5)


def test_an_unknown_loss_lists_the_known_ones(splits: Splits) -> None:
    with pytest.raises(TrainingError, match=r'unknown loss "hinge". Use one of cross_entropy, mse'):
        trained(splits, Training(loss="hinge"))


def test_a_loss_that_explodes_is_an_error(splits: Splits) -> None:
    poisoned = Split({"image": np.full((64, 64), np.nan, np.float32)}, np.zeros(64, np.int64))
    with pytest.raises(TrainingError, match="validation loss is nan"):
        fit(fresh(), poisoned, splits.validation, QUICK, seed=0, report=silent)


class Interrupted(Exception):
    """The power is cut."""


def test_an_interrupted_training_goes_on_to_the_same_weights(splits: Splits, tmp_path: Path) -> None:
    training = Training(epochs=4, optimizer="sgd", learning_rate=0.05, clip=1.0)
    whole = fit(fresh(), splits.train, splits.validation, training, seed=0, report=silent)

    def cut(phrase: str, fraction: float) -> None:
        if fraction == 0.5:
            raise Interrupted

    checkpoint = Checkpoint(tmp_path / "cut.safetensors")
    with pytest.raises(Interrupted):
        fit(
            fresh(),
            splits.train,
            splits.validation,
            training,
            seed=0,
            report=cut,
            checkpoint=checkpoint,
        )
    epochs: list[float] = []
    resumed = fit(
        fresh(),
        splits.train,
        splits.validation,
        training,
        seed=0,
        report=lambda _, fraction: epochs.append(fraction),
        checkpoint=checkpoint,
    )
    assert epochs == [0.75, 1.0]
    assert len(resumed.curve) == 4
    assert resumed.model.weights_digest() == whole.model.weights_digest()


class Scaled(nn.Linear):
    """A layer whose code reads what neither its layers nor its weights tell."""

    scale = 1.0

    def forward(self, rows: Tensor) -> Tensor:
        return super().forward(rows) * self.scale


def test_another_code_s_checkpoint_is_not_gone_on_from(splits: Splits, tmp_path: Path) -> None:
    context = PassContext(splits, None, {}, Training(epochs=1), 0, silent, Checkpoints(tmp_path))
    with seeded(0):
        last = Scaled(10, 10)
        module = nn.Sequential(digits_net((8, 8, 16), 16), last)
    for scale in (1.0, 2.0, 1.0):
        last.scale = scale
        context.fit(TorchModel(module, DIGITS))
    assert len(list(tmp_path.glob("*.safetensors"))) == 2


def test_a_checkpoint_that_is_cut_off_starts_again(splits: Splits, tmp_path: Path) -> None:
    checkpoint = Checkpoint(tmp_path / "broken.safetensors")
    fit(fresh(), splits.train, splits.validation, QUICK, seed=0, report=silent, checkpoint=checkpoint)
    checkpoint.path.write_bytes(checkpoint.path.read_bytes()[:5000])
    assert checkpoint.load() is None
    again = fit(fresh(), splits.train, splits.validation, QUICK, seed=0, report=silent, checkpoint=checkpoint)
    assert again.model.weights_digest() == trained(splits).weights_digest()


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        (Training(optimizer="lion"), "Use adamw or sgd"),
        (Training(augmentation="mixup"), "Use one of crop-flip"),
        (Training(loss="mse", label_smoothing=0.1), "no labels to smooth"),
    ],
)
def test_what_does_not_exist_is_refused(splits: Splits, wrong: Training, says: str) -> None:
    with pytest.raises(TrainingError, match=says):
        trained(splits, wrong)


def test_only_what_was_chosen_identifies_a_training() -> None:
    assert Training().chosen() == {}
    assert Training(epochs=3, clip=1.0).chosen() == {"epochs": 3, "clip": 1.0}


def test_spread_rows_are_of_the_whole_split(splits: Splits) -> None:
    ordered = splits.train.take(np.argsort(splits.train.labels, kind="stable"))
    assert len(set(ordered.spread(50).labels.tolist())) == 10
    assert len(ordered.spread(10**6)) == len(ordered)
    assert len(ordered.spread(1)) == 1
