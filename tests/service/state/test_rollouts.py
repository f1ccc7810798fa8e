"""Rollouts in the database: versions, history, and two who change one at once."""

import threading
import time
from concurrent.futures import ThreadPoolExecutor

import pytest
from sqlalchemy import text

from service.errors import NotFoundError
from service.rollout.command import Verb, command
from service.rollout.machine import change
from service.rollout.rollout import Phase, Rollout, Transition
from service.state.database import Database
from service.state.leases import FencedError, Leases
from service.state.rollouts import RolloutStore, StaleError
from tests.service.state.experiments import begun, canary

NOW = time.time()


@pytest.fixture
def store(database: Database) -> RolloutStore:
    return RolloutStore(database)


def started(store: RolloutStore, **fields: object) -> Rollout:
    rollout = canary(now=NOW, **fields)  # type: ignore[arg-type]
    store.create(begun(rollout))
    return rollout


def test_what_is_kept_is_what_was_given(store: RolloutStore) -> None:
    rollout = started(store)
    assert store.find("r1") == rollout
    assert store.of("digits") == store.of() == [rollout]
    assert store.running({}) == {"r1": rollout}


def test_each_change_adds_a_line_to_the_history(store: RolloutStore) -> None:
    rollout = started(store)
    store.record(change(rollout, NOW + 1, "all arms are loaded", phase=Phase.PROGRESSING))
    lines = store.history("r1")
    assert [(line["version"], line["phase"], line["who"], line["reason"]) for line in lines] == [
        (1, "initializing", "alice", "begins"),
        (2, "progressing", "gateway", "all arms are loaded"),
    ]
    assert lines[0]["weights"] == {"primary": 100.0, "candidate": 0.0}


def test_a_change_of_an_older_version_is_refused_with_what_it_is_now(store: RolloutStore) -> None:
    rollout = started(store)
    store.record(change(rollout, NOW + 1, "first", phase=Phase.PROGRESSING))
    with pytest.raises(StaleError, match="progressing in version 2") as refused:
        store.record(change(rollout, NOW + 2, "second", phase=Phase.WAITING))
    assert refused.value.current == store.find("r1")
    assert len(store.history("r1")) == 2


def test_of_two_operators_at_once_one_is_told_of_the_others_change(store: RolloutStore) -> None:
    rollout = started(store)
    store.record(change(rollout, NOW + 1, "loaded", phase=Phase.PROGRESSING))
    both = threading.Barrier(2)

    def decide(verb: Verb) -> str:
        def together(before: Rollout, now: float) -> Transition:
            both.wait(5)
            return command(before, verb, verb.value, now)

        try:
            return store.change("r1", together, version=2).reason
        except StaleError as error:
            return f"409 {error.current.version}"

    with ThreadPoolExecutor(2) as operators:
        outcomes = list(operators.map(decide, (Verb.PAUSE, Verb.ABORT)))
    won = store.find("r1")
    assert sorted(outcomes) == sorted([won.reason, "409 3"])
    assert [line["version"] for line in store.history("r1")] == [1, 2, 3]


def test_an_operator_who_looked_earlier_is_told_so(store: RolloutStore) -> None:
    started(store)
    with pytest.raises(StaleError):
        store.change("r1", lambda before, now: change(before, now, "x"), version=7)


@pytest.mark.parametrize(
    ("first", "second"), [(None, None), ("fast", "fast"), (None, "fast"), ("fast", None)]
)
def test_requests_take_part_in_one_rollout_only(
    store: RolloutStore, first: str | None, second: str | None
) -> None:
    started(store, name="r1", tier=first)
    with pytest.raises(StaleError, match="the rollout r1 of digits") as refused:
        started(store, name="r2", tier=second)
    assert refused.value.current.id == "r1"
    started(store, name="r3", tier=second, model="spam")


def test_other_tiers_and_ended_rollouts_do_not_stand_in_the_way(store: RolloutStore) -> None:
    rollout = started(store, name="r1", tier="fast")
    started(store, name="r2", tier="accurate")
    store.record(change(rollout, NOW, "over", phase=Phase.FAILED))
    started(store, name="r3", tier="fast")
    assert store.running({}).keys() == {"r2", "r3"}


def test_what_has_not_changed_is_not_read_again(store: RolloutStore) -> None:
    rollout = started(store)
    known = store.running({})
    assert store.running(known)["r1"] is known["r1"]
    store.record(change(rollout, NOW, "loaded", phase=Phase.PROGRESSING))
    assert store.running(known)["r1"].phase is Phase.PROGRESSING


def test_whoever_lost_the_lease_writes_nothing(store: RolloutStore, database: Database) -> None:
    rollout = started(store)
    leases = Leases(database)
    old = leases.take("conductor", "w1", -1.0)  # it has expired at once
    new = leases.take("conductor", "w2", 60.0)
    assert old is not None
    assert new is not None
    assert (old.token, new.token) == (1, 2)
    assert leases.take("conductor", "w1", 60.0) is None
    step = change(rollout, NOW, "loaded", phase=Phase.PROGRESSING)
    with pytest.raises(FencedError):
        store.record(step, old)
    store.record(step, new)
    assert leases.held("cond") == ["conductor"]


def test_a_lease_that_was_given_back_is_free(database: Database) -> None:
    leases = Leases(database)
    lease = leases.take("conductor", "w1", 60.0)
    assert lease is not None
    assert leases.take("conductor", "w1", 60.0) == lease
    leases.give_back(lease)
    again = leases.take("conductor", "w2", 60.0)
    assert again is not None
    assert again.token == 2


def test_of_many_that_want_a_lease_one_gets_it(database: Database) -> None:
    leases = Leases(database)
    with ThreadPoolExecutor(4) as workers:
        taken = list(workers.map(lambda n: leases.take("conductor", f"w{n}", 60.0), range(4)))
    assert len([lease for lease in taken if lease]) == 1


def test_old_rollouts_go_with_their_history(store: RolloutStore, database: Database) -> None:
    over = started(store, name="r1", updated=NOW - 100)
    started(store, name="r2", tier="fast", model="spam", updated=NOW - 100)
    store.record(change(over, NOW - 100, "over", phase=Phase.FAILED))
    with database.writing() as connection:
        store.prune(connection, NOW - 50)
        lines = connection.scalar(text("SELECT count(*) FROM rollout_history WHERE rollout = 'r1'"))
    assert lines == 0
    assert [rollout.id for rollout in store.of()] == ["r2"]
    with pytest.raises(NotFoundError, match='no rollout "r1"'):
        store.history("r1")
