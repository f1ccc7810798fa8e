"""Scores become names of classes. Torch-free."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
from pydantic import Field

from compression.signature import Array, Signature, TensorSpec
from variants.serving_spec import Transform
from variants.transform import After, DeclarationError, Settings, TransformError

NAME = "labels"


class LabelsSettings(Settings):
    """Settings.

    Attributes:
        names: Of the classes, in the order of the output's last axis.
        output: The output that has a value per class; the first unless named.
        top_k: Classes per row, best first.
        scores: `softmax` or `sigmoid` make probabilities of logits, `raw` leaves the values.
    """

    names: tuple[str, ...] = Field(min_length=1)
    output: str | None = None
    top_k: int = Field(1, ge=1)
    scores: Literal["softmax", "sigmoid", "raw"] = "softmax"


def class_names(declared: Iterable[Transform]) -> tuple[str, ...]:
    """What a model's transforms call its classes, by number; empty where they do not."""
    for each in declared:
        if each.name == NAME:
            return tuple(str(name) for name in each.settings["names"])
    return ()


def class_name(label: int, names: Sequence[str]) -> str:
    """A class by its name, or by its number where it has none."""
    return names[label] if 0 <= label < len(names) else str(label)


class Labels(After):
    """The best classes of each row by name, with their scores: outputs `label` and `score`.

    A request's parameter `top_k` asks for another number of classes than the declared one.
    """

    settings_type = LabelsSettings
    outputs = (
        TensorSpec("label", "bytes", ("batch", "top_k")),
        TensorSpec("score", "float32", ("batch", "top_k")),
    )

    def __init__(self, settings: LabelsSettings, signature: Signature, files: Mapping[str, Path]) -> None:
        """Prepares for a model.

        Raises:
            DeclarationError: The settings do not fit its outputs.
        """
        self._settings = settings
        shapes = {spec.name: spec.wire_shape for spec in signature.outputs}
        if taken := shapes.keys() & {spec.name for spec in self.outputs}:
            raise DeclarationError(f'the model has an output "{min(taken)}" already. Rename it.')
        self._output = settings.output or signature.outputs[0].name
        if shapes.get(self._output) != [-1, len(settings.names)]:
            raise DeclarationError(
                f'output "{self._output}" has shape {shapes.get(self._output, "none")}; expected '
                f"[-1, {len(settings.names)}]. Name an output of the model, and each of its classes."
            )
        if settings.top_k > len(settings.names):
            raise DeclarationError(f"top_k is {settings.top_k} of {len(settings.names)} names. Lower it.")
        self._names = np.array(settings.names, dtype=object)

    def check(self, parameters: Mapping[str, Any]) -> None:
        """`top_k` is a number of classes that there are."""
        given = parameters.get("top_k", 1)
        if type(given) is not int or not 1 <= given <= len(self._names):
            raise TransformError(
                f"parameter top_k is {str(given)[:40]}; expected a whole number. "
                f"Send one from 1 to {len(self._names)}."
            )

    def run(self, outputs: Mapping[str, Array], parameters: Mapping[str, Any]) -> dict[str, Array]:
        """`label` and `score`, each `(rows, top_k)`, the best first; equal scores in the classes' order."""
        values = outputs[self._output].astype(np.float32)
        count: int = parameters.get("top_k", self._settings.top_k)
        best = np.argsort(-values, axis=1, kind="stable")[:, :count]
        scores = np.take_along_axis(_probabilities(values, self._settings.scores), best, axis=1)
        return {"label": self._names[best], "score": scores}


def _probabilities(values: Array, scores: str) -> Array:
    if scores == "softmax":
        powers = np.exp(values - values.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)  # type: ignore[no-any-return]
    if scores == "sigmoid":
        return (1 + np.tanh(values / 2)) / 2  # exp would overflow
    return values
