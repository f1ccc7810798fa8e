"""What a module computes beside its weights: the code of its classes and all that they refer to."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections.abc import Callable, Iterator
from functools import partial
from types import CodeType, FunctionType
from typing import Any

from torch import nn

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Their code is told apart by their versions, which are part of a lineage.
_LIBRARIES = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "sklearn")


def code_digest(*of: Any) -> str:
    """Sha256 of modules, classes and functions: their sources, and those of what they refer to.

    A class brings its bases; a function the functions, classes and plain values that it names and that its
    file defines or imports, libraries' left out; a module the plain attributes of all its parts, such as a
    number of heads, which neither its layers nor their weights tell.
    """
    digest = hashlib.sha256()
    seen: set[int] = set()
    for each in of:
        for text in _told(each, seen):
            digest.update(text.encode())
            digest.update(b"\0")
    return digest.hexdigest()


def _told(of: Any, seen: set[int]) -> Iterator[str]:
    if isinstance(of, nn.Module):
        for name, part in of.named_modules():
            plain = {k: v for k, v in vars(part).items() if _is_plain(v) and k != "training"}
            yield f"{name} {type(part).__qualname__} {sorted(plain.items())!r}"
        for part in of.modules():
            yield from _told(type(part), seen)
    elif isinstance(of, partial):
        yield repr([value for value in (*of.args, *sorted(of.keywords.items())) if _is_plain(value)])
        for part in (of.func, *of.args, *of.keywords.values()):
            yield from _told(part, seen)
    elif isinstance(of, type):
        for each in of.__mro__:
            if _is_own(each) and id(each) not in seen:
                seen.add(id(each))
                yield _source(each)
                for member in vars(each).values():
                    for function in _functions(member):
                        yield from _named(function, seen)
    elif isinstance(of, FunctionType) and _is_own(of) and id(of) not in seen:
        seen.add(id(of))
        yield _source(of)
        yield from _named(of, seen)


def _named(function: FunctionType, seen: set[int]) -> Iterator[str]:
    """What a function names of its file."""
    for name in sorted(set(_names(function.__code__))):
        value = function.__globals__.get(name)
        if name in function.__globals__ and _is_plain(value):
            yield f"{name}={value!r}"
        else:
            yield from _told(value, seen)


def _source(of: type | FunctionType) -> str:
    """Its source; of what was made without one, as by `exec`, the name and a function's instructions."""
    try:
        return inspect.getsource(of)
    except OSError:
        code = of.__code__.co_code.hex() if isinstance(of, FunctionType) else ""
        return f"{of.__module__}.{of.__qualname__} {code}"


def _names(code: CodeType) -> Iterator[str]:
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _functions(member: Any) -> Iterator[FunctionType]:
    """The functions behind a class's member."""
    if isinstance(member, staticmethod | classmethod):
        member = member.__func__
    elif isinstance(member, property):
        yield from (f for f in (member.fget, member.fset) if isinstance(f, FunctionType))
    if isinstance(member, FunctionType):
        yield inspect.unwrap(member)


def _is_plain(value: Any) -> bool:
    if isinstance(value, tuple | list):
        return all(_is_plain(each) for each in value)
    return isinstance(value, _PLAIN)


def _is_own(of: type | Callable[..., Any]) -> bool:
    package = of.__module__.partition(".")[0]
    return package not in _LIBRARIES and package not in sys.stdlib_module_names
