"""Tensors on the wire: values in JSON or in the binary tensor extension, to and from arrays.

Everything a client can get wrong ends in `BadRequestError`. Arrays that are read share memory with the bytes
they came from and are read-only.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable
from itertools import chain
from typing import Any, Final

import numpy as np
import orjson

from compression.signature import Array, TensorSpec
from service.errors import BadRequestError

# Protocol datatype -> dtype name in a `TensorSpec`. BF16 is missing: numpy has no such dtype.
DATATYPES: Final[dict[str, str]] = {
    "BOOL": "bool",
    "UINT8": "uint8",
    "UINT16": "uint16",
    "UINT32": "uint32",
    "UINT64": "uint64",
    "INT8": "int8",
    "INT16": "int16",
    "INT32": "int32",
    "INT64": "int64",
    "FP16": "float16",
    "FP32": "float32",
    "FP64": "float64",
    "BYTES": "bytes",
}
DTYPE_DATATYPES: Final[dict[str, str]] = {dtype: datatype for datatype, dtype in DATATYPES.items()}

# The exact types that orjson may give for the values of each numpy kind. One set over all values is the whole
# check, nesting and null included: converting first and looking at the result misses booleans among numbers,
# which struct and numpy both take for 0 and 1.
_JSON_TYPES: Final[dict[str, frozenset[type]]] = {
    "b": frozenset({bool}),
    "u": frozenset({int}),
    "i": frozenset({int}),
    "f": frozenset({int, float}),
    "O": frozenset({str}),
}
_REMEDIES: Final[dict[str, str]] = {
    "b": "Send JSON booleans.",
    "u": "Send whole numbers in that range.",
    "i": "Send whole numbers in that range.",
    "f": "Send JSON numbers in that range.",
    "O": "Send strings, or binary data for bytes that are not UTF-8.",
}
# As `struct` writes them in its standard (little-endian) sizes. BYTES has no fixed size and no code.
_STRUCT_CODES: Final[dict[str, str]] = {
    "bool": "?",
    "uint8": "B",
    "uint16": "H",
    "uint32": "I",
    "uint64": "Q",
    "int8": "b",
    "int16": "h",
    "int32": "i",
    "int64": "q",
    "float16": "e",
    "float32": "f",
    "float64": "d",
}
_LENGTH = struct.Struct("<I")
_SHOWN_BYTES = 48
_MAX_PACKS = 256


def quoted(value: object) -> str:
    """The value as JSON, cut short: what a client sent may be long, and an answer must not be."""
    try:
        text = orjson.dumps(value)
    except TypeError:  # nested deeper than orjson writes
        return "a deeply nested value"
    if len(text) <= _SHOWN_BYTES:
        return text.decode()
    return text[:_SHOWN_BYTES].decode(errors="ignore") + "..."


class BinaryTail:
    """The bytes behind the JSON header, handed out in the order of the inputs."""

    __slots__ = ("_body", "_offset")

    def __init__(self, body: memoryview, offset: int) -> None:
        self._body = body
        self._offset = offset

    def take(self, length: object, name: str) -> memoryview:
        """The next `length` bytes, which belong to the input of this name.

        Raises:
            BadRequestError: The length is none, or fewer bytes are left.
        """
        if type(length) is not int or length < 0:
            raise BadRequestError(
                f'input "{name}" has binary_data_size {quoted(length)}; expected its length in bytes. '
                "Send a whole number that is not negative."
            )
        start, self._offset = self._offset, self._offset + length
        if self._offset > len(self._body):
            raise BadRequestError(
                f'input "{name}" has binary_data_size {length}, but {len(self._body) - start} bytes follow. '
                "Send all of the binary data."
            )
        return self._body[start : self._offset]

    def check_used_up(self) -> None:
        """Checks that no byte is left.

        Raises:
            BadRequestError: Some are.
        """
        if self._offset != len(self._body):
            raise BadRequestError(
                f"{len(self._body) - self._offset} bytes are left over behind the last input. "
                "Make the sizes in binary_data_size add up to what follows the JSON header."
            )


class TensorReader:
    """Reads one input of a model from a request; prepared once per model.

    Attributes:
        spec: The input.
        datatype: Its protocol datatype.
    """

    __slots__ = (
        "_check_finite",
        "_code",
        "_dtype",
        "_expected",
        "_json_types",
        "_packs",
        "_takes_numbers",
        "datatype",
        "spec",
    )

    def __init__(self, spec: TensorSpec, allow_non_finite: bool = False) -> None:
        """Prepares for `spec`.

        Raises:
            KeyError: The protocol has no datatype for the dtype.
        """
        self.spec = spec
        self.datatype = DTYPE_DATATYPES[spec.dtype]
        self._dtype = np.dtype(object if spec.dtype == "bytes" else spec.dtype)
        self._code = _STRUCT_CODES.get(spec.dtype, "")
        self._packs: dict[int, Callable[..., bytes]] = {}
        self._takes_numbers = self._dtype.kind in "iuf"
        self._json_types = _JSON_TYPES[self._dtype.kind]
        self._check_finite = self._dtype.kind == "f" and not allow_non_finite
        self._expected = f"{self.datatype}, {_values(self._dtype)}"

    def read_json(self, data: object, shape: list[int], may_hold_booleans: bool = True) -> Array:
        """Values from a JSON list, flat or nested exactly as `shape`, strictly typed.

        Args:
            data: The list, as orjson read it.
            shape: Lengths of the axes, each at least 1.
            may_hold_booleans: Whether true or false may be among the values.

        Raises:
            BadRequestError: Not a list, ragged, a wrong number of values, or a value of another type.
        """
        if type(data) is not list:
            raise self._error(f"has {quoted(data)} as data; expected a list", "Send a flat or a nested list.")
        count = math.prod(shape)
        if self._takes_numbers and not may_hold_booleans and len(data) == count:
            # struct refuses whatever else is none of the datatype's values; only booleans are numbers to it.
            try:
                return np.ndarray(shape, self._dtype, self._pack(count)(*data))
            except (struct.error, OverflowError, TypeError):
                pass  # nested, or wrong: that is found out below
        kinds = set(map(type, data))
        if list in kinds:
            data = self._flattened(data, shape)
            kinds = set(map(type, data))
        if len(data) != count:
            raise self._error(
                f"has {len(data)} value(s); expected {count} for its shape {shape}",
                "Make data and shape agree.",
            )
        if not kinds <= self._json_types:
            raise self._wrong_value(data)
        if not self._code:
            return _object_array([text.encode() for text in data]).reshape(shape)
        # struct takes a third of np.array's time on a list, and refuses what does not fit the datatype. The
        # "<" matters: native "f" would turn an overflow into an infinity. orjson reads no NaN, infinity or
        # 1e400, so whatever passes is finite.
        try:
            return np.ndarray(shape, self._dtype, self._pack(count)(*data))
        except (struct.error, OverflowError):
            raise self._wrong_value(data) from None

    def _pack(self, count: int) -> Callable[..., bytes]:
        """Writes so many values as bytes; remembered, for the same counts come again."""
        pack = self._packs.get(count)
        if pack is None:
            if len(self._packs) == _MAX_PACKS:
                self._packs.clear()
            pack = self._packs[count] = struct.Struct(f"<{count}{self._code}").pack
        return pack

    def read_binary(self, raw: memoryview, shape: list[int]) -> Array:
        """Values from little-endian row-major bytes, without a copy where they are aligned.

        Args:
            raw: All bytes of this tensor and nothing else; they must not change while the array lives.
            shape: Lengths of the axes, each at least 1.

        Raises:
            BadRequestError: The bytes are not exactly such a tensor, or hold a value that is not accepted.
        """
        count = math.prod(shape)
        if not self._code:
            return _object_array(self._elements(raw, count)).reshape(shape)
        if len(raw) != count * self._dtype.itemsize:
            raise self._error(
                f"has {len(raw)} bytes of binary data; expected {count * self._dtype.itemsize} "
                f"for shape {shape} of {self.datatype}",
                "Make binary_data_size, shape and datatype agree.",
            )
        array: Array = np.frombuffer(raw, self._dtype)
        if not array.flags.aligned:
            array = array.copy()
        if self._check_finite and not _all_finite(array):
            at = int(np.isfinite(array).argmin())
            raise self._error(
                f"has {array[at]} at value {at}; expected finite numbers", "Replace or mask it."
            )
        if self._code == "?" and (raw_max := int(array.view(np.uint8).max())) > 1:
            raise self._error(
                f"has the byte {raw_max} among its BOOL values; expected 0 or 1", "Send 0 or 1."
            )
        return array.reshape(shape)

    def _flattened(self, data: list[Any], shape: list[int]) -> list[Any]:
        """The innermost values. By levels, not by recursion: a client decides how deep the nesting is."""
        level = data
        regular = len(level) == (shape[0] if shape else 1)
        for length in shape[1:]:
            regular = regular and set(map(type, level)) == {list} and set(map(len, level)) == {length}
            if not regular:
                break
            level = list(chain.from_iterable(level))
        if not regular or list in map(type, level):
            raise self._error(
                f"has ragged data, or data nested otherwise than its shape {shape}",
                "Send a flat list, or lists nested exactly as the shape.",
            )
        return level

    def _elements(self, raw: memoryview, count: int) -> list[bytes]:
        """The byte strings of a BYTES tensor: each is a 4-byte little-endian length, then as many bytes."""
        elements: list[bytes] = []
        offset = 0
        while offset < len(raw) and len(elements) < count:
            start = offset + _LENGTH.size
            length = _LENGTH.unpack_from(raw, offset)[0] if start <= len(raw) else 0
            offset = start + length
            if offset > len(raw):
                break
            elements.append(bytes(raw[start:offset]))
        if offset != len(raw) or len(elements) != count:
            raise self._error(
                f"has {len(raw)} bytes of binary data that are not {count} BYTES element(s)",
                "Write each element as a 4-byte little-endian length and then its bytes.",
            )
        return elements

    def _wrong_value(self, data: list[Any]) -> BadRequestError:
        at = next((index for index, value in enumerate(data) if not self._fits(value)), 0)
        return self._error(
            f"has {quoted(data[at])} at value {at}; expected {self._expected}", _REMEDIES[self._dtype.kind]
        )

    def _fits(self, value: object) -> bool:
        if type(value) not in self._json_types:
            return False
        if not self._code:
            return True
        try:
            struct.pack(f"<{self._code}", value)
        except (struct.error, OverflowError):
            return False
        return True

    def _error(self, fact: str, remedy: str) -> BadRequestError:
        return BadRequestError(f'input "{self.spec.name}" {fact}. {remedy}')


def json_values(array: Array, spec: TensorSpec) -> Array | list[str]:
    """An output as orjson (with `OPT_SERIALIZE_NUMPY`) writes it: flat, row-major.

    NaN and infinities become null, for JSON has none of them; binary outputs carry them.

    Raises:
        BadRequestError: A BYTES output holds bytes that are not UTF-8; only binary can carry them.
        TypeError: The array's dtype cannot become the output's, which is the runtime's fault.
    """
    if spec.dtype != "bytes":
        return _as_declared(array, spec)
    try:
        return [element.decode() for element in _byte_strings(array)]
    except UnicodeDecodeError:
        raise BadRequestError(
            f'output "{spec.name}" holds bytes that are not UTF-8, and JSON cannot carry them. '
            "Ask for it in binary: set the output's parameter binary_data to true."
        ) from None


def binary_values(array: Array, spec: TensorSpec) -> bytes | memoryview:
    """An output as the binary tensor extension writes it: row-major little-endian bytes.

    Raises:
        TypeError: The array's dtype cannot become the output's, which is the runtime's fault.
    """
    if spec.dtype != "bytes":
        return _as_declared(array, spec).view(np.uint8).data
    elements = _byte_strings(array)
    return b"".join(chain.from_iterable((_LENGTH.pack(len(element)), element) for element in elements))


def _as_declared(array: Array, spec: TensorSpec) -> Array:
    """Flat, contiguous and of the declared dtype; a variant may compute in another precision."""
    return array.astype(spec.dtype, order="C", casting="same_kind", copy=False).reshape(-1)


def _byte_strings(array: Array) -> list[bytes]:
    """The elements of an array of bytes or strings; runtimes give either."""
    return [
        element if type(element) is bytes else str(element).encode(errors="surrogatepass")
        for element in array.reshape(-1).tolist()
    ]


def _object_array(elements: list[bytes]) -> Array:
    # Not np.array(elements): that makes a fixed-width dtype, which drops trailing zero bytes.
    array = np.empty(len(elements), dtype=object)
    array[:] = elements
    return array


def _all_finite(array: Array) -> bool:
    # count_nonzero and not .all(): a third of the time on a small array.
    return int(np.count_nonzero(np.isfinite(array))) == array.size


def _values(dtype: np.dtype[Any]) -> str:
    if dtype.kind in "iu":
        limits = np.iinfo(dtype)
        return f"integers from {limits.min} to {limits.max}"
    if dtype.kind == "f":
        return f"numbers up to {float(np.finfo(dtype).max):.4g} in magnitude"
    return "true or false" if dtype.kind == "b" else "strings"
