"""Every peer answers rows before it is timed, and is held against a direct call of the same file."""

from __future__ import annotations

import http.client
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.bench.processes import PeerError, Server, ask
from loadtests.bench.requests import Array, Request, Wire
from loadtests.samples import Samples

_TOLERANCE = 2e-3


@dataclass(frozen=True, slots=True)
class Checked:
    """How a peer answered the rows of the check.

    Attributes:
        rows: How many.
        correct: Those whose class is the label; None without labels.
    """

    rows: int
    correct: int | None


def check(server: Server, wire: Wire, samples: Samples, expected: Array | None) -> Checked:
    """Sends every row once.

    Args:
        server: Who is asked.
        wire: How.
        samples: The rows, with their labels.
        expected: What a direct call answers `(rows, ...)`; None where the variant is not known beforehand.

    Raises:
        PeerError: An answer is none, or differs from the direct call's.
    """
    requests = wire.requests(samples)
    answers = [_answer(server, wire, request) for request in requests]
    if wire.read is None:
        for request, body in zip(requests, answers, strict=True):
            if body.tobytes() != request.body:
                raise PeerError(f"{server.peer.name} does not send the body back.")
        return Checked(len(requests), None)
    if expected is not None:
        _compare(server.peer.name, answers, expected)
    if samples.labels is None:
        return Checked(len(answers), None)
    right = sum(
        int(answer.argmax()) == int(label) for answer, label in zip(answers, samples.labels, strict=True)
    )
    return Checked(len(answers), right)


def _compare(name: str, answers: Sequence[Array], expected: Array) -> None:
    for number, (answer, row) in enumerate(zip(answers, expected, strict=True)):
        flat = row.reshape(-1)
        if answer.shape != flat.shape or not np.allclose(answer, flat, rtol=_TOLERANCE, atol=_TOLERANCE):
            raise PeerError(
                f"{name} answers row {number} with {answer[:3]}..., and a direct call with {flat[:3]}..."
            )


def _answer(server: Server, wire: Wire, request: Request) -> Array:
    try:
        status, body, headers = ask(server.port, request)
    except (OSError, http.client.HTTPException) as error:
        raise PeerError(f"{server.peer.name} does not answer: {error!r}") from error
    if status != http.client.OK:
        raise PeerError(f"{server.peer.name} answers {status}: {body[:300].decode(errors='replace')}")
    if wire.read is None:
        return np.frombuffer(body, np.uint8)
    try:
        return wire.read(body, headers)
    except (ValueError, KeyError, TypeError, IndexError) as error:
        raise PeerError(f"{server.peer.name} answers what cannot be read: {error!r}") from error
