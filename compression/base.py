"""What a pass is: one technique with its settings, its conditions and its promise."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, ClassVar, Generic, TypeVar

from pydantic import BaseModel, ConfigDict
from torch import nn

from compression.data import Splits
from compression.model import Form, OnnxModel, TorchModel
from compression.training import Report as Report
from compression.training import Training

Facts = dict[str, Any]


class CompressionError(Exception):
    """Compression went wrong in a way that the message explains."""


class PassRefusedError(CompressionError):
    """A pass cannot be applied to this model; nothing was changed."""


class BrokenPromiseError(CompressionError):
    """A pass ran, but its artifact does not hold what the technique promises."""


class Settings(BaseModel):
    """Base of a pass's settings: typed, closed and immutable."""

    model_config = ConfigDict(extra="forbid", frozen=True)


@dataclass(frozen=True)
class PassContext:
    """What passes may use beside the model.

    Attributes:
        splits: The data. Passes read `train` and `calibration`, and `validation` to choose; never `test`.
        reference: The uncompressed model: the teacher of distillation, the judge of accuracy. None when
            the source is an ONNX file.
        student: Makes an untrained student, or None when the spec has none.
        training: How this model is trained; fine-tuning starts from it.
        seed: Seeds everything random.
        report: Called with a phrase and a fraction 0..1 as work advances.
    """

    splits: Splits
    reference: TorchModel | None
    student: Callable[[], nn.Module] | None
    training: Training
    seed: int
    report: Report


S = TypeVar("S", bound=Settings)
In = TypeVar("In", TorchModel, OnnxModel)
Out = TypeVar("Out", TorchModel, OnnxModel)


class Pass(ABC, Generic[S, In, Out]):
    """One technique. Subclasses name themselves, their version and forms, and a `Settings` class.

    The pipeline calls `requires`, `run`, `ensures` in this order, and `holds` on the finished artifact.
    The model given to `run` is never changed in place.
    """

    name: ClassVar[str]
    version: ClassVar[int]
    takes: ClassVar[Form]
    gives: ClassVar[Form]
    settings_class: ClassVar[type[Settings]]

    def __init__(self, settings: S) -> None:
        self.settings = settings

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
        """

    def holds(self, facts: Facts, artifact: OnnxModel) -> None:
        """Checks that the facts still hold on the artifact after all later steps.

        Raises:
            BrokenPromiseError: A later step undid them.
        """


AnyPass = Pass[Any, Any, Any]
