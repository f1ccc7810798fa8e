"""What a pass is: one technique with its settings, its conditions and its promise."""

from __future__ import annotations

import inspect
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field, replace
from typing import Any, ClassVar, Generic, TypeVar

import torch
from pydantic import BaseModel, ConfigDict
from torch import nn

from compression.checkpoint import Checkpoints
from compression.data import Splits
from compression.model import Form, OnnxModel, TorchModel
from compression.signature import Array
from compression.training import VERSION as TRAINING_VERSION
from compression.training import Epoch, Objective, Training, fit, labels_objective
from compression.training import Report as Report

Facts = dict[str, Any]

# The number format of weights that are looked up, or expanded, as the graph is loaded.
CODES = "codes"


class CompressionError(Exception):
    """Compression went wrong in a way that the message explains."""


class PassRefusedError(CompressionError):
    """A pass cannot be applied to this model; nothing was changed."""


class BrokenPromiseError(CompressionError):
    """A pass ran, but its artifact does not hold what the technique promises."""


class Settings(BaseModel):
    """Base of a pass's settings: typed, closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


# The model's own metric, for passes that must keep some of it. Of outputs, in signature order, of those that
# they are held against, and of labels: how good the first are over the second, 1 for as good, more for
# better. Where there are no labels, the second are the truth.
Quality = Callable[[Sequence[Array], Sequence[Array], Array | None], float]


# Makes an untrained student. It may take a `width`, with a default, which recipes and searches choose then.
Student = Callable[..., nn.Module]


def usual_width(student: Student) -> int | None:
    """The width of a student that nobody chose; None where it cannot be chosen."""
    width = inspect.signature(student).parameters.get("width")
    return None if width is None else int(width.default)


@dataclass(frozen=True)
class PassContext:
    """What passes may use beside the model.

    Attributes:
        splits: The data. Passes read `train` and `calibration`, and `validation` to choose; never `test`.
        reference: The uncompressed model: the teacher of distillation, the judge of accuracy. None when
            the source is an ONNX file.
        students: Factories of untrained students, by name; one with a parameter `width` makes several.
        training: How this model is trained; fine-tuning starts from it.
        seed: Seeds everything random.
        report: Called with a phrase and a fraction 0..1 as work advances.
        checkpoints: Where trainings are kept, so that an interrupted one goes on and one that another recipe
            went through before is not repeated; None to keep none.
        curves: Training curves of the running step are appended here.
        quality: The model's metric; None where nothing says how good an answer is.
    """

    splits: Splits
    reference: TorchModel | None
    students: Mapping[str, Student]
    training: Training
    seed: int
    report: Report
    checkpoints: Checkpoints | None = None
    curves: list[tuple[Epoch, ...]] = field(default_factory=list)
    quality: Quality | None = None

    def fit(
        self,
        model: TorchModel,
        *,
        epochs: int | None = None,
        learning_rate: float | None = None,
        objective: Objective | None = None,
        from_scratch: bool = False,
    ) -> TorchModel:
        """Returns a trained copy of the model: the one way in which passes train.

        What must hold while weights move (masks, shared values) lives in the module as a parametrization
        (`torch.nn.utils.parametrize`); the export bakes it in.

        Args:
            model: What to train from.
            epochs: Passes over the training split; None for as many as the model's own training has.
            learning_rate: Peak of the schedule; None for the model's own.
            objective: What to minimize; None for the model's own loss against the labels.
            from_scratch: Whether nothing is learned yet, so that smaller images may come first.

        Raises:
            TrainingError: As `compression.training.fit`.
        """
        own = self.training
        training = replace(
            own,
            epochs=own.epochs if epochs is None else epochs,
            learning_rate=own.learning_rate if learning_rate is None else learning_rate,
            small_images=own.small_images if from_scratch else 0.0,
        )
        objective = objective or labels_objective(training)
        checkpoint = None
        if self.checkpoints is not None:
            depends = [TRAINING_VERSION, torch.__version__, model.digest(), training.chosen()]
            checkpoint = self.checkpoints.find(*depends, objective.key, self.splits.digest, self.seed)
        with nullcontext() if checkpoint is None else checkpoint.alone():
            fitted = fit(
                model,
                self.splits.train,
                self.splits.validation,
                training,
                seed=self.seed,
                report=self.report,
                objective=objective,
                checkpoint=checkpoint,
            )
        self.curves.append(fitted.curve)
        return fitted.model


def check_known(kind: str, wanted: Iterable[str], known: Iterable[str]) -> None:
    """Checks names that settings hold.

    Args:
        kind: What they name, such as `module`.
        wanted: The names.
        known: All that there are.

    Raises:
        PassRefusedError: Some are unknown.
    """
    there = list(filter(None, known))
    if unknown := sorted(set(wanted) - set(there)):
        raise PassRefusedError(
            f"there is no {kind} {', '.join(unknown)}. {kind.capitalize()}s are {', '.join(there)}."
        )


def check_smaller(before: int, after: int, added: str, technique: str) -> Facts:
    """The bytes of a graph before and after a technique, as facts.

    Args:
        before: Bytes before.
        after: Bytes after.
        added: What the technique adds to a graph.
        technique: What it is called.

    Raises:
        PassRefusedError: The graph grew: it is too small for the technique.
    """
    if after >= before:
        raise PassRefusedError(
            f"the file would grow from {before} to {after} bytes: {added} outweigh what is saved. Leave "
            f"{technique} out for so small a model."
        )
    return {"bytes_before": before, "bytes_after": after}


S = TypeVar("S", bound=Settings)
In = TypeVar("In", TorchModel, OnnxModel)
Out = TypeVar("Out", TorchModel, OnnxModel)


class Pass(ABC, Generic[S, In, Out]):
    """One technique. Subclasses name themselves, their version and forms, and a `Settings` class.

    The pipeline calls `requires`, `run`, `ensures` in this order, and `holds` on the finished artifact.
    The model given to `run` is never changed in place. A pass that `only_stores` decides how the finished
    graph lies on disk: answers stay what they are, and whatever wrote the graph anew after it would undo it.
    One that `holds_weights` keeps some of them at zero or alike, whatever is learned after it; one that
    `makes_zeros` has promised how many there are. Its `number_format` is what it stores weights in, an empty
    string where they stay as they come.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    takes: ClassVar[Form]
    gives: ClassVar[Form]
    only_stores: ClassVar[bool] = False
    holds_weights: ClassVar[bool] = False
    makes_zeros: ClassVar[bool] = False
    number_format: ClassVar[str] = ""
    settings_class: ClassVar[type[Settings]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

    def refused_after(self, before: AnyPass) -> str:
        """Why it cannot come after another pass, whatever the model; an empty string where it can."""
        return ""

    def requires(self, model: In, context: PassContext) -> None:
        """Checks that the pass can be applied.

        Raises:
            PassRefusedError: It cannot; the message says why.
        """

    @abstractmethod
    def run(self, model: In, context: PassContext) -> Out:
        """Returns the compressed model."""

    @abstractmethod
    def ensures(self, before: In, after: Out, context: PassContext) -> Facts:
        """Checks the technique's promise on what `run` returned.

        Returns:
            The facts that were established, as JSON: they go into the scorecard.

        Raises:
            BrokenPromiseError: The promise is not kept, or nothing changed.
            PassRefusedError: It turned out that the model has nothing to gain from the technique.
        """

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the facts still hold on the artifact after all later steps.

        Raises:
            BrokenPromiseError: A later step undid them.
        """


AnyPass = Pass[Any, Any, Any]


def scaled_apart(before: AnyPass) -> str:
    """What a pass that scales channels says of one that made weights alike."""
    shares = before.holds_weights and not before.makes_zeros
    return f"channels are scaled, and values that {before.name} made alike would differ" if shares else ""


def held_by(before: AnyPass) -> str:
    """What a pass that needs all weights free says of one that holds their weights."""
    return f"{before.name} holds weights in their shape. Put it behind" if before.holds_weights else ""
