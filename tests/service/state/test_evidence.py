"""Evidence that adds up, and labels that are joined once."""

import time
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from sqlalchemy import text

from service.errors import BadRequestError, ConflictError, NotFoundError
from service.protocol import MAX_ID_LENGTH
from service.rollout.evidence import Feedback
from service.rollout.rollout import Phase
from service.state.database import Database
from service.state.evidence import Batch, EvidenceStore
from service.state.leases import FencedError, Lease, Leases
from service.state.rollouts import RolloutStore
from service.state.sealed import Seal, Served, who_answered
from tests.service.state.experiments import answers, begun, canary

ARM = ("r1", "candidate")


@pytest.fixture
def store(database: Database) -> EvidenceStore:
    return EvidenceStore(database)


def answer(request: str, *, rollout: str = "r1", age_s: float = 0.0) -> Served:
    arm = "candidate" if rollout else ""
    return Served(request, "digits", "int8@000000000002", "fast", rollout, arm, 7, time.time() - age_s)


def right(given: Served, label: Any) -> Feedback:
    if not isinstance(label, int):
        raise BadRequestError(f"label: {label!r} is no class. Send its number.")
    return Feedback(1, float(given.prediction == label))


def rows(database: Database, table: str) -> int:
    with database.reading() as connection:
        return int(connection.scalar(text(f"SELECT count(*) FROM {table}")) or 0)


def test_increments_of_workers_add_up(store: EvidenceStore) -> None:
    store.write("w1", Batch(1, {ARM: answers(10, errors=1)}))
    store.write("w2", Batch(1, {ARM: answers(5), ("r1", "primary"): answers(100)}))
    store.write("w1", Batch(2, {ARM: answers(1)}))
    seen = store.read("r1")
    assert (seen["candidate"].requests, seen["candidate"].errors, seen["primary"].requests) == (16, 1, 100)
    assert store.read("r2") == {}


def test_a_batch_that_is_written_again_counts_once(store: EvidenceStore) -> None:
    batch = Batch(1, {ARM: answers(10)}, [answer("a")])
    store.write("w1", batch)
    store.write("w1", batch)
    assert store.read("r1")["candidate"].requests == 10


def test_the_longest_id_that_a_client_may_give_finds_its_answer(store: EvidenceStore) -> None:
    request = "i" * MAX_ID_LENGTH
    store.write("w1", Batch(1, {}, [answer(request)]))
    assert [given.request for given in store.judge({request: 7}, right, 60.0)] == [request]


def test_many_increments_become_one_row_and_stay_what_they_were(
    store: EvidenceStore, database: Database
) -> None:
    for number in range(1, 31):
        store.write("w1", Batch(number, {ARM: answers(1)}))
    before = store.read("r1")
    lease = Leases(database).take("conductor", "w1", 60.0)
    assert lease is not None
    assert store.compact("r1", lease).evidence == before == store.read("r1")
    assert rows(database, "evidence") == 1
    store.write("w1", Batch(30, {ARM: answers(1)}))  # whoever repeats itself is still known
    assert store.read("r1") == before


def test_what_was_read_before_is_not_read_again_and_counts_once(
    store: EvidenceStore, database: Database
) -> None:
    lease = Leases(database).take("conductor", "w1", 60.0)
    assert lease is not None
    seen = None
    for number in range(1, 61):  # through two times of adding up
        store.write("w1", Batch(number, {ARM: answers(1)}))
        seen = store.compact("r1", lease, seen)
        assert seen.evidence == store.read("r1")
        assert seen.evidence["candidate"].requests == number
    assert rows(database, "evidence") < 30


def test_a_later_holder_of_the_lease_reads_anew(store: EvidenceStore, database: Database) -> None:
    leases = Leases(database)
    first = leases.take("conductor", "w1", 60.0)
    assert first is not None
    store.write("w1", Batch(1, {ARM: answers(3)}))
    seen = store.compact("r1", first)
    leases.give_back(first)
    second = leases.take("conductor", "w2", 60.0)
    assert second is not None
    for number in range(2, 31):
        store.write("w1", Batch(number, {ARM: answers(1)}))
    store.compact("r1", second)  # the rows that the first holder has read are gone
    leases.give_back(second)
    again = leases.take("conductor", "w1", 60.0)
    assert again is not None
    assert store.compact("r1", again, seen).evidence["candidate"].requests == 32


def test_only_the_holder_of_the_lease_compacts(store: EvidenceStore) -> None:
    for number in range(1, 31):
        store.write("w1", Batch(number, {ARM: answers(1)}))
    with pytest.raises(FencedError):
        store.compact("r1", Lease("conductor", "w9", 1))
    assert store.read("r1")["candidate"].requests == 30


def test_a_label_becomes_evidence_of_its_arm(store: EvidenceStore, database: Database) -> None:
    RolloutStore(database).create(begun(canary(now=time.time())))
    store.write("w1", Batch(1, {}, [answer("a"), answer("b"), answer("c", rollout="")]))
    judged = store.judge({"a": 7, "b": 3, "c": 7}, right, 60.0)
    assert [given.request for given in judged] == ["a", "b", "c"]
    assert store.read("r1")["candidate"].feedback == Feedback(2, 1.0)
    assert store.read("") == {}


def test_labels_of_what_has_ended_are_joined_and_no_evidence(
    store: EvidenceStore, database: Database
) -> None:
    RolloutStore(database).create(begun(canary(now=time.time(), phase=Phase.FAILED)))
    store.write("w1", Batch(1, {}, [answer("a")]))
    assert [given.request for given in store.judge({"a": 7}, right, 60.0)] == ["a"]
    assert store.read("r1") == {}


def test_a_label_is_joined_once_however_often_and_from_where_it_comes(
    store: EvidenceStore, database: Database
) -> None:
    RolloutStore(database).create(begun(canary(now=time.time())))
    store.write("w1", Batch(1, {}, [answer("a")]))

    def judge(_: int) -> str:
        try:
            return f"accepted {len(store.judge({'a': 7}, right, 60.0))}"
        except ConflictError:
            return "409"

    with ThreadPoolExecutor(4) as callers:
        outcomes = sorted(callers.map(judge, range(8)))
    assert outcomes == ["409"] * 7 + ["accepted 1"]
    assert store.read("r1")["candidate"].feedback.n == 1


def test_unknown_and_expired_answers_take_no_label(store: EvidenceStore) -> None:
    store.write("w1", Batch(1, {}, [answer("old", age_s=100), answer("new")]))
    for request in ("old", "never"):
        with pytest.raises(NotFoundError, match=f'"{request}"'):
            store.judge({"new": 7, request: 7}, right, 60.0)
    assert len(store.judge({"new": 7}, right, 60.0)) == 1  # of a list with a wrong one, none had been taken


def test_a_label_that_cannot_be_leaves_the_answer_waiting(store: EvidenceStore) -> None:
    store.write("w1", Batch(1, {}, [answer("a")]))
    with pytest.raises(BadRequestError):
        store.judge({"a": "seven"}, right, 60.0)
    assert len(store.judge({"a": 7}, right, 60.0)) == 1


def test_an_id_that_is_used_again_stays_with_its_first_answer(store: EvidenceStore) -> None:
    store.write("w1", Batch(1, {}, [answer("a")]))
    store.write("w1", Batch(2, {}, [answer("a", rollout="r2"), answer("b")]))
    assert [given.rollout for given in store.judge({"a": 7, "b": 7}, right, 60.0)] == ["r1", "r1"]


def test_ids_are_kept_no_longer_than_labels_are_taken(store: EvidenceStore, database: Database) -> None:
    store.write("w1", Batch(1, {}, [answer("old", age_s=100), answer("new")]))
    with database.writing() as connection:
        store.prune(connection, time.time() - 60)
    assert rows(database, "served") == 1


def close(seal: Seal, given: Served) -> str | None:
    who = who_answered(given.model, given.variant, given.tier, given.rollout, given.arm)
    return seal.close(given.request, who, given.prediction, given.at)


def test_an_id_that_carries_its_answer_is_written_when_its_label_comes_and_once(
    store: EvidenceStore, database: Database
) -> None:
    RolloutStore(database).create(begun(canary(now=time.time())))
    seal = EvidenceStore(database).seal()  # another worker's
    sealed, old = close(seal, answer("n-1")), close(seal, answer("n-2", age_s=100))
    assert sealed is not None
    assert old is not None
    assert rows(database, "served") == 0
    assert store.judge({sealed: 7}, right, 60.0) == [seal.open(sealed)]
    assert store.read("r1")["candidate"].feedback == Feedback(1, 1.0)
    assert rows(database, "served") == 1
    with pytest.raises(ConflictError):
        store.judge({sealed: 7}, right, 60.0)
    with pytest.raises(NotFoundError):
        store.judge({old: 7}, right, 60.0)


def test_an_id_that_was_not_made_here_carries_nothing() -> None:
    seal = Seal(b"k" * 32)
    sealed = close(seal, answer("n-1"))
    assert sealed is not None
    opened = seal.open(sealed)
    assert opened is not None
    assert (opened.request, opened.rollout, opened.prediction) == (sealed, "r1", 7)
    assert Seal(b"other").open(sealed) is None
    middle = len(sealed) // 2
    for place in (2, middle, len(sealed) - 1):
        other = "A" if sealed[place] != "A" else "B"
        assert seal.open(sealed[:place] + other + sealed[place + 1 :]) is None
    for text_ in ("s.", "s.!", "s." + "A" * 40, "n-1", sealed + "=", sealed + "\n"):
        assert seal.open(text_) is None
    assert close(seal, answer("n" * 200)) is None  # longer than an id may be
