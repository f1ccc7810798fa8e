"""What a module computes beside its weights: the code of its classes and all that they refer to.

The same in every process: neither addresses nor the order of sets are part of it.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import sys
from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Set
from dataclasses import is_dataclass
from enum import Enum
from functools import cached_property, partial, singledispatchmethod
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import torch
from torch import nn
from torch.fx import GraphModule

_PLAIN = (bool, int, float, complex, str, bytes, type(None))
# Their code is told apart by their versions, which are part of a lineage.
_LIBRARIES = ("torch", "transformers", "numpy", "onnx", "onnxruntime", "sklearn", "pydantic", "pydantic_core")
_INTERNAL = {*vars(nn.Module()), *vars(GraphModule(nn.Module(), torch.fx.Graph()))}
_ADDRESS = " at 0x"
_CODE = (type, FunctionType, BuiltinFunctionType, MethodType, partial, torch.jit.ScriptFunction, nn.Module)
_DEPTH = 4  # of what objects hold
# Instructions that read a name of the file; the second in the bodies of classes.
_READS = ("LOAD_GLOBAL", "LOAD_NAME", "LOAD_FROM_DICT_OR_GLOBALS")


def code_digest(*of: Any) -> str:
    """Sha256 of modules, classes and functions: their sources, and those of what they refer to.

    A class brings its bases; a function the functions, classes and constants that it names and that its file
    defines or imports, libraries' left out; a module the attributes of all its parts, such as a number of
    heads, an activation or a buffer that is not stored, which neither its layers nor its weights tell. What
    may change while a program runs, as a global dictionary does, is no constant.
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
            code = ""
            if isinstance(part, GraphModule):
                code = part.code
                named += [node.target for node in part.graph.nodes if node.op == "call_function"]
            elif isinstance(part, torch.jit.ScriptModule) and hasattr(part, "forward"):
                code = str(part.code)
            told.append((name, type(part).__qualname__, code, _values([*held, *unstored], named)))
        return repr(told), [*named, *(type(part) for part in of.modules())]
    if isinstance(of, torch.jit.ScriptFunction):
        return str(of.code), []
    if isinstance(of, partial):
        return _values([*enumerate(of.args), *of.keywords.items()], named), [of.func, *named]
    if isinstance(of, MethodType):
        return _text(of.__self__, named), [of.__func__, *named]
    if isinstance(of, type):
        if not _is_own(of):  # what is made of one's own, as torch's parametrized layers, has it as a base
            return "", list(of.__bases__)
        named = [function for member in vars(of).values() for function in _functions(member)]
        codes = [each.__code__ for each in named if isinstance(each, FunctionType)]
        counted = {name for code in codes for name in _named(code, "STORE_ATTR")}
        constants = [
            (name, member)
            for name, member in vars(of).items()
            if not name.startswith("__") and name not in counted and _is_constant(member)
        ]
        return _source(of) + _values(constants, named), [*of.__bases__, *named]
    if isinstance(of, FunctionType) and _is_own(of):
        defaults = [*enumerate(of.__defaults__ or ()), *(of.__kwdefaults__ or {}).items()]
        text = _source(of) + _code(of.__code__) + _values([*defaults, *_globals(of)], named)
        return text, [*named, *_wrapped(of)]
    return "", _wrapped(of)


def _values(of: Iterable[tuple[Any, Any]], named: list[Any]) -> str:
    """Named values as text; what is code or has some goes to `named`."""
    return repr(sorted((str(name), _text(value, named)) for name, value in of))


def _text(value: Any, named: list[Any], depth: int = _DEPTH) -> str:
    if isinstance(value, _PLAIN):
        return repr(value)
    if isinstance(value, Enum):
        named.append(type(value))
        return f"{value} {_text(value.value, named, 1)}"
    if isinstance(value, _CODE) or _wrapped(value):
        named.append(value)
        return str(getattr(value, "__qualname__", type(value).__qualname__))
    if isinstance(value, torch.Tensor):
        return f"{value.dtype} {tuple(value.shape)} {_sha256(value)}"
    if isinstance(value, np.ndarray) and not value.dtype.hasobject:
        return f"{value.dtype} {value.shape} {hashlib.sha256(value.tobytes()).hexdigest()}"
    if isinstance(value, ModuleType) or depth == 0:
        return type(value).__qualname__
    if isinstance(value, np.ndarray):
        value = value.tolist()
    named.append(type(value))
    if isinstance(value, Mapping):
        parts = _in_order(value.items(), named, depth + 1)
    elif isinstance(value, Set):
        parts = _in_order(value, named, depth)
    elif isinstance(value, tuple | list | deque):
        parts = [_text(each, named, depth - 1) for each in value]
    elif attributes := _attributes(value):
        parts = _in_order(attributes.items(), named, depth + 1)
    else:
        return _said(value)
    return f"{type(value).__qualname__} {parts}"


def _in_order(of: Iterable[Any], named: list[Any], depth: int) -> list[str]:
    """The texts of what has no order, or one that does not matter, and their code in the same order."""
    told = []
    for each in of:
        own: list[Any] = []
        told.append((_text(each, own, depth - 1), own))
    told.sort(key=lambda item: (item[0], [_place(code) for code in item[1]]))
    for _, own in told:
        named.extend(own)
    return [text for text, _ in told]


def _place(code: Any) -> str:
    """What tells code of the same name apart, the same in every process."""
    return repr(code) if isinstance(code, nn.Module) else str(getattr(code, "__module__", ""))


def _attributes(value: Any) -> dict[str, Any]:
    """What an object holds; nothing of the standard library's and torch's, which say it themselves."""
    kind = type(value)
    if _package(kind) in {*sys.stdlib_module_names, "torch"} and kind is not SimpleNamespace:
        return {}
    held = dict(getattr(value, "__dict__", {}))
    for base in kind.__mro__:
        slots = vars(base).get("__slots__", ())
        names = (slots,) if isinstance(slots, str) else slots
        held |= {name: getattr(value, name) for name in names if hasattr(value, name)}
    held.pop("__dict__", None)
    held.pop("__weakref__", None)
    return held


def _said(value: Any) -> str:
    """What an object says of itself, if that is the same in every process."""
    name = type(value).__qualname__
    if _package(type(value)) == "logging":  # their levels are of the process
        return name
    try:
        text = repr(value)
    except Exception:  # it may be anything
        return name
    return name if _ADDRESS in text else text


def _sha256(tensor: torch.Tensor) -> str:
    if tensor.is_meta:
        return ""
    plain = tensor.detach().cpu()
    if plain.is_quantized:
        plain = plain.dequantize()
    elif plain.layout is not torch.strided:
        plain = plain.to_dense()
    plain = plain.resolve_conj().resolve_neg().reshape(-1)
    return hashlib.sha256(plain.view(torch.uint8).numpy().tobytes()).hexdigest()


def _globals(function: FunctionType) -> list[tuple[str, Any]]:
    """The constants and code of its file that a function names, and of the functions around it."""
    known = dict(function.__globals__)
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            known[name] = cell.cell_contents
        except ValueError:  # it is not set yet
            continue
    code = function.__code__
    names = {*_named(code, *_READS), *code.co_freevars} - {*_named(code, "STORE_GLOBAL")}
    attributes = {*_named(code, "LOAD_ATTR", "LOAD_METHOD")}
    return sorted(_constants(known, names, attributes), key=lambda item: item[0])


def _constants(
    known: Mapping[str, Any], names: Set[str], attributes: Set[str], within: str = ""
) -> Iterator[tuple[str, Any]]:
    for name in names & known.keys():
        value = known[name]
        if isinstance(value, ModuleType):
            if _is_own(value) and within.count(".") < _DEPTH:
                yield from _constants(vars(value), attributes, attributes, f"{within}{name}.")
        elif _is_constant(value):
            yield within + name, value
        elif isinstance(value, dict):  # it may be a cache; what it chooses from is code
            yield from (
                (f"{within}{name}.{key}", each) for key, each in value.items() if isinstance(each, _CODE)
            )
        elif _is_own(type(value)):
            yield within + name, type(value)


def _source(of: type | FunctionType) -> str:
    """Its source, or of what was made without one, as by `exec`, its name."""
    try:
        return inspect.getsource(of.__code__ if isinstance(of, FunctionType) else of)
    except (OSError, TypeError):
        return f"{of.__module__}.{of.__qualname__}"


def _code(code: CodeType) -> str:
    """A function's instructions, which tell two in a line from each other."""
    constants = [_code(each) if isinstance(each, CodeType) else _text(each, []) for each in code.co_consts]
    return f"{code.co_code.hex()} {code.co_names} {constants}"


def _named(code: CodeType, *how: str) -> Iterator[str]:
    """Names that a function reads or changes by these instructions, of its file or of an object."""
    yield from (str(each.argval) for each in dis.get_instructions(code) if each.opname in how)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _named(constant, *how)


def _functions(member: Any) -> list[Any]:
    """The functions behind a class's member."""
    if isinstance(member, property):
        return [each for each in (member.fget, member.fset, member.fdel) if each is not None]
    if isinstance(member, staticmethod | classmethod):
        return [member.__func__]
    if isinstance(member, cached_property | singledispatchmethod):
        return [member.func]
    return [member] if isinstance(member, FunctionType) else _wrapped(member)


def _wrapped(of: Any) -> list[Any]:
    """The function that something stands around, as `functools.lru_cache` does."""
    inner = inspect.getattr_static(of, "__wrapped__", None)
    return [inner] if isinstance(inner, FunctionType) else []


def _is_constant(value: Any) -> bool:
    if isinstance(value, tuple | list | frozenset):
        return all(_is_constant(each) for each in value)
    if is_dataclass(value) and not isinstance(value, type):
        return bool(type(value).__dataclass_params__.frozen)  # type: ignore[attr-defined]
    return isinstance(value, (*_PLAIN, *_CODE, Enum, torch.Tensor, np.ndarray)) or bool(_wrapped(value))


def _is_own(of: Any) -> bool:
    package = _package(of)
    return package not in _LIBRARIES and package not in sys.stdlib_module_names


def _package(of: Any) -> str:
    module = of.__name__ if isinstance(of, ModuleType) else of.__module__
    return (module or "").partition(".")[0]
