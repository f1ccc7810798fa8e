"""What came back: read, and held against what was asked. Pure, and called once per request."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import orjson

from loadtests.samples import DATATYPES
from loadtests.targets import Target

_DTYPES = {datatype: dtype for dtype, datatype in DATATYPES.items()}


class AnswerError(Exception):
    """An answer is not one, or not to what was asked."""


@dataclass(frozen=True, slots=True)
class Answer:
    """What a response says.

    Attributes:
        variant: The recipe that answered.
        version: The exact variant, `recipe@build`.
        tier: The tier that the gateway read from the request.
        degraded: Whether the quality is below what was asked for.
        choice: The class with the highest value in the first output.
    """

    variant: str
    version: str
    tier: str
    degraded: bool
    choice: int


def read_answer(content: bytes, header_length: str | None) -> Answer:
    """Reads a response.

    Args:
        content: The HTTP body.
        header_length: The header `Inference-Header-Content-Length`; None when the body is JSON only.

    Raises:
        AnswerError: It is no answer of a Mipgate.
    """
    try:
        length = len(content) if header_length is None else int(header_length)
        document = orjson.loads(content[:length])
        said = document["parameters"]
        return Answer(
            said["variant"],
            document["model_version"],
            said["tier"],
            said["degraded"],
            _choice(document["outputs"][0], content[length:]),
        )
    except (KeyError, IndexError, TypeError, ValueError) as error:
        raise AnswerError(f"unreadable answer: {type(error).__name__} {error}") from error


def check_answer(target: Target, answer: Answer, *, allow_degrade: bool = False) -> None:
    """Holds an answer against what was asked.

    Args:
        target: What was asked.
        answer: What was answered.
        allow_degrade: Whether the request allowed a quality below its tier's.

    Raises:
        AnswerError: It came from another variant or tier, or its quality is below what was asked for.
    """
    if answer.degraded and not allow_degrade:
        raise AnswerError(f"degraded: {answer.variant} answered, and the request did not allow degrading")
    if target.kind == "variant":
        given = answer.version if "@" in target.name else answer.variant
        if given != target.name:
            raise AnswerError(f"wrong variant: {given} answered, and {target.name} was pinned")
    elif answer.tier != target.name:
        raise AnswerError(f"wrong tier: the answer is of {answer.tier}, and {target.name} was asked for")
    elif not answer.degraded and (reason := target.unfit.get(answer.variant)):
        raise AnswerError(f"unfit variant: {answer.variant} answered {target.label}; {reason}")


def gateway_time_ms(server_timing: str | None) -> float | None:
    """Milliseconds in queue and inference from a `Server-Timing` header, or None when it states none."""
    if not server_timing:
        return None
    try:
        return sum(float(part.rpartition("dur=")[2]) for part in server_timing.split(","))
    except ValueError:
        return None


def _choice(output: dict[str, Any], tail: bytes) -> int:
    data = output.get("data")
    if isinstance(data, list):
        return data.index(max(data))
    values = np.frombuffer(tail, np.dtype(_DTYPES[str(output["datatype"])]).newbyteorder("<"))
    return int(values[: int(np.prod(output["shape"]))].argmax())
