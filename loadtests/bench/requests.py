"""What is sent, and how answers are read: one wire per protocol that a peer speaks. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import orjson
from numpy.typing import NDArray

from loadtests.samples import Samples

Array = NDArray[Any]

_JSON = {"Content-Type": "application/json"}
_RAW = {"Content-Type": "application/octet-stream"}
_HEADER_LENGTH = "inference-header-content-length"


@dataclass(frozen=True, slots=True)
class Request:
    """One ready-made request.

    Attributes:
        path: Where it goes.
        body: What is sent.
        headers: The headers that belong to it.
    """

    path: str
    body: bytes
    headers: Mapping[str, str]

    def http1(self, port: int) -> bytes:
        """What goes over a connection that is kept."""
        told = {"Host": f"127.0.0.1:{port}", "Content-Length": str(len(self.body)), **self.headers}
        lines = "".join(f"{name}: {value}\r\n" for name, value in told.items())
        return f"POST {self.path} HTTP/1.1\r\n{lines}\r\n".encode() + self.body


@dataclass(frozen=True, slots=True)
class Wire:
    """How one peer is spoken to.

    Attributes:
        path: Where requests go.
        write: Requests of samples for a path, one per row.
        read: The output of an answer, flat; None of a peer that computes nothing.
    """

    path: str
    write: Callable[[str, Samples], list[Request]]
    read: Callable[[bytes, Mapping[str, str]], Array] | None = field(compare=False)

    def requests(self, samples: Samples) -> list[Request]:
        """One request per row."""
        return self.write(self.path, samples)


@dataclass(frozen=True, slots=True)
class Told:
    """What requests of the protocol say beside their tensors.

    Attributes:
        parameters: Of the body, such as a tier.
        headers: Such as a key.
    """

    parameters: Mapping[str, str | int] = field(default_factory=dict)
    headers: Mapping[str, str] = field(default_factory=dict)


NOTHING = Told()


def v2_json(path: str, told: Told = NOTHING, *, echo: bool = False) -> Wire:
    """The Open Inference Protocol in JSON."""
    return Wire(path, _v2(told, binary=False), None if echo else _read_v2)


def v2_binary(path: str, told: Told = NOTHING, *, echo: bool = False) -> Wire:
    """The same with binary tensors."""
    return Wire(path, _v2(told, binary=True), None if echo else _read_v2)


def plain_json(path: str, output: Callable[[Any], Any]) -> Wire:
    """The protocol's JSON body for a peer that answers in its own way.

    Args:
        path: Where requests go.
        output: The numbers in an answer.
    """
    return Wire(
        path,
        _v2(NOTHING, binary=False),
        lambda body, _: np.asarray(output(orjson.loads(body)), np.float32).reshape(-1),
    )


def rows_json(path: str) -> Wire:
    """`{"rows": [...]}`, as BentoML's documentation sends arrays."""

    def write(path: str, samples: Samples) -> list[Request]:
        return [
            Request(
                path,
                orjson.dumps({"rows": _first(samples)[i : i + 1]}, option=orjson.OPT_SERIALIZE_NUMPY),
                _JSON,
            )
            for i in range(samples.rows)
        ]

    return Wire(path, write, lambda body, _: np.asarray(orjson.loads(body), np.float32).reshape(-1))


def raw_bytes(path: str) -> Wire:
    """The bytes of the row, and of the answer."""

    def write(path: str, samples: Samples) -> list[Request]:
        return [Request(path, row.tobytes(), _RAW) for row in _first(samples)]

    return Wire(path, write, lambda body, _: np.frombuffer(body, np.float32))


def _first(samples: Samples) -> Array:
    """The rows of the only input."""
    return np.ascontiguousarray(next(iter(samples.inputs.values())))


def _v2(told: Told, *, binary: bool) -> Callable[[str, Samples], list[Request]]:
    def write(path: str, samples: Samples) -> list[Request]:
        bodies = samples.bodies(told.parameters, binary=binary)
        return [Request(path, body.payload, {**body.headers, **told.headers}) for body in bodies]

    return write


def _read_v2(body: bytes, headers: Mapping[str, str]) -> Array:
    length = int(headers.get(_HEADER_LENGTH, len(body)))
    output = orjson.loads(body[:length])["outputs"][0]
    if "data" in output:
        return np.asarray(output["data"], np.float32).reshape(-1)
    return np.frombuffer(body[length:], np.float32)[: int(np.prod(output["shape"]))]
