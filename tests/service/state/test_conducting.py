"""Workers that share rollouts: one advances, the others follow, and whoever dies or is late does no harm."""

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from service.access.keys import new_key
from service.access.principal import LOOPBACK, Role
from service.access.store import AccessStore
from service.conducting import Ages, Conducting, Turn
from service.rollout.command import Verb, command
from service.rollout.evidence import ArmEvidence
from service.rollout.rollout import Kind, Phase, Rollout
from service.state.database import Database, StateAwayError
from service.state.evidence import Batch, EvidenceStore
from service.state.rollouts import RolloutStore
from tests.conftest import ROOT
from tests.service.state.conftest import Outage
from tests.service.state.experiments import answers, begun, canary
from variants.card import Card
from variants.catalog import Catalog
from variants.variant import Life

SOON_S = 20.0


@pytest.fixture
def store(database: Database) -> RolloutStore:
    return RolloutStore(database)


@pytest.fixture
def worker(url: str, catalog: Catalog) -> Iterator[Callable[[str], Conducting]]:
    opened: list[Database] = []

    def join(name: str) -> Conducting:
        opened.append(Database(url))
        return Conducting(opened[-1], catalog, name, lambda model, version: True, Ages(60, 3600))

    yield join
    for database in opened:
        database.close()


def start(store: RolloutStore, **fields: object) -> Rollout:
    rollout = canary(model="m", build="a" * 12, now=time.time(), **fields)  # type: ignore[arg-type]
    store.create(begun(rollout))
    return rollout


def until(phase: Phase, *workers: Conducting, store: RolloutStore, batch: Callable[[], Batch | None]) -> None:
    end = time.monotonic() + SOON_S
    while store.find("r1").phase is not phase:
        assert time.monotonic() < end, store.history("r1")
        for worker in workers:
            worker.turn(batch())


def life(catalog: Catalog) -> Life:
    return catalog.card("m").find("int8").life


def phases(store: RolloutStore) -> list[str]:
    history = store.history("r1")
    assert [line["version"] for line in history] == list(range(1, len(history) + 1))
    return list(dict.fromkeys(line["phase"] for line in history))


def test_a_canary_that_agrees_is_released(
    store: RolloutStore, worker: Callable[[str], Conducting], catalog: Catalog
) -> None:
    start(store)
    numbers = iter(range(1, 1000))
    until(
        Phase.SUCCEEDED,
        worker("w1"),
        store=store,
        batch=lambda: Batch(
            next(numbers), {("r1", "candidate"): answers(100), ("r1", "primary"): answers(100)}
        ),
    )
    assert life(catalog) is Life.RELEASED
    assert phases(store) == ["initializing", "progressing", "promoting", "finalising", "succeeded"]


def test_a_canary_that_disagrees_is_rolled_back_and_retired(
    store: RolloutStore, worker: Callable[[str], Conducting], catalog: Catalog
) -> None:
    start(store, retire_failed=True)
    numbers = iter(range(1, 1000))
    until(
        Phase.FAILED,
        worker("w1"),
        store=store,
        batch=lambda: Batch(next(numbers), {("r1", "candidate"): answers(100, agreeing=0.3)}),
    )
    assert life(catalog) is Life.RETIRED
    assert store.find("r1").weights == {"primary": 100.0, "candidate": 0.0}


def test_one_of_several_workers_advances_and_all_see_it_within_a_turn(
    store: RolloutStore, worker: Callable[[str], Conducting]
) -> None:
    first, second = worker("w1"), worker("w2")
    assert [first.turn(None).is_holder, second.turn(None).is_holder] == [True, False]
    start(store)
    assert list(second.turn(None).running) == ["r1"]
    moved = first.turn(None)
    assert [transition.rollout.phase for transition in moved.transitions] == [Phase.PROGRESSING]
    followed = second.turn(None)
    assert [rollout.phase for rollout in followed.changed] == [Phase.PROGRESSING]
    assert followed.running == moved.running
    assert not followed.transitions
    first.end()
    assert second.turn(None).is_holder


def test_what_has_ended_is_told_once_more(store: RolloutStore, worker: Callable[[str], Conducting]) -> None:
    first, second = worker("w1"), worker("w2")
    start(store)
    first.turn(None)
    second.turn(None)
    store.change("r1", lambda before, now: command(before, Verb.ABORT, "alice", now))
    first.turn(None)
    turn: Turn = second.turn(None)
    assert not turn.running
    assert [rollout.phase for rollout in turn.changed] == [Phase.FAILED]


def test_expired_sessions_and_old_lines_of_the_audit_are_deleted(
    database: Database, worker: Callable[[str], Conducting]
) -> None:
    keys, now = AccessStore(database), time.time()
    for expires in (now - 1, now + 60):
        keys.add(new_key("page", Role.INFER, now - 100, expires=expires, parent="p")[1])
    for at in (now - 7200, now):
        keys.record(LOOPBACK, "release", "m", None, None, at)
    worker("w1").turn(None)
    assert [key.expires for key in keys.keys(now - 50)] == [now + 60]
    assert [line.at for line in keys.audited(10)] == [now]


def test_a_variant_that_was_deleted_is_not_promoted(
    store: RolloutStore, worker: Callable[[str], Conducting]
) -> None:
    rollout = canary(model="m", build="b" * 12, now=time.time(), phase=Phase.PROGRESSING)
    store.create(begun(rollout))
    store.change("r1", lambda before, now: command(before, Verb.PROMOTE, "alice", now))
    first = worker("w1")
    first.turn(None)
    first.turn(None)
    ended = store.find("r1")
    assert ended.phase is Phase.FAILED
    assert "retired or removed while the rollout ran" in ended.reason


def promoted(store: RolloutStore) -> None:
    """A rollout whose candidate waits for its release."""
    start(store, phase=Phase.PROGRESSING)
    store.change("r1", lambda before, now: command(before, Verb.PROMOTE, "alice", now))


def test_what_an_operator_retired_meanwhile_is_not_released(
    store: RolloutStore, worker: Callable[[str], Conducting], catalog: Catalog
) -> None:
    promoted(store)
    candidate = store.find("r1").candidates[0].variant
    retired = catalog.card("m").find(*candidate.split("@")).id
    catalog.change("m", lambda card: card.with_life(retired, Life.RETIRED))
    first = worker("w1")
    first.turn(None)
    first.turn(None)
    assert store.find("r1").phase is Phase.FAILED
    assert catalog.card("m").find(retired.recipe, retired.build).life is Life.RETIRED


def test_a_failed_candidate_that_was_removed_needs_no_retiring(
    store: RolloutStore, worker: Callable[[str], Conducting], catalog: Catalog
) -> None:
    start(store, phase=Phase.PROGRESSING, retire_failed=True)
    candidate = catalog.card("m").find(*store.find("r1").candidates[0].variant.split("@")).id
    catalog.change("m", lambda card: card.without(candidate))
    failing = {("r1", "candidate"): ArmEvidence(100, errors=100)}
    numbers = iter(range(1, 1000))
    until(Phase.FAILED, worker("w1"), store=store, batch=lambda: Batch(next(numbers), failing))


def test_a_card_that_another_changes_holds_up_no_turn(
    store: RolloutStore, worker: Callable[[str], Conducting], catalog: Catalog
) -> None:
    promoted(store)
    first = worker("w1")
    held, leave = threading.Event(), threading.Event()

    def build() -> None:
        with catalog.lock("m"):
            held.set()
            leave.wait(SOON_S)

    other = threading.Thread(target=build)
    other.start()
    try:
        assert held.wait(SOON_S)
        for _ in range(2):
            assert not first.turn(None).transitions
    finally:
        leave.set()
        other.join()
    until(Phase.SUCCEEDED, first, store=store, batch=lambda: None)
    assert life(catalog) is Life.RELEASED


def test_what_was_aborted_while_its_release_waited_is_not_released(
    store: RolloutStore,
    worker: Callable[[str], Conducting],
    catalog: Catalog,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    promoted(store)
    change = catalog.change

    def aborted(*args: Any, **options: Any) -> Card:
        monkeypatch.undo()
        store.change("r1", lambda before, now: command(before, Verb.ABORT, "alice", now))
        return change(*args, **options)

    monkeypatch.setattr(catalog, "change", aborted)
    until(Phase.FAILED, worker("w1"), store=store, batch=lambda: None)
    assert life(catalog) is Life.CANDIDATE


def test_a_rollout_that_cannot_be_advanced_does_not_hold_up_the_others(
    store: RolloutStore, worker: Callable[[str], Conducting], caplog: pytest.LogCaptureFixture
) -> None:
    start(store, name="broken", tier="fast", kind=Kind.BANDIT, reward="nonsense", phase=Phase.PROGRESSING)
    start(store, name="r1", tier="accurate")
    first = worker("w1")
    first.turn(None)
    assert [rollout.id for rollout in first.turn(None).running.values()] == ["broken", "r1"]
    assert store.find("r1").phase is not Phase.INITIALIZING
    assert caplog.messages.count("rollout broken cannot be advanced in version 1") == 1


@contextmanager
def process(url: str, *arguments: str) -> Iterator[subprocess.Popen[str]]:
    command_line = [sys.executable, "-m", "tests.service.state.worker", url, *arguments]
    with subprocess.Popen(command_line, cwd=ROOT, stdout=subprocess.PIPE, text=True) as child:
        try:
            yield child
        finally:
            child.kill()


def said(child: subprocess.Popen[str], wanted: str) -> None:
    """Waits until a worker says something."""
    assert child.stdout
    for line in child.stdout:
        if line.strip() == wanted:
            return
    pytest.fail(f"it ended and never said {wanted!r}")


def test_a_holder_that_is_killed_in_the_middle_of_a_change_leaves_it_undone_for_the_next(
    url: str, store: RolloutStore, worker: Callable[[str], Conducting]
) -> None:
    start(store)
    with process(url, "killed", "--hang") as child:
        said(child, "in the middle")
        os.kill(child.pid, signal.SIGKILL)
        child.wait()
    assert phases(store) == ["initializing"]
    until(Phase.PROGRESSING, worker("next"), store=store, batch=lambda: None)
    assert phases(store) == ["initializing", "progressing"]


def test_a_holder_that_was_stopped_while_another_took_over_writes_nothing(
    url: str, store: RolloutStore, worker: Callable[[str], Conducting]
) -> None:
    start(store)
    with process(url, "stopped", "--stop") as child:
        said(child, "about to")
        until(Phase.PROGRESSING, worker("next"), store=store, batch=lambda: None)
        before = store.history("r1")
        os.kill(child.pid, signal.SIGCONT)
        said(child, "follows")
    assert store.history("r1") == before


def test_a_database_that_is_away_loses_nothing(
    outage: Outage, database: Database, worker: Callable[[str], Conducting]
) -> None:
    first, batch = worker("w1"), Batch(1, {("r1", "candidate"): answers(10)})
    first.turn(None)
    outage.begin()
    try:
        for _ in range(2):
            with pytest.raises(StateAwayError, match="the database does not answer"):
                first.turn(batch)
    finally:
        outage.end()
    first.turn(batch)
    assert EvidenceStore(database).read("r1")["candidate"].requests == 10
