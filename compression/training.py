"""How a model learns: one loop for training from scratch, fine-tuning and distillation.

Everything random is seeded, and the caller's own random state is left as it was.
"""

from __future__ import annotations

import copy
import math
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, fields
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from compression.augmentation import AUGMENTATIONS, shrink
from compression.autocast import Autocast
from compression.checkpoint import Checkpoint, Group
from compression.data import Split
from compression.losses import Batch, Loss, Outputs, TrainingError, labelled_loss
from compression.model import TorchModel
from compression.signature import Array, Signature

PREDICT_BATCH = 256
SMALL_SIDE = 0.75
# A part of what identifies a training: raise it when the loop learns differently.
VERSION = 2

Report = Callable[[str, float], None]


@dataclass(frozen=True)
class Training:
    """How a model learns.

    Attributes:
        loss: Name in `losses.LOSSES`: what is minimized against the labels.
        epochs: Passes over the training split when training from scratch.
        learning_rate: Peak of the one-cycle schedule.
        batch_size: Rows per step.
        weight_decay: Decay of the weights of layers; biases and normalizations have none.
        optimizer: `adamw`, or `sgd` with Nesterov's momentum.
        label_smoothing: Share of each label that is spread over all classes; cross entropy only.
        augmentation: Name in `augmentation.AUGMENTATIONS`, applied to the first input, or None.
        small_images: Share of the epochs, from the first, that see images of 3/4 of their side. For
            networks that take images of any size; fine-tuning leaves it out.
        clip: Largest norm of a step's gradients, or None.
        autocast: Computes in bfloat16 where the processor has it natively (on a GPU without it, in float16
            with loss scaling). Pays from a few hundred thousand parameters up; small models lose more to
            the casts than they win.
    """

    loss: str = "cross_entropy"
    epochs: int = 30
    learning_rate: float = 3e-3
    batch_size: int = 64
    weight_decay: float = 1e-2
    optimizer: str = "adamw"
    label_smoothing: float = 0.0
    augmentation: str | None = None
    small_images: float = 0.0
    clip: float | None = None
    autocast: bool = False

    def chosen(self) -> dict[str, Any]:
        """What differs from the defaults: a setting that is added later changes no identity."""
        return {
            each.name: getattr(self, each.name)
            for each in fields(self)
            if getattr(self, each.name) != each.default
        }


@dataclass(frozen=True)
class Objective:
    """What `fit` minimizes, and what it chooses the best epoch by.

    Attributes:
        train: A scalar mean over the batch, of rows of the training split.
        validation: The same for rows of the validation split.
        key: Tells this objective from others: equal keys minimize the same on the same data.
        penalty: Of the module itself, added to the training loss, such as a norm of some of its weights.
    """

    train: Loss
    validation: Loss
    key: str
    penalty: Callable[[nn.Module], Tensor] | None = None


@dataclass(frozen=True)
class Epoch:
    """One point of a training curve: mean losses over the splits, and the time that the epoch took."""

    train_loss: float
    validation_loss: float
    seconds: float


@dataclass(frozen=True)
class Fitted:
    """A trained model with its weights of the best epoch, and how it came there."""

    model: TorchModel
    curve: tuple[Epoch, ...]


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
    checkpoint: Checkpoint | None = None,
) -> Fitted:
    """Returns a trained copy of the model, with the weights of its best epoch, in eval mode.

    AdamW (Loshchilov and Hutter 2019) or SGD under a one-cycle schedule (Smith and Topin 2018). The epoch is
    chosen by the validation loss. The same seed, data and thread count give the same weights.

    Args:
        model: What to train from; it is not changed.
        train: The rows to learn from.
        validation: The rows to choose the epoch by.
        training: Epochs, rates and the name of the loss.
        seed: Seeds the order of the rows and whatever the module draws, such as dropout.
        report: Called after each epoch with a phrase and the fraction done.
        objective: What to minimize instead of the named loss against the labels.
        checkpoint: Where to go on from, and where to save after each epoch.

    Raises:
        TrainingError: There is no such loss, optimizer or augmentation, labels are missing or would not move
            with the pictures, nothing can learn, or the loss stopped being finite.
    """
    objective = objective or labels_objective(training)
    module = copy.deepcopy(model.module)
    learner = _Learner(module, _Rows(model.signature, train, module), training, objective, seed)
    judged = _Rows(model.signature, validation, module)
    with seeded(seed):
        if checkpoint is not None:
            learner.resume(checkpoint)
        for number in range(len(learner.curve), training.epochs):
            loss = learner.epoch(judged)
            if not math.isfinite(loss):
                raise TrainingError(
                    f"the validation loss is {loss} after epoch {number + 1}. Lower learning_rate "
                    f"(now {training.learning_rate}) or look for values that are not finite in the data."
                )
            if checkpoint is not None:
                learner.save(checkpoint)
            phrase = f"epoch {number + 1}/{training.epochs}, validation loss {loss:.4f}"
            report(phrase, (number + 1) / training.epochs)
    module.load_state_dict(learner.best_state)
    lay_out(module, torch.contiguous_format)
    return Fitted(TorchModel(module.eval(), model.signature), tuple(learner.curve))


def labels_objective(training: Training) -> Objective:
    """The training's named loss against the labels."""
    return Objective(
        labelled_loss(training.loss, training.label_smoothing), labelled_loss(training.loss), training.loss
    )


def predict(model: TorchModel, split: Split) -> list[Array]:
    """The model's outputs for every row, in float32: one array `(rows, ...)` per output, in order."""
    module = model.module
    was_training = module.training
    module.eval()
    rows = _Rows(model.signature, split, module)
    with torch.inference_mode():
        batches = [outputs_of(module, batch.inputs) for batch in rows.in_order(PREDICT_BATCH)]
    module.train(was_training)
    return [
        np.concatenate(
            [(output.float() if output.is_floating_point() else output).cpu().numpy() for output in column]
        )
        for column in zip(*batches, strict=True)
    ]


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
            if len(rows) > 1 or size == 1 or self.count == 1:
                yield self.batch(rows)


class _Learner:
    """A module with its optimizer, schedule, row order, and what it has learned so far."""

    def __init__(
        self, module: nn.Module, rows: _Rows, training: Training, objective: Objective, seed: int
    ) -> None:
        self.module = module
        self.rows = rows
        self.training = training
        self.objective = objective
        if training.augmentation is not None and training.augmentation not in AUGMENTATIONS:
            raise TrainingError(
                f'unknown augmentation "{training.augmentation}". Use one of {", ".join(AUGMENTATIONS)}.'
            )
        moved = [name for name in ("augmentation", "small_images") if getattr(training, name)]
        if moved and rows.labels is not None and rows.labels.ndim > 2:
            raise TrainingError(
                f"{' and '.join(moved)} would change the pictures and not the labels that lie over them. "
                "Leave it out, or put changed rows with their labels into the train split."
            )
        self.autocast = Autocast(module, training.autocast)
        if self.autocast.enabled:
            lay_out(module, torch.channels_last)  # three times as fast for bfloat16 convolutions
        self.generator = torch.Generator().manual_seed(seed)
        self.optimizer = _optimizer(module, training)
        self.schedule = torch.optim.lr_scheduler.OneCycleLR(
            self.optimizer,
            max_lr=training.learning_rate,
            total_steps=max(training.epochs, 1) * math.ceil(rows.count / training.batch_size),
        )
        self.curve: list[Epoch] = []
        self.best = math.inf
        self.best_state: Group = module.state_dict()

    def epoch(self, judged: _Rows) -> float:
        """Learns from every row once; returns the loss on the rows that it is judged by."""
        started = time.perf_counter()
        learned = self._learn()
        loss = self._judge(judged)
        self.curve.append(Epoch(learned, loss, time.perf_counter() - started))
        if loss < self.best:
            self.best = loss
            self.best_state = {
                name: value.detach().clone() for name, value in self.module.state_dict().items()
            }
        return loss

    def save(self, checkpoint: Checkpoint) -> None:
        """Writes all that going on depends on."""
        optimizer = self.optimizer.state_dict()
        moments = {
            f"{index}.{name}": torch.as_tensor(value)
            for index, state in optimizer["state"].items()
            for name, value in state.items()
        }
        facts = {
            "curve": [asdict(epoch) for epoch in self.curve],
            "best": self.best,
            "groups": optimizer["param_groups"],
            "schedule": self.schedule.state_dict(),
            "scaler": self.autocast.scaler.state_dict(),
        }
        states = {"rows": self.generator.get_state(), "torch": torch.get_rng_state()}
        weights = self.module.state_dict()
        checkpoint.save(
            facts, {"weights": weights, "best": self.best_state, "moments": moments, "random": states}
        )

    def resume(self, checkpoint: Checkpoint) -> None:
        """Goes on where the checkpoint was written, if there is one."""
        saved = checkpoint.load()
        if saved is None:
            return
        self.curve = [Epoch(**epoch) for epoch in saved.facts["curve"]]
        self.best = saved.facts["best"]
        self.best_state = saved.groups["best"]
        self.module.load_state_dict(saved.groups["weights"])
        state: dict[int, dict[str, Tensor]] = {}
        for key, tensor in saved.groups.get("moments", {}).items():
            index, _, name = key.partition(".")
            state.setdefault(int(index), {})[name] = tensor
        self.optimizer.load_state_dict({"state": state, "param_groups": saved.facts["groups"]})
        self.schedule.load_state_dict(saved.facts["schedule"])
        self.autocast.scaler.load_state_dict(saved.facts["scaler"])
        self.generator.set_state(saved.groups["random"]["rows"])
        torch.set_rng_state(saved.groups["random"]["torch"])

    def _learn(self) -> float:
        self.module.train()
        total = torch.zeros(())
        scaler = self.autocast.scaler
        for plain in self.rows.shuffled(self.training.batch_size, self.generator):
            batch = self._augmented(plain)
            with self.autocast.context():
                outputs = outputs_of(self.module, batch.inputs)
            loss = self.objective.train(outputs, batch)
            if self.objective.penalty is not None:
                loss = loss + self.objective.penalty(self.module)
            self.optimizer.zero_grad(set_to_none=True)
            scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
            if self.training.clip is not None:
                scaler.unscale_(self.optimizer)
                nn.utils.clip_grad_norm_(self.module.parameters(), self.training.clip)
            scaler.step(self.optimizer)
            scaler.update()
            self.schedule.step()
            total += loss.detach().cpu() * len(batch.rows)
        return float(total) / self.rows.count

    def _judge(self, rows: _Rows) -> float:
        self.module.eval()
        total = 0.0
        with torch.no_grad():
            for batch in rows.in_order(PREDICT_BATCH):
                with self.autocast.context():
                    outputs = outputs_of(self.module, batch.inputs)
                total += float(self.objective.validation(outputs, batch)) * len(batch.rows)
        return total / rows.count

    def _augmented(self, batch: Batch) -> Batch:
        first, *others = batch.inputs
        if self.training.augmentation is not None:
            first = AUGMENTATIONS[self.training.augmentation](first, self.generator)
        if len(self.curve) < self.training.small_images * self.training.epochs:
            first = shrink(first, SMALL_SIDE)
        return Batch(batch.rows, (first, *others), batch.labels)


def _optimizer(module: nn.Module, training: Training) -> torch.optim.Optimizer:
    learned = [parameter for parameter in module.parameters() if parameter.requires_grad]
    groups = [
        {"params": [p for p in learned if p.ndim > 1], "weight_decay": training.weight_decay},
        {"params": [p for p in learned if p.ndim <= 1], "weight_decay": 0.0},
    ]
    groups = [group for group in groups if group["params"]]
    if not groups:
        raise TrainingError(
            "the module has no parameter that learns. Set requires_grad, or leave out what trains."
        )
    if training.optimizer == "adamw":
        return torch.optim.AdamW(groups, lr=training.learning_rate)
    if training.optimizer == "sgd":
        return torch.optim.SGD(groups, lr=training.learning_rate, momentum=0.9, nesterov=True)
    raise TrainingError(f'unknown optimizer "{training.optimizer}". Use adamw or sgd.')


def lay_out(module: nn.Module, memory_format: torch.memory_format) -> None:
    """Lays a module's four-dimensional weights out in memory as told, in place."""
    for weight in (*module.parameters(), *module.buffers()):
        if weight.ndim == 4:
            weight.data = weight.data.contiguous(memory_format=memory_format)


def outputs_of(module: nn.Module, inputs: tuple[Tensor, ...]) -> Outputs:
    """What a module returns for its inputs in signature order, a single tensor as one of a tuple."""
    given = module(*inputs)
    return (given,) if isinstance(given, Tensor) else tuple(given)
