"""Keys, sessions and the audit in both databases."""

import asyncio
import time
from pathlib import Path

import pytest

from service.access.access import Access, Rules
from service.access.follower import Follower
from service.access.keys import ApiKey, new_key
from service.access.principal import LOOPBACK, Role
from service.access.store import AccessStore
from service.state.database import Database

NOW = 1_000.0


@pytest.fixture
def store(database: Database) -> AccessStore:
    return AccessStore(database)


def add(store: AccessStore, parent: str | None = None, now: float = NOW, lasts_s: float = 60.0) -> ApiKey:
    expires = None if parent is None else now + lasts_s
    _, key = new_key("k", Role.ADMIN, now, expires=expires, parent=parent)
    store.add(key)
    return key


def ids(store: AccessStore, now: float = NOW) -> set[str]:
    return {key.id for key in store.keys(now)}


def test_what_has_expired_is_not_read(store: AccessStore) -> None:
    key, session = add(store), add(store, "p")
    assert ids(store, NOW + 59) == {key.id, session.id}
    assert ids(store, NOW + 60) == {key.id}


def test_one_session_too_many_ends_the_oldest_of_its_parent(store: AccessStore) -> None:
    key, other = add(store), add(store, "other", NOW - 50)
    sessions = [add(store, key.id, NOW + number) for number in range(22)]
    assert ids(store, NOW + 30) == {key.id, *(session.id for session in sessions[2:])}
    assert ids(store, NOW + 5) >= {other.id}
    late = NOW + 100
    again = [add(store, key.id, late) for _ in range(20)]  # those that have expired leave room
    assert ids(store, late) == {key.id, *(session.id for session in again)}


def test_there_has_been_a_key_once_there_was_one(store: AccessStore) -> None:
    assert not store.had_keys()
    add(store, "token-00000000-0")
    assert not store.had_keys()
    store.revoke(add(store).id, NOW)
    assert not ids(store, NOW + 100)
    assert store.had_keys()


def test_expired_sessions_and_old_lines_of_the_audit_are_forgotten(
    store: AccessStore, database: Database
) -> None:
    key, session = add(store), add(store, "p", lasts_s=500.0)
    gone = add(store, "p")
    store.revoke(key.id, NOW)
    for at in (NOW, NOW + 90):
        store.record(LOOPBACK, "release", "digits", None, None, at)
    with database.writing() as connection:
        store.prune(connection, NOW + 100, NOW + 50)
    assert ids(store, NOW) == {session.id}
    assert gone.id not in ids(store, NOW)
    assert [line.at for line in store.audited(10)] == [NOW + 90]
    assert store.had_keys()


def test_inference_stays_closed_when_the_last_key_is_revoked(store: AccessStore, tmp_path: Path) -> None:
    def worker() -> tuple[Access, Follower]:
        access = Access(Rules(None, "auto", False, None), tmp_path)
        follower = Follower(access, store)
        follower.start()
        return access, follower

    access, follower = worker()
    assert not access.needs_key
    key = add(store, now=time.time())
    follower.start()
    assert access.needs_key
    store.revoke(key.id, time.time())
    follower.start()
    assert (access.needs_key, access.has_keys) == (True, True)
    assert worker()[0].needs_key


def test_a_key_that_was_made_a_moment_ago_is_known_when_it_is_asked_for(
    store: AccessStore, tmp_path: Path
) -> None:
    access = Access(Rules(None, "auto", False, None), tmp_path)
    follower = Follower(access, store)
    follower.start()
    add(store, now=time.time())  # by another worker, right after this one has asked

    async def together() -> None:
        await asyncio.gather(*(follower.follow_soon() for _ in range(5)))

    began = time.monotonic()
    asyncio.run(together())
    assert access.needs_key
    assert time.monotonic() - began < 1
