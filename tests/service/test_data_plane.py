"""What the data plane hands on to BentoML's app: from whom, and how much."""

import asyncio
from collections.abc import Iterable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Route

from service.access.access import Access, Rules
from service.access.keys import new_key
from service.access.principal import Role
from service.asgi import Message
from service.data_plane import DataPlane
from service.errors import TooLargeError
from service.exchange import Head
from tests.service.channel import channel

MOST = 1000
SHOWN, KEY = new_key("k", Role.INFER, 0.0)
WITH_KEY = [(b"authorization", f"Bearer {SHOWN}".encode())]


class Behind:
    """BentoML's app as far as it matters here: Starlette's router, and a handler that reads its body."""

    def __init__(self) -> None:
        self.bodies: list[bytes] = []
        self.app = Starlette(
            routes=[
                Route("/predict", self.predict, methods=["POST", "PUT", "DELETE", "OPTIONS", "PATCH"]),
                Route("/livez", self.live, methods=["GET"]),
            ]
        )

    async def predict(self, request: Request) -> Response:
        self.bodies.append(await request.body())
        return PlainTextResponse((await request.receive())["type"])

    async def live(self, request: Request) -> Response:
        return PlainTextResponse("live")


@pytest.fixture
def behind() -> Behind:
    return Behind()


def plane(behind: Behind, folder: Path, has_key: bool = False) -> DataPlane:
    access = Access(Rules(None, "auto", False, None), folder)
    access.follow([KEY] if has_key else [])
    operation: Any = SimpleNamespace(access=access, paths=("/admin",), app=None)
    nothing: Any = None
    return DataPlane(behind.app, nothing, nothing, operation, MOST, MOST)


def asked(
    made: DataPlane,
    path: str,
    messages: Iterable[Message],
    headers: Iterable[tuple[bytes, bytes]] = (),
    method: str = "POST",
) -> tuple[int, bytes]:
    """Status and body of the answer; 0 where there was none."""
    receive, send, sent = channel(messages)
    scope: Any = {"type": "http", "method": method, "path": path, "query_string": b"", "root_path": ""}
    scope |= {"headers": list(headers), "client": ("192.0.2.7", 1), "scheme": "http", "server": ("here", 80)}
    asyncio.run(made(scope, receive, send))
    status = sent[0]["status"] if sent else 0
    return status, b"".join(message.get("body", b"") for message in sent)


def parts(*bodies: bytes) -> list[Message]:
    messages = [{"type": "http.request", "body": body, "more_body": True} for body in bodies]
    messages[-1]["more_body"] = False
    return [*messages, {"type": "http.disconnect"}]


@pytest.mark.parametrize("path", ["/predict", "/predict\n", "/predict/", "/elsewhere"])
@pytest.mark.parametrize("method", ["POST", "PUT", "DELETE", "OPTIONS", "PATCH"])
def test_whatever_is_not_only_looked_at_needs_a_key(
    behind: Behind, tmp_path: Path, path: str, method: str
) -> None:
    made = plane(behind, tmp_path, has_key=True)
    assert asked(made, path, parts(b"x"), method=method)[0] == 401
    assert asked(made, path, parts(b"x"), [(b"authorization", b"Bearer wrong")], method)[0] == 401
    assert behind.bodies == []
    assert asked(made, path, parts(b"x"), WITH_KEY, method)[0] != 401
    assert asked(plane(behind, tmp_path), path, parts(b"x"), method=method)[0] != 401


def test_the_router_takes_a_path_that_ends_in_a_line_feed(behind: Behind, tmp_path: Path) -> None:
    assert asked(plane(behind, tmp_path, has_key=True), "/predict\n", parts(b"x"), WITH_KEY)[0] == 200


def test_probes_need_no_key(behind: Behind, tmp_path: Path) -> None:
    made = plane(behind, tmp_path, has_key=True)
    assert asked(made, "/livez", parts(b""), method="GET") == (200, b"live")
    assert asked(made, "/livez", parts(b""), method="HEAD")[0] == 200


def test_a_body_without_a_length_arrives_as_it_was_sent(behind: Behind, tmp_path: Path) -> None:
    answer = asked(plane(behind, tmp_path), "/predict", parts(b"a" * 600, b"", b"b" * 400))
    assert behind.bodies == [b"a" * 600 + b"b" * 400]
    assert answer == (200, b"http.disconnect")  # and whoever reads on hears what comes after it


def test_a_body_without_a_length_or_an_end_is_not_read_on(behind: Behind, tmp_path: Path) -> None:
    given: list[int] = []

    def endless() -> Iterator[Message]:
        while True:
            given.append(100)
            yield {"type": "http.request", "body": b"x" * 100, "more_body": True}

    for method in ("POST", "GET"):
        given.clear()
        status, body = asked(plane(behind, tmp_path), "/predict", endless(), method=method)
        assert (status, behind.bodies) == (413, [])
        assert b"MIPGATE_MAX_BODY_BYTES" in body
        assert sum(given) == MOST + 100


LENGTHS = [b"1001", b"000000000000099999999", b"9" * 5000, b"0" * 5000 + b"1001"]


@pytest.mark.parametrize("length", LENGTHS)
def test_a_length_that_is_too_much_is_refused_unread(behind: Behind, tmp_path: Path, length: bytes) -> None:
    made = plane(behind, tmp_path)
    assert asked(made, "/predict", [], [(b"content-length", length)])[0] == 413
    with pytest.raises(TooLargeError):
        made._read_head(Head("/", [(b"content-length", length)]))


@pytest.mark.parametrize("length", [b"5", b"1000", b"00000000000000000000005", b"0", b"000"])
def test_a_length_within_bounds_is_taken_however_it_is_written(
    behind: Behind, tmp_path: Path, length: bytes
) -> None:
    made = plane(behind, tmp_path)
    assert asked(made, "/predict", parts(b"12345"), [(b"content-length", length)])[0] == 200
    assert made._read_head(Head("/", [(b"content-length", length)])) == (None, {})


def test_a_client_that_leaves_within_its_body_gets_nothing(behind: Behind, tmp_path: Path) -> None:
    first, _, left = parts(b"x", b"")
    assert asked(plane(behind, tmp_path), "/predict", [first, left]) == (0, b"")
    assert behind.bodies == []


def test_a_body_that_came_at_once_is_bounded_without_a_length(behind: Behind, tmp_path: Path) -> None:
    made = plane(behind, tmp_path)
    assert made._small <= MOST  # what is longer goes the way that measures it
    nobody: Any = None
    with pytest.raises(TooLargeError):
        asyncio.run(made._decode_large(nobody, b"x" * (MOST + 1), None))
