"""Texts become token ids. Torch-free: a model's rows and its requests go through the same code."""

from __future__ import annotations

import os
from collections.abc import Mapping
from math import inf
from pathlib import Path

import numpy as np
from pydantic import Field
from tokenizers import Tokenizer

from compression.signature import Array, Signature, TensorSpec
from variants.transform import (
    Before,
    DeclarationError,
    Settings,
    TransformError,
    check_size,
    check_time,
    file_of,
    raw_input,
)

_TENSORS = ("input_ids", "attention_mask", "token_type_ids")
_TEXTS_AT_ONCE = 256  # a tokenizer's own account of a token takes a hundred times the id's space
_LIGHT_BYTES = 4096
_TEXT_BYTES = 32  # that a text costs beside its own
_ROW_BYTES = 256  # that a row takes at least on its way to a tensor


class TokenizeSettings(Settings):
    """Settings.

    Attributes:
        input: Name of the BYTES input.
        file: The tokenizer, among the model's files.
        max_tokens: Tokens of a text that are kept, special ones included.
        max_characters: Characters of a text that are read; the rest would cost time and change nothing.
        pad_token: What pads.
        pad_to_multiple_of: Lengths are padded up to a multiple of this, at most to `max_tokens`. Requests
            share a batch when their lengths are equal: fewer lengths, larger batches.
    """

    input: str = "text"
    file: str = "tokenizer.json"
    max_tokens: int = Field(256, ge=3)
    max_characters: int = Field(10_000, ge=1)
    pad_token: str = "[PAD]"
    pad_to_multiple_of: int = Field(1, ge=1)


class Tokenize(Before):
    """Texts to token ids, by a `tokenizer.json` of the `tokenizers` library.

    Cut to the longest that is taken, padded on the right to the longest of the request.
    """

    settings_type = TokenizeSettings
    example = "Lunch at noon?"

    def __init__(self, settings: TokenizeSettings, signature: Signature, files: Mapping[str, Path]) -> None:
        """Prepares for a model.

        Raises:
            DeclarationError: Its inputs are no tokens, or the file is no tokenizer that fits the settings.
        """
        self._settings = settings
        self.raw = raw_input(settings.input, signature)
        for spec in signature.inputs:
            _check_input(spec, settings.max_tokens)
        self._inputs = signature.inputs
        # One thread: the others belong to the models.
        os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
        path = file_of(settings.file, files)
        try:
            self._tokenizer = Tokenizer.from_str(path.read_text(encoding="utf-8"))
        except Exception as error:  # the library raises bare exceptions
            raise DeclarationError(
                f"{settings.file} is no tokenizer: {error}. Give a tokenizer.json."
            ) from error
        padding = self._tokenizer.token_to_id(settings.pad_token)
        if padding is None:
            raise DeclarationError(
                f"{settings.file} has no token {settings.pad_token}. Set pad_token to the one that pads."
            )
        self._padding: int = padding
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(settings.max_tokens)

    @property
    def unknown_tokens(self) -> dict[str, int]:
        """The token of words that the tokenizer does not know, by input."""
        token = getattr(self._tokenizer.model, "unk_token", None)
        number = None if token is None else self._tokenizer.token_to_id(token)
        return {} if number is None else {_TENSORS[0]: number}

    def is_light(self, values: Array) -> bool:
        """A tokenizer reads about two megabytes a second, and an empty text costs as much as a short one."""
        return sum(map(len, values)) + _TEXT_BYTES * len(values) <= _LIGHT_BYTES

    def run(self, values: Array, until: float = inf) -> dict[str, Array]:
        """Tensors `(rows, sequence)` of UTF-8 texts `(rows,)`."""
        check_size(len(values) * max(self._padded(1) * 8 * len(self._inputs), _ROW_BYTES), "texts")
        ids: list[list[int]] = []
        for start in range(0, len(values), _TEXTS_AT_ONCE):
            check_time(until)
            some = values[start : start + _TEXTS_AT_ONCE]
            texts = [self._text(row, value) for row, value in enumerate(some, start)]
            encoded = self._tokenizer.encode_batch_fast(texts)
            ids += [encoding.ids for encoding in encoded]
        length = self._padded(max(map(len, ids)))
        check_size(len(ids) * length * 8 * len(self._inputs), "texts")
        tensors = {}
        for spec in self._inputs:
            tensor = np.full((len(ids), length), self._filling(spec.name), spec.dtype)
            if spec.name != "token_type_ids":  # all of a text is one segment, the first
                for row, tokens in enumerate(ids):
                    tensor[row, : len(tokens)] = tokens if spec.name == "input_ids" else 1
            tensors[spec.name] = tensor
        return tensors

    def texts(self, tensors: Mapping[str, Array]) -> list[str]:
        """Texts that have about these tokens `(rows, sequence)`: what the tokenizer drops is gone."""
        tokens = tensors["input_ids"]
        masks = tensors.get("attention_mask", tokens != self._padding)
        ids = [row[mask.astype(bool)].tolist() for row, mask in zip(tokens, masks, strict=True)]
        return self._tokenizer.decode_batch(ids)

    def _text(self, row: int, value: bytes) -> str:
        try:
            return value.decode()[: self._settings.max_characters]
        except UnicodeDecodeError as error:
            raise TransformError(
                f'input "{self.raw.name}" is not UTF-8 in row {row}: {error.reason} at byte {error.start}. '
                "Send text in UTF-8."
            ) from error

    def _padded(self, longest: int) -> int:
        fixed = self._inputs[0].shape[1]
        if isinstance(fixed, int):
            return fixed
        multiple = self._settings.pad_to_multiple_of
        return min(-(-longest // multiple) * multiple, self._settings.max_tokens)

    def _filling(self, name: str) -> int:
        return self._padding if name == "input_ids" else 0


def _check_input(spec: TensorSpec, max_tokens: int) -> None:
    if spec.name not in _TENSORS or len(spec.shape) != 2 or not spec.dtype.startswith("int"):
        raise DeclarationError(
            f'input "{spec.name}" ({spec.dtype}, {spec.wire_shape}) is nothing that a tokenizer gives. '
            f"It gives integers (batch, sequence) named {', '.join(_TENSORS)}."
        )
    if isinstance(spec.shape[1], int) and spec.shape[1] < max_tokens:
        raise DeclarationError(
            f'input "{spec.name}" has {spec.shape[1]} tokens, fewer than max_tokens, {max_tokens}. Lower it.'
        )
