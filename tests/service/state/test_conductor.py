"""What a worker knows of the shared state while requests go on."""

import asyncio
import time
from collections.abc import Awaitable, Callable

import pytest
from prometheus_client import CollectorRegistry

from service.conducting import Ages, Conducting
from service.conductor import Conductor
from service.errors import NotFoundError
from service.metrics import Metrics
from service.protocol import MAX_ID_LENGTH
from service.rollout.command import Verb, command
from service.rollout.evidence import Feedback
from service.rollout.rollout import Phase
from service.state.database import Database
from service.state.evidence import EvidenceStore
from service.state.rollouts import RolloutStore
from service.state.sealed import Served
from tests.service.state.conftest import Outage
from tests.service.state.experiments import begun, canary
from variants.catalog import Catalog

SOON_S = 20.0
Scenario = Callable[[Conductor], Awaitable[None]]


@pytest.fixture
def registry() -> CollectorRegistry:
    return CollectorRegistry()


@pytest.fixture
def play(database: Database, catalog: Catalog, registry: CollectorRegistry) -> Callable[[Scenario], None]:
    """Runs a scenario with a worker's conductor that has started."""

    async def whole(scenario: Scenario) -> None:
        conducting = Conducting(database, catalog, "w1", lambda model, version: True, Ages(60, 3600))
        conductor = Conductor(conducting, EvidenceStore(database), Metrics(registry))
        await conductor.start()
        try:
            await scenario(conductor)
        finally:
            await conductor.stop()

    return lambda scenario: asyncio.run(whole(scenario))


@pytest.fixture
def store(database: Database) -> RolloutStore:
    return RolloutStore(database)


async def until(true: Callable[[], object]) -> None:
    async with asyncio.timeout(SOON_S):
        while not true():
            await asyncio.sleep(0.02)


def start(store: RolloutStore, **fields: object) -> None:
    store.create(begun(canary(model="m", build="a" * 12, now=time.time(), **fields)))  # type: ignore[arg-type]


def answer(request: str) -> Served:
    return Served(request, "m", "int8@aaaaaaaaaaaa", "fast", "r1", "candidate", 7, time.time())


def right(given: Served, label: object) -> Feedback:
    return Feedback(1, float(given.prediction == label))


def test_it_knows_what_runs_before_the_first_request(
    play: Callable[[Scenario], None], store: RolloutStore
) -> None:
    start(store, tier="fast")

    async def scenario(conductor: Conductor) -> None:
        running = conductor.active("m", "fast")
        assert running is not None
        assert running.id == "r1"
        assert conductor.active("m", "accurate") is None
        assert conductor.active("other", "fast") is None
        assert conductor.state == "ok"

    play(scenario)


def test_it_follows_operators(
    play: Callable[[Scenario], None], store: RolloutStore, registry: CollectorRegistry
) -> None:
    def phase(conductor: Conductor) -> Phase | None:
        running = conductor.active("m", "any")
        return running and running.phase

    async def scenario(conductor: Conductor) -> None:
        await asyncio.to_thread(start, store)
        conductor.hurry()
        await until(lambda: phase(conductor) is Phase.PROGRESSING)
        await asyncio.to_thread(
            store.change, "r1", lambda before, now: command(before, Verb.ABORT, "alice", now)
        )
        await until(lambda: phase(conductor) is None)

    play(scenario)
    assert registry.get_sample_value("mipgate_rollout_phase", {"model": "m", "phase": "failed"}) == 1
    assert registry.get_sample_value("mipgate_rollout_weight", {"model": "m", "arm": "primary"}) == 1
    transitions = {"model": "m", "phase": "progressing"}
    assert registry.get_sample_value("mipgate_rollout_transitions_total", transitions) == 1


def test_what_was_counted_arrives_also_when_the_worker_stops_at_once(
    play: Callable[[Scenario], None], store: RolloutStore, database: Database
) -> None:
    start(store)

    async def scenario(conductor: Conductor) -> None:
        for _ in range(5):
            conductor.tally("r1", "candidate").answered(0.002)
        conductor.tally("r1", "primary")

    play(scenario)
    seen = EvidenceStore(database).read("r1")
    assert seen["candidate"].requests == 5
    assert "primary" not in seen


def test_what_came_after_a_batch_that_waits_arrives_too_when_the_worker_stops(
    outage: Outage,
    play: Callable[[Scenario], None],
    store: RolloutStore,
    database: Database,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr("service.conductor.TICK_S", 60.0)  # no turn but those asked for
    start(store, phase=Phase.WAITING, paused=1.0)

    async def scenario(conductor: Conductor) -> None:
        await asyncio.to_thread(outage.begin)
        try:
            conductor.tally("r1", "candidate").answered(0.002)
            conductor.hurry()
            await until(lambda: conductor.state == "away")
            conductor.tally("r1", "candidate").answered(0.002)
        finally:
            await asyncio.to_thread(outage.end)

    play(scenario)
    assert EvidenceStore(database).read("r1")["candidate"].requests == 2


def test_a_label_finds_an_answer_that_was_given_just_now(
    play: Callable[[Scenario], None], store: RolloutStore
) -> None:
    start(store)

    async def scenario(conductor: Conductor) -> None:
        longest = "b" * MAX_ID_LENGTH
        for request in ("a", longest):
            conductor.remember(answer(request))
        for request in ("a", longest):
            assert [given.request for given in await conductor.judge({request: 7}, right, 60.0)] == [request]
        with pytest.raises(NotFoundError):
            await conductor.judge({"never": 7}, right, 60.0)

    play(scenario)


def test_while_the_database_is_away_everything_stays_and_nothing_is_lost(
    outage: Outage,
    play: Callable[[Scenario], None],
    store: RolloutStore,
    database: Database,
    caplog: pytest.LogCaptureFixture,
) -> None:
    start(store, phase=Phase.WAITING, paused=1.0)

    async def scenario(conductor: Conductor) -> None:
        before = conductor.active("m", "fast")
        await asyncio.to_thread(outage.begin)
        try:
            conductor.tally("r1", "candidate").answered(0.002)
            await until(lambda: conductor.state == "away")
            conductor.tally("r1", "candidate").answered(0.002)
            conductor.remember(answer("a"))
            assert conductor.active("m", "fast") is before
        finally:
            await asyncio.to_thread(outage.end)
        await until(lambda: conductor.state == "ok")

    play(scenario)
    assert EvidenceStore(database).read("r1")["candidate"].requests == 2
    assert len(EvidenceStore(database).judge({"a": 7}, right, 60.0)) == 1
    assert len([line for line in caplog.messages if "does not answer" in line]) == 1
    assert len([line for line in caplog.messages if "answers again" in line]) == 1
