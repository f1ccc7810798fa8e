"""JSON documents of the catalog: frozen dataclasses, validated when they are read."""

from __future__ import annotations

from pathlib import Path
from typing import Any, TypeVar

from pydantic import TypeAdapter, ValidationError

T = TypeVar("T")


class DocumentError(Exception):
    """A document does not have the shape that this version reads."""


_ADAPTERS: dict[Any, TypeAdapter[Any]] = {}


def _adapter(kind: Any) -> TypeAdapter[Any]:
    if kind not in _ADAPTERS:
        _ADAPTERS[kind] = TypeAdapter(kind)
    return _ADAPTERS[kind]


def to_json(value: Any) -> Any:
    """The dataclass as plain JSON values."""
    return _adapter(type(value)).dump_python(value, mode="json")


def write(path: Path, value: Any) -> None:
    """Writes the dataclass as indented JSON."""
    path.write_bytes(_adapter(type(value)).dump_json(value, indent=2) + b"\n")


def parse(kind: type[T], content: bytes | str) -> T:
    """Reads a dataclass from JSON text.

    Raises:
        DocumentError: The text is not JSON or does not fit.
    """
    try:
        value: T = _adapter(kind).validate_json(content)
    except ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise DocumentError(f"not a {kind.__name__}: {where}: {first['msg']}") from error
    return value


def read(kind: type[T], path: Path) -> T:
    """Reads a dataclass from a file.

    Raises:
        DocumentError: The file is missing, or its content does not fit.
    """
    try:
        return parse(kind, path.read_bytes())
    except FileNotFoundError as error:
        raise DocumentError(f"{path.name} is missing") from error
    except DocumentError as error:
        raise DocumentError(f"{path.name} is {error}") from error
