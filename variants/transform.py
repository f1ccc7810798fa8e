"""What every transform shares: the two kinds, their settings, their errors. Torch-free."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from math import inf
from pathlib import Path
from time import perf_counter
from typing import Any, ClassVar

from pydantic import BaseModel, ConfigDict

from compression.signature import Array, Signature, TensorSpec

# What one request may become: short texts are padded to the longest, small files are large pictures.
MAX_TENSOR_BYTES = 256 * 1024**2


class TransformError(ValueError):
    """What a client sent cannot be transformed; the message says which row, and what to send."""


class TooLateError(TransformError):
    """Nobody waits for what was still to be transformed."""


class DeclarationError(ValueError):
    """A model's transforms do not fit it, or its files are not what they should be."""


class Settings(BaseModel):
    """Settings of a transform; unknown ones are errors."""

    model_config = ConfigDict(extra="forbid", frozen=True)


class Before(ABC):
    """Makes a model's inputs from byte strings.

    Attributes:
        settings_type: Its settings.
        example: A value that works, as JSON writes it.
        raw: The BYTES input that a request may name in the place of all tensors.
    """

    settings_type: ClassVar[type[Settings]]
    example: ClassVar[str]
    raw: TensorSpec

    @abstractmethod
    def __init__(self, settings: Any, signature: Signature, files: Mapping[str, Path]) -> None:
        """Prepares for a model.

        Raises:
            DeclarationError: The settings do not fit the signature, or a file is missing or wrong.
        """

    @property
    def unknown_tokens(self) -> dict[str, int]:
        """The token that stands for what is not known, by input; none where there are no tokens."""
        return {}

    @abstractmethod
    def is_light(self, values: Array) -> bool:
        """Whether `run` takes about a millisecond at most.

        Raises:
            TransformError: A value cannot be read.
        """

    @abstractmethod
    def run(self, values: Array, until: float = inf) -> dict[str, Array]:
        """The model's inputs by name, one row per byte string `(rows,)`.

        Args:
            values: The byte strings.
            until: When nobody waits for them any more, on `time.perf_counter`.

        Raises:
            TransformError: A value cannot be read.
            TooLateError: They were not done by then.
        """


class After(ABC):
    """Makes further outputs from a model's own.

    Attributes:
        settings_type: Its settings.
        outputs: What it adds.
    """

    settings_type: ClassVar[type[Settings]]
    outputs: tuple[TensorSpec, ...]

    @abstractmethod
    def __init__(self, settings: Any, signature: Signature, files: Mapping[str, Path]) -> None:
        """Prepares for a model.

        Raises:
            DeclarationError: The settings do not fit the signature.
        """

    @abstractmethod
    def check(self, parameters: Mapping[str, Any]) -> None:
        """Checks what a request asks of it.

        Raises:
            TransformError: A parameter has a value that it cannot have.
        """

    @abstractmethod
    def run(self, outputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> dict[str, Array]:
        """The further outputs by name, `(rows, ...)`; `parameters` were checked."""


def raw_input(name: str, signature: Signature) -> TensorSpec:
    """The BYTES input of this name, one value per row.

    Raises:
        DeclarationError: The model has an input of this name itself.
    """
    if name in {spec.name for spec in signature.inputs}:
        raise DeclarationError(f'the model has an input "{name}" already. Set `input` to another name.')
    return TensorSpec(name, "bytes", ("batch",))


def file_of(name: str, files: Mapping[str, Path]) -> Path:
    """The path of one of the model's files.

    Raises:
        DeclarationError: The model has no such file.
    """
    if name not in files:
        raise DeclarationError(f"the model has no file {name}. Add it to the spec's files.")
    return files[name]


def check_time(until: float) -> None:
    """Checks between rows whether anybody waits.

    Raises:
        TooLateError: Nobody does.
    """
    if perf_counter() > until:
        raise TooLateError(
            "the deadline passed while the inputs were read. Give more time, or send less at once."
        )


def check_size(size: int, what: str) -> None:
    """Checks how many bytes of tensors a request becomes.

    Raises:
        TransformError: They are too many.
    """
    if size > MAX_TENSOR_BYTES:
        raise TransformError(
            f"these {what} become {size} bytes of tensors; at most {MAX_TENSOR_BYTES} are made of a request. "
            "Send fewer rows at a time."
        )
