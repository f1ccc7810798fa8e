"""What a module computes beside its weights: the code of its classes and all that they refer to."""

from __future__ import annotations

import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from dataclasses import fields, is_dataclass
from enum import Enum
from functools import partial
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Their code is told apart by their versions, which are part of a lineage.
_LIBRARIES = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "sklearn")
_INTERNAL = {*vars(nn.Module()), *vars(GraphModule(nn.Module(), torch.fx.Graph()))}
_ADDRESS = " at 0x"
_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, partial)


def code_digest(*of: Any) -> str:
    """Sha256 of modules, classes and functions: their sources, and those of what they refer to.

    A class brings its bases; a function the functions, classes and values that it names and that its file
    defines or imports, libraries' left out; a module the attributes of all its parts, such as a number of
    heads, an activation or a buffer that is not stored, which neither its layers nor its weights tell.
    """
    digest = hashlib.sha256()
    waiting, seen = deque(of), set[int]()
    kept = []  # what is made on the way: an id must not be another's later
    while waiting:
        each = waiting.popleft()
        if id(each) in seen:
            continue
        seen.add(id(each))
        kept.append(each)
        text, named = _told(each)
        waiting.extend(named)
        digest.update(text.encode())
    return digest.hexdigest()


def _told(of: Any) -> tuple[str, list[Any]]:
    """What something says by itself, and what else it refers to."""
    named: list[Any] = []
    if isinstance(of, nn.Module):
        told = []
        for name, part in of.named_modules():
            held = [(key, value) for key, value in vars(part).items() if key not in _INTERNAL]
            unstored = [(key, part._buffers[key]) for key in part._non_persistent_buffers_set]
            code = part.code if isinstance(part, GraphModule) else ""
            told.append((name, type(part).__qualname__, code, _values([*held, *unstored], named)))
        return repr(told), [*named, *(type(part) for part in of.modules())]
    if isinstance(of, partial):
        return _values([*enumerate(of.args), *of.keywords.items()], named), [of.func, *named]
    if isinstance(of, MethodType):
        return "", [of.__func__, of.__self__]
    if isinstance(of, type) and _is_own(of):
        functions = [function for member in vars(of).values() for function in _functions(member)]
        return _source(of) + _values(_globals(functions), named), [*of.__bases__, *named]
    if isinstance(of, FunctionType) and _is_own(of):
        return _source(of) + _values(_globals([of]), named), named
    return "", []


def _values(of: Sequence[tuple[Any, Any]], named: list[Any]) -> str:
    """Named values as text; what is code or has some goes to `named`."""
    return repr(sorted((str(name), _text(value, named)) for name, value in of))


def _text(value: Any, named: list[Any], depth: int = 4) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Enum):
        return str(value)
    if isinstance(value, (*_CODE, nn.Module)):
        named.append(value)
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if isinstance(value, torch.Tensor):
        stored = value.detach().cpu().reshape(-1).view(torch.uint8).numpy()
        return f"{value.dtype} {tuple(value.shape)} {hashlib.sha256(stored.data).hexdigest()}"
    if isinstance(value, np.ndarray):
        return f"{value.dtype} {value.shape} {hashlib.sha256(np.ascontiguousarray(value).data).hexdigest()}"
    if isinstance(value, ModuleType) or depth == 0:
        return type(value).__qualname__
    if isinstance(value, dict):
        parts = sorted((repr(key), _text(each, named, depth - 1)) for key, each in value.items())
    elif isinstance(value, set | frozenset):
        parts = sorted(("", _text(each, named, depth - 1)) for each in value)
    elif isinstance(value, tuple | list):
        parts = [("", _text(each, named, depth - 1)) for each in value]
    elif is_dataclass(value):
        parts = [(f.name, _text(getattr(value, f.name), named, depth - 1)) for f in fields(value)]
    elif _ADDRESS not in (text := repr(value)):
        return text
    else:
        parts = sorted(
            (key, _text(each, named, depth - 1)) for key, each in getattr(value, "__dict__", {}).items()
        )
    return f"{type(value).__qualname__} {parts}"


def _globals(functions: Sequence[FunctionType]) -> list[tuple[str, Any]]:
    """The constants and code of their files that functions name, and of the functions around them.

    What may change while a program runs, as a cache does, is none.
    """
    found: dict[str, Any] = {}
    for function in functions:
        known = dict(function.__globals__)
        for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
            try:
                known[name] = cell.cell_contents
            except ValueError:  # it is not set yet
                continue
        names = {*_names(function.__code__), *function.__code__.co_freevars}
        found |= {name: known[name] for name in names if name in known and _is_constant(known[name])}
    return sorted(found.items(), key=lambda item: item[0])


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
        unwrapped = inspect.unwrap(member)
        if isinstance(unwrapped, FunctionType):
            yield unwrapped


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | list | frozenset):
        return all(_is_constant(each) for each in value)
    return isinstance(value, (*_PLAIN, Enum, *_CODE))


def _is_own(of: type | Callable[..., Any]) -> bool:
    package = of.__module__.partition(".")[0]
    return package not in _LIBRARIES and package not in sys.stdlib_module_names
