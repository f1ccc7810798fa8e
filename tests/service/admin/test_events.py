"""Streams: what is told, to whom, and when it ends."""

import asyncio
from collections.abc import AsyncIterator
from typing import Any

import pytest
from starlette.requests import Request

from service.access.principal import LOOPBACK, Role
from service.admin import events
from service.admin.events import Changes, Key, stream
from service.admin.streams import all_events
from service.errors import UnavailableError
from service.state.database import StateAwayError
from tests.service.admin.conftest import LOCAL, REMOTE, Admin

World = dict[Key, Any]


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_LOOK_EVERY_S", 0.01)
    monkeypatch.setattr(events, "_CHECK_EVERY_S", 0.02)
    monkeypatch.setattr(events, "_HEARTBEAT_EVERY", 2)


def told(changes: Changes, may_go_on: Any = lambda: True) -> AsyncIterator[bytes]:
    return stream(changes, changes.listen(), lambda key, _: key[0], may_go_on)


async def until(told: AsyncIterator[bytes], word: bytes) -> bytes:
    seen = b""
    async with asyncio.timeout(5):
        async for part in told:
            seen += part
            if word in seen:
                return seen
    raise AssertionError(seen)


def test_a_listener_gets_the_state_of_everything_and_then_what_changes() -> None:
    async def run() -> None:
        world: World = {("job", "1"): {"state": "queued"}}
        changes = Changes(lambda: dict(world))
        listener = told(changes)
        assert b'event: job\ndata: {"state":"queued"}\n\n' in await until(listener, b"queued")
        world["job", "1"] = {"state": "running"}
        assert b"queued" not in await until(listener, b"running")
        late = told(changes)
        await until(late, b"running")
        changes.close()

    asyncio.run(run())


def test_a_slow_listener_gets_the_newest_state_once() -> None:
    async def run() -> None:
        world: World = {}
        changes = Changes(lambda: dict(world))
        listener = changes.listen()
        for number in range(20):
            world["rollout", "r"] = {"version": number}
            await asyncio.sleep(0.02)
        taken = await listener.take(1)
        assert len(taken) == 1
        changes.close()

    asyncio.run(run())


def test_silence_is_broken_by_heartbeats_and_ended_by_closing() -> None:
    async def run() -> None:
        changes = Changes(dict)
        listener = told(changes)
        await until(listener, b": still here")
        changes.close()
        async with asyncio.timeout(5):
            assert [part async for part in listener if b"event" in part] == []
        with pytest.raises(UnavailableError):
            changes.listen()

    asyncio.run(run())


def test_a_stream_ends_when_its_caller_may_no_longer_look_on() -> None:
    async def run() -> None:
        allowed = [True]
        changes = Changes(dict)
        listener = told(changes, lambda: allowed[0])
        await until(listener, b"still here")
        allowed[0] = False
        async with asyncio.timeout(5):
            async for _ in listener:
                pass
        assert not changes._listeners
        changes.close()

    asyncio.run(run())


def test_an_open_stream_leaves_its_key_s_rate_alone(admin: Admin, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(events, "_HEARTBEAT_EVERY", 5)
    key = admin.key(Role.INFER, rate_per_s=0.01)
    headers = [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "http", "method": "GET", "path": "/admin/events", "query_string": b"",
             "headers": headers, "client": REMOTE, "scheme": "http", "server": LOCAL}  # fmt: skip

    async def run() -> None:
        answer: Any = await all_events(admin.changes)(admin.desk, Request(scope), LOOPBACK)
        assert b"event: model" in await until(answer.body_iterator, b"still here")
        admin.changes.close()

    asyncio.run(run())
    client = admin.client(key, REMOTE)
    assert [client.get("/admin/session").status_code for _ in range(2)] == [200, 429]


def test_nobody_looks_while_nobody_listens() -> None:
    async def run() -> None:
        looks = []
        changes = Changes(lambda: looks.append(1) or {})  # type: ignore[func-returns-value]
        listener = changes.listen()
        await asyncio.sleep(0.1)
        changes.leave(listener)
        await asyncio.sleep(0.05)
        seen = len(looks)
        await asyncio.sleep(0.05)
        assert seen
        assert len(looks) == seen
        changes.close()

    asyncio.run(run())


def test_the_database_away_is_waited_for() -> None:
    async def run() -> None:
        tries = []

        def look() -> World:
            tries.append(1)
            if len(tries) < 3:
                raise StateAwayError("away")
            return {("job", "1"): {}}

        changes = Changes(look)
        await until(told(changes), b"event: job")
        changes.close()

    asyncio.run(run())


def test_there_are_not_too_many_listeners() -> None:
    async def run() -> None:
        changes = Changes(dict)
        for _ in range(100):
            changes.listen()
        with pytest.raises(UnavailableError):
            changes.listen()
        changes.close()

    asyncio.run(run())
