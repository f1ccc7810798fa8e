"""Mixed traffic over many connections: every answer is what the runtime computes for that very request.

Tiers, variants, batch sizes, JSON and binary, several requests in one piece, requests in many pieces, clients
that leave, bodies that are none: no answer may go to the wrong request, and none may be lost.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest

from compression.data import Split
from tests.commands import said
from tests.conftest import Homes
from tests.gateway import Gateway, request, running
from variants.catalog import SAMPLES_FILE, Catalog
from variants.runtime import Runtime, open_session
from variants.samples import read_split

CONNECTIONS, SECONDS = 24, 12.0
TARGETS = ("accurate", "balanced", "fast", "fp32", "int8-static", "pruned", "distilled")
TIERS = TARGETS[:3]
PATIENT = {"max_latency_ms": 20_000.0}  # what is late where the host stalls is another test's matter
MALFORMED = (b"{", b"[]", b'{"inputs": 7}', b'{"inputs": [{"name": "image"}]}', b"\x00\xff", b"")

# Dynamic quantization takes its range from the whole batch: the others in it move an answer, by far less than
# one row's answer is from another's.
_APART = {"int8-dynamic": 0.2}

Expected = Mapping[str, np.ndarray]


@dataclass
class Asked:
    """A request that was sent.

    Attributes:
        raw: Its bytes.
        name: Its id.
        start: The first row that it sent.
        rows: How many, 0 where its body is none.
        version: The variant that it names, or None.
    """

    raw: bytes
    name: str
    start: int = 0
    rows: int = 0
    version: str | None = None


@dataclass
class Seen:
    """What came of everything."""

    outcomes: Counter[str] = field(default_factory=Counter)
    answered_by: Counter[str] = field(default_factory=Counter)


@pytest.fixture
def gateway(homes: Homes) -> Iterator[Gateway]:
    with running(homes, workers=2) as started:
        yield started


@pytest.fixture
def samples(digits: Catalog) -> Split:
    return read_split(digits.card_file("digits", SAMPLES_FILE))


@pytest.fixture
def expected(digits: Catalog, homes: Homes, samples: Split) -> Expected:
    """What each variant says to each row, by a session of this process on the runtime that serves it."""
    return expected_of(digits, said(homes, "show", "digits"), samples)


def expected_of(digits: Catalog, shown: Mapping[str, Any], samples: Split) -> Expected:
    answers = {}
    for variant in shown["variants"]:
        entry = digits.card("digits").find(variant["name"])
        runtime = Runtime(variant["runtime"], variant["precision"], variant["threads"])
        session = open_session(digits.open(entry.id).model_path, runtime)
        answers[variant["name"]] = session.run({"image": samples.inputs["image"]})[0]
    return answers


class Client:
    """One connection after another, each with requests of all kinds."""

    def __init__(self, number: int, port: int, rows: np.ndarray, expected: Expected, seen: Seen) -> None:
        self._draw = random.Random(number)
        self._number, self._port, self._rows = number, port, rows
        self._expected, self._seen = expected, seen
        self._count = 0

    async def run(self, seconds: float) -> None:
        end = asyncio.get_running_loop().time() + seconds
        while asyncio.get_running_loop().time() < end:
            reader, writer = await asyncio.open_connection("127.0.0.1", self._port)
            try:
                for _ in range(self._draw.randint(1, 60)):
                    if not await self._turn(reader, writer):
                        break
            finally:
                writer.close()

    async def _turn(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """Some requests and their answers; whether the connection goes on."""
        kind = self._draw.random()
        if kind < 0.03:  # leaves, with or without all of a request sent
            asked = self._make()
            writer.write(asked.raw[: self._draw.choice([len(asked.raw), len(asked.raw) // 2, 5])])
            await writer.drain()
            self._seen.outcomes["left"] += 1
            return False
        many = [self._make() for _ in range(self._draw.choice([1, 1, 1, 2, 5]))]
        raw = b"".join(asked.raw for asked in many)
        if kind < 0.15:  # in pieces
            cut = self._draw.randrange(1, len(raw))
            writer.write(raw[:cut])
            await writer.drain()
            await asyncio.sleep(0.002)
            raw = raw[cut:]
        writer.write(raw)
        for asked in many:
            self._judge(asked, *await _answer(reader))
        return True

    def _make(self) -> Asked:
        self._count += 1
        name = f"{self._number}-{self._count}"
        if self._draw.random() < 0.05:
            return Asked(_post("digits", self._draw.choice(MALFORMED)), name)
        rows = self._draw.choice([1, 1, 1, 1, 2, 7, 40])
        start = self._draw.randrange(len(self._rows) - rows)
        target = self._draw.choice(TARGETS)
        version = None if target in TIERS else target
        wishes = PATIENT | ({"tier": target} if version is None else {})
        document = request(self._rows[start : start + rows], **wishes) | {"id": name}
        path = "digits" if version is None else f"digits/versions/{version}"
        values = self._rows[start : start + rows]
        raw = _binary(path, document, values) if self._draw.random() < 0.3 else _json(path, document)
        return Asked(raw, name, start, rows, version)

    def _judge(self, asked: Asked, status: int, headers: Mapping[str, str], body: bytes) -> None:
        if not asked.rows:
            assert status == 400, body
            self._seen.outcomes["refused"] += 1
            return
        assert status == 200, body
        said, values = _read(headers, body)
        variant = headers["x-mipgate-variant"]
        assert said["id"] == headers["x-mipgate-request-id"] == asked.name
        assert asked.version in (None, variant)
        truth = self._expected[variant][asked.start : asked.start + asked.rows]
        apart = _APART.get(variant, 1e-3)
        np.testing.assert_allclose(values.reshape(truth.shape), truth, rtol=apart, atol=apart)
        self._seen.outcomes["answered"] += 1
        self._seen.answered_by[variant] += 1


def _post(path: str, body: bytes, *lines: bytes) -> bytes:
    head = [b"POST /v2/models/%b/infer HTTP/1.1" % path.encode(), b"Host: here", *lines]
    return b"\r\n".join([*head, b"Content-Length: %d" % len(body), b"", body])


def _json(path: str, document: dict[str, object]) -> bytes:
    return _post(path, json.dumps(document).encode(), b"Content-Type: application/json")


def _binary(path: str, document: dict[str, object], values: np.ndarray) -> bytes:
    tail = values.astype("<f4").tobytes()
    tensor = {"name": "image", "datatype": "FP32", "shape": list(values.shape)}
    document["inputs"] = [tensor | {"parameters": {"binary_data_size": len(tail)}}]
    wishes = document["parameters"]
    assert isinstance(wishes, dict)
    document["parameters"] = wishes | {"binary_data_output": True}
    header = json.dumps(document).encode()
    return _post(path, header + tail, b"Inference-Header-Content-Length: %d" % len(header))


async def _answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, str], bytes]:
    head = (await asyncio.wait_for(reader.readuntil(b"\r\n\r\n"), 30)).decode("latin-1")
    first, *lines = head.split("\r\n")
    headers = {name.lower(): value for name, _, value in (line.partition(": ") for line in lines if line)}
    return int(first.split()[1]), headers, await reader.readexactly(int(headers["content-length"]))


def _read(headers: Mapping[str, str], body: bytes) -> tuple[dict[str, Any], np.ndarray]:
    length = headers.get("inference-header-content-length")
    if length is None:
        said = json.loads(body)
        return said, np.array(said["outputs"][0]["data"], np.float32)
    return json.loads(body[: int(length)]), np.frombuffer(body[int(length) :], "<f4")


def test_no_answer_goes_to_the_wrong_request_and_none_is_lost(
    gateway: Gateway, samples: Split, expected: Expected
) -> None:
    seen, rows = Seen(), samples.inputs["image"]

    async def everybody() -> None:
        clients = [Client(number, gateway.port, rows, expected, seen) for number in range(CONNECTIONS)]
        await asyncio.gather(*(client.run(SECONDS) for client in clients))

    asyncio.run(everybody())
    assert seen.outcomes["answered"] > 1000
    assert seen.outcomes["refused"] > 20
    assert seen.outcomes["left"] > 20
    assert {"fp32", "int8-static", "pruned", "distilled"} <= set(seen.answered_by)
    assert gateway.log.read_text().count("Traceback") == 0
    assert len(gateway.workers()) == 2
