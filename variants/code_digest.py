"""What a module computes beside its weights: the code of its classes and all that they refer to."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
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
    waiting, seen = deque(of), set[int]()
    while waiting:
        each = waiting.popleft()
        if id(each) in seen:
            continue
        seen.add(id(each))
        text, named = _told(each)
        waiting.extend(named)
        digest.update(text.encode())
    return digest.hexdigest()


def _told(of: Any) -> tuple[str, list[Any]]:
    """What something says by itself, and what else it refers to."""
    if isinstance(of, nn.Module):
        told = [
            (name, type(part).__qualname__, key, value)
            for name, part in of.named_modules()
            for key, value in sorted(vars(part).items())
            if _is_plain(value) and key != "training"
        ]
        return repr(told), [type(part) for part in of.modules()]
    if isinstance(of, partial):
        given = [*of.args, *sorted(of.keywords.items())]
        return repr([each for each in given if _is_plain(each)]), [of.func, *of.args, *of.keywords.values()]
    if isinstance(of, type) and _is_own(of):
        functions = [function for member in vars(of).values() for function in _functions(member)]
        plain, named = _globals(functions)
        return _source(of) + plain, [*of.__bases__, *named]
    if isinstance(of, FunctionType) and _is_own(of):
        plain, named = _globals([of])
        return _source(of) + plain, named
    return "", []


def _globals(functions: Sequence[FunctionType]) -> tuple[str, list[Any]]:
    """The plain values of their files that functions name, and the others."""
    named: dict[str, Any] = {}
    for function in functions:
        known = function.__globals__
        named |= {name: known[name] for name in _names(function.__code__) if name in known}
    plain = sorted((name, value) for name, value in named.items() if _is_plain(value))
    return repr(plain), [named[name] for name in sorted(named) if not _is_plain(named[name])]


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
