"""How a model learns: one loop for training from scratch, fine-tuning and distillation.

Everything random is seeded, and the caller's own random state is left as it was.
"""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from compression.data import Split
from compression.model import TorchModel
from compression.signature import Array, Signature

PREDICT_BATCH = 256

Report = Callable[[str, float], None]
Outputs = tuple[Tensor, ...]


class TrainingError(ValueError):
    """A model cannot be trained as asked; the message says why."""


@dataclass(frozen=True)
class Training:
    """How a model learns.

    Attributes:
        loss: Name in `LOSSES`: what is minimized against the labels.
        epochs: Passes over the training split when training from scratch.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Rows per step.
        weight_decay: AdamW's decoupled weight decay.
        autocast: Computes in bfloat16 where the processor has it natively. Pays from a few million
            parameters up; small models lose more to the casts than they win.
    """

    loss: str = "cross_entropy"
    epochs: int = 30
    learning_rate: float = 3e-3
    batch_size: int = 64
    weight_decay: float = 1e-2
    autocast: bool = False


@dataclass(frozen=True)
class Batch:
    """What a loss sees beside the model's outputs.

    Attributes:
        rows: Which rows of the split these are, of shape `(batch,)`.
        inputs: The inputs in signature order, each `(batch, ...)`.
        labels: The labels `(batch, ...)`, or None when the split has none.
    """

    rows: Tensor
    inputs: tuple[Tensor, ...]
    labels: Tensor | None


Loss = Callable[[Outputs, Batch], Tensor]


@dataclass(frozen=True)
class Objective:
    """What `fit` minimizes, and what it chooses the best epoch by.

    Attributes:
        train: A scalar mean over the batch, of rows of the training split.
        validation: The same for rows of the validation split.
    """

    train: Loss
    validation: Loss


def cross_entropy(outputs: Outputs, batch: Batch) -> Tensor:
    """Mean cross entropy of the first output's logits `(batch, classes)` against class numbers."""
    return functional.cross_entropy(outputs[0].float(), _labels_of(batch).long())


def mse(outputs: Outputs, batch: Batch) -> Tensor:
    """Mean squared error of the first output against labels of as many values."""
    values = outputs[0].float()
    return functional.mse_loss(values, _labels_of(batch).float().reshape(values.shape))


LOSSES: dict[str, Loss] = {
    "cross_entropy": cross_entropy,
    "mse": mse,
}


def loss_named(name: str) -> Loss:
    """The loss of that name.

    Raises:
        TrainingError: There is none.
    """
    if name not in LOSSES:
        raise TrainingError(f'unknown loss "{name}". Use one of {", ".join(sorted(LOSSES))}.')
    return LOSSES[name]


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Makes torch's global randomness repeatable inside the block and restores it afterwards.

    Build modules inside it, so that the same seed initializes the same weights.
    """
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield


def fit(
    model: TorchModel,
    train: Split,
    validation: Split,
    training: Training,
    *,
    seed: int,
    report: Report,
    objective: Objective | None = None,
) -> TorchModel:
    """Returns a trained copy of the model, with the weights of its best epoch, in eval mode.

    AdamW (Loshchilov and Hutter 2019) under a one-cycle schedule (Smith and Topin 2018). The epoch is
    chosen by the validation loss. The same seed, data and thread count give the same weights.

    Args:
        model: What to train from; it is not changed.
        train: The rows to learn from.
        validation: The rows to choose the epoch by.
        training: Epochs, rates and the name of the loss.
        seed: Seeds the order of the rows and whatever the module draws, such as dropout.
        report: Called after each epoch with a phrase and the fraction done.
        objective: What to minimize instead of the named loss against the labels.

    Raises:
        TrainingError: There is no such loss, labels are missing, or the loss stopped being finite.
    """
    if objective is None:
        objective = Objective(loss_named(training.loss), loss_named(training.loss))
    module = copy.deepcopy(model.module)
    learner = _Learner(module, _Rows(model.signature, train, module), training, objective, seed)
    judged = _Rows(model.signature, validation, module)
    best, best_state = math.inf, module.state_dict()
    with seeded(seed):
        for epoch in range(training.epochs):
            learner.epoch()
            loss = learner.validation_loss(judged)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the validation loss is {loss} after epoch {epoch + 1}. Lower learning_rate "
                    f"(now {training.learning_rate}) or look for values that are not finite in the data."
                )
            if loss < best:
                best = loss
                best_state = {name: value.detach().clone() for name, value in module.state_dict().items()}
            phrase = f"epoch {epoch + 1}/{training.epochs}, validation loss {loss:.4f}"
            report(phrase, (epoch + 1) / training.epochs)
    module.load_state_dict(best_state)
    _lay_out(module, torch.contiguous_format)
    return TorchModel(module.eval(), model.signature)


def predict(model: TorchModel, split: Split) -> list[Array]:
    """The model's outputs for every row: one array `(rows, ...)` per output, in signature order."""
    module = model.module
    was_training = module.training
    module.eval()
    rows = _Rows(model.signature, split, module)
    with torch.inference_mode():
        batches = [_outputs(module, batch.inputs) for batch in rows.in_order(PREDICT_BATCH)]
    module.train(was_training)
    return [
        np.concatenate(
            [
                output.float().cpu().numpy() if output.is_floating_point() else output.cpu().numpy()
                for output in column
            ]
        )
        for column in zip(*batches, strict=True)
    ]


def native_bfloat16() -> bool:
    """Whether this processor multiplies bfloat16 in hardware, so that autocast is worth it."""
    features = torch.cpu.get_capabilities()
    return bool(features.get("avx512_bf16") or features.get("amx_bf16"))


class _Rows:
    """A split as tensors on the module's device, inputs in signature order."""

    def __init__(self, signature: Signature, split: Split, module: nn.Module) -> None:
        device = next((parameter.device for parameter in module.parameters()), torch.device("cpu"))
        self.inputs = tuple(
            torch.from_numpy(np.ascontiguousarray(split.inputs[spec.name])).to(device)
            for spec in signature.inputs
        )
        labels = split.labels
        self.labels = None if labels is None else torch.from_numpy(np.ascontiguousarray(labels)).to(device)
        self.count = len(split)

    def batch(self, rows: Tensor) -> Batch:
        labels = None if self.labels is None else self.labels[rows]
        return Batch(rows, tuple(array[rows] for array in self.inputs), labels)

    def in_order(self, size: int) -> Iterator[Batch]:
        for start in range(0, self.count, size):
            yield self.batch(torch.arange(start, min(start + size, self.count)))

    def shuffled(self, size: int, generator: torch.Generator) -> Iterator[Batch]:
        order = torch.randperm(self.count, generator=generator)
        for start in range(0, self.count, size):
            rows = order[start : start + size]
            # Batch normalization has no variance over a single row: leave a last such batch out.
            if len(rows) > 1 or self.count == 1:
                yield self.batch(rows)


class _Learner:
    """A module with its optimizer, schedule and row order."""

    def __init__(
        self, module: nn.Module, rows: _Rows, training: Training, objective: Objective, seed: int
    ) -> None:
        self.module = module
        self.rows = rows
        self.objective = objective
        self.batch_size = training.batch_size
        self.autocast = training.autocast and native_bfloat16()
        if self.autocast:
            _lay_out(module, torch.channels_last)  # three times as fast for bfloat16 convolutions
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = torch.optim.AdamW(
            module.parameters(), lr=training.learning_rate, weight_decay=training.weight_decay
        )
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=training.learning_rate,
            total_steps=max(training.epochs, 1) * math.ceil(rows.count / training.batch_size),
        )

    def epoch(self) -> None:
        self.module.train()
        for batch in self.rows.shuffled(self.batch_size, self.generator):
            with torch.autocast("cpu", torch.bfloat16, enabled=self.autocast):
                outputs = _outputs(self.module, batch.inputs)
            loss = self.objective.train(outputs, batch)
            self.optimizer.zero_grad(set_to_none=True)
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()
            self.schedule.step()

    def validation_loss(self, rows: _Rows) -> float:
        self.module.eval()
        total = 0.0
        with torch.no_grad():
            for batch in rows.in_order(PREDICT_BATCH):
                loss = self.objective.validation(_outputs(self.module, batch.inputs), batch)
                total += float(loss) * len(batch.rows)
        return total / rows.count


def _lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    module.to(memory_format=memory_format)  # type: ignore[call-overload]  # missing from torch's stubs


def _outputs(module: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs:
    given = module(*inputs)
    return (given,) if isinstance(given, Tensor) else tuple(given)


def _labels_of(batch: Batch) -> Tensor:
    if batch.labels is None:
        raise TrainingError("this loss needs labels and the split has none. Give the split labels.")
    return batch.labels
