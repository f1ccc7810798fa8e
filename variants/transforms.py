"""What a model declares beside its tensors: texts and pictures become inputs, scores become labels.

Torch-free: the same code prepares the rows that a model learns from and the requests that it answers.
`TRANSFORMS` is the whole list.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

from pydantic import ValidationError

from compression.signature import Signature, TensorSpec
from variants import labels
from variants.picture import DecodeImage
from variants.serving_spec import Transform
from variants.text import Tokenize
from variants.transform import After, Before, DeclarationError, Settings

TRANSFORMS: dict[str, type[Before] | type[After]] = {
    "tokenize": Tokenize,
    "image": DecodeImage,
    labels.NAME: labels.Labels,
}


@dataclass(frozen=True)
class Transforms:
    """A model's transforms, ready to run: at most one before and one after it."""

    before: Before | None = None
    after: After | None = None

    @property
    def raw(self) -> TensorSpec | None:
        """The BYTES input that a request may name in the place of all tensors."""
        return None if self.before is None else self.before.raw

    @property
    def example(self) -> str:
        """A value of it that works; empty when there is none."""
        return "" if self.before is None else self.before.example

    @property
    def unknown_tokens(self) -> dict[str, int]:
        """The token that stands for what is not known, by input; none where there are no tokens."""
        return {} if self.before is None else self.before.unknown_tokens

    @property
    def outputs(self) -> tuple[TensorSpec, ...]:
        """Outputs beside the model's own."""
        return () if self.after is None else self.after.outputs


def open_transforms(
    declared: Iterable[Transform], signature: Signature, files: Mapping[str, Path]
) -> Transforms:
    """Prepares a model's transforms.

    Args:
        declared: Their names and settings.
        signature: The model's inputs and outputs.
        files: The model's files by name.

    Raises:
        DeclarationError: There is no such transform, or it does not fit the model or its files.
    """
    before: Before | None = None
    after: After | None = None
    for each in declared:
        kind, settings = _parsed(each)
        made = kind(settings, signature, files)
        if (before if isinstance(made, Before) else after) is not None:
            raise DeclarationError(f'"{each.name}" is one too many on its side of the model. Remove one.')
        if isinstance(made, Before):
            before = made
        else:
            after = made
    return Transforms(before, after)


def check_declared(declared: Iterable[Transform], files: Iterable[str]) -> None:
    """Checks names and settings, without opening any file.

    Raises:
        DeclarationError: One is wrong, or needs a file that the model does not have.
    """
    for each in declared:
        _, settings = _parsed(each)
        needed = getattr(settings, "file", None)
        if needed is not None and needed not in (known := list(files)):
            raise DeclarationError(
                f'"{each.name}" needs the file {needed}; the model has {", ".join(known) or "none"}. Add it.'
            )


def _parsed(declared: Transform) -> tuple[type[Before] | type[After], Settings]:
    kind = TRANSFORMS.get(declared.name)
    if kind is None:
        raise DeclarationError(f'unknown transform "{declared.name}". There are {", ".join(TRANSFORMS)}.')
    try:
        return kind, kind.settings_type.model_validate(declared.settings)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DeclarationError(f'"{declared.name}": {where}: {first["msg"]}. Change that setting.') from error
