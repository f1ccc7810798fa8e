"""Jobs and builders: each is done by one builder at a time, and one that dies leaves its job to the next."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from sqlalchemy import update

from service.building import Builder
from service.conducting import BUILDERS
from service.errors import ConflictError, NotFoundError
from service.state.database import Database
from service.state.jobs import MOST_ATTEMPTS, Job, JobStore, Kind, State
from service.state.leases import Leases
from service.state.tables import jobs
from tests.conftest import ROOT, Homes
from variants.catalog import Catalog

SOON_S = 60.0
BUILT_WITHIN_S = 240.0


@pytest.fixture
def store(database: Database) -> JobStore:
    return JobStore(database)


def queued(store: JobStore, model: str = "m") -> Job:
    return store.add(Kind.BUILD, model, {"recipe": "int8"})


def until(true: Callable[[], bool], within_s: float = SOON_S) -> None:
    end = time.monotonic() + within_s
    while not true():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_jobs_are_done_in_order_each_by_one_builder(store: JobStore) -> None:
    wanted = [queued(store).id for _ in range(4)]
    with ThreadPoolExecutor(4) as builders:
        taken = list(builders.map(lambda number: store.take(f"b{number}", 60.0), range(4)))
    assert sorted(job.id for job in taken if job) == sorted(wanted)
    assert store.take("b9", 60.0) is None
    assert {job.state for job in store.of("m")} == {State.RUNNING}


def test_a_job_tells_how_far_it_is_and_what_came_of_it(store: JobStore) -> None:
    job_id = queued(store).id
    job = store.take("b1", 60.0)
    assert job is not None
    assert (job.id, job.attempts) == (job_id, 1)
    assert store.progress(job, "b1", "fp16: exporting", 0.5, 60.0)
    assert (store.find(job_id).phrase, store.find(job_id).fraction) == ("fp16: exporting", 0.5)
    assert store.finish(job, "b1", State.SUCCEEDED, None, {"variant": "fp16@0"})
    ended = store.find(job_id)
    assert (ended.state, ended.fraction, ended.result) == (State.SUCCEEDED, 1.0, {"variant": "fp16@0"})
    assert ended.finished is not None
    assert [job.id for job in store.ended(ended.finished - 1, ended.finished)] == [job_id]
    assert store.ended(ended.finished, ended.finished + 1) == []


def test_the_job_of_a_builder_that_died_is_taken_over_and_a_late_one_is_told(store: JobStore) -> None:
    queued(store)
    late = store.take("b1", -1.0)
    job = store.take("b2", 60.0)
    assert late is not None
    assert job is not None
    assert (job.id, job.attempts) == (late.id, 2)
    assert store.progress(late, "b1", "x", 0.9, 60.0) is None
    assert not store.finish(late, "b1", State.SUCCEEDED)
    assert store.find(job.id).state is State.RUNNING


def test_a_job_that_kills_its_builders_is_given_up(store: JobStore) -> None:
    job = queued(store)
    for _ in range(MOST_ATTEMPTS):
        assert store.take("b1", -1.0)
    assert store.take("b1", 60.0) is None
    ended = store.find(job.id)
    assert ended.state is State.FAILED
    assert ended.error
    assert "died 3 times" in ended.error


def test_a_job_that_was_given_back_waits_and_the_attempt_does_not_count(store: JobStore) -> None:
    queued(store)
    job = store.take("b1", 60.0)
    assert job is not None
    store.give_back(job, "b1")
    again = store.take("b2", 60.0)
    assert again is not None
    assert again.attempts == 1


def test_cancelling(store: JobStore) -> None:
    waiting, running = queued(store), queued(store)
    assert store.cancel(waiting.id).state is State.CANCELLED
    job = store.take("b1", 60.0)
    assert job is not None
    assert job.id == running.id
    assert store.cancel(running.id).state is State.RUNNING
    told = store.progress(job, "b1", "x", 0.1, 60.0)
    assert told is not None
    assert told.cancelling
    store.finish(job, "b1", State.CANCELLED)
    with pytest.raises(ConflictError, match="has cancelled"):
        store.cancel(running.id)
    with pytest.raises(NotFoundError, match='no job "never"'):
        store.cancel("never")


def test_a_job_whose_builder_died_while_it_was_cancelled_is_cancelled(store: JobStore) -> None:
    job = queued(store)
    store.take("b1", -1.0)
    store.cancel(job.id)
    assert store.take("b2", 60.0) is None
    assert store.find(job.id).state is State.CANCELLED


def test_old_jobs_are_forgotten(store: JobStore, database: Database) -> None:
    old, waiting = queued(store), queued(store)
    store.cancel(old.id)
    with database.writing() as connection:
        store.prune(connection, time.time() + 1)
    assert [job.id for job in store.of()] == [waiting.id]


# A builder whose commands are small programs

TELLS = """
import json, sys

def tell(what, fraction):
    print(json.dumps({"task": "int8", "what": what, "fraction": fraction}), file=sys.stderr, flush=True)

for number in range(1, 4):
    tell(f"part {number}", number / 4)
"""


@contextlib.contextmanager
def working(database: Database, catalog: Catalog, program: str) -> Iterator[Builder]:
    builder = Builder(database, catalog, (sys.executable, "-c", program))
    thread = threading.Thread(target=builder.run)
    thread.start()
    try:
        yield builder
    finally:
        builder.stop()
        thread.join(SOON_S)
        assert not thread.is_alive()


def test_a_builder_runs_the_command_of_a_job(catalog: Catalog, database: Database, store: JobStore) -> None:
    program = TELLS + "assert sys.argv[1:] == ['build', '--quiet', '--recipe=int8', 'm']\n"
    job = queued(store)
    with working(database, catalog, program) as builder:
        assert builder
        until(lambda: store.find(job.id).state.is_final)
        assert Leases(database).held(BUILDERS) == [f"{BUILDERS}{builder.name}"]
    ended = store.find(job.id)
    assert (ended.state, ended.error) == (State.SUCCEEDED, None)
    assert ended.result == {"variant": "int8@aaaaaaaaaaaa", "life": "candidate"}
    assert Leases(database).held(BUILDERS) == []


REFUSES = "import sys; print('Error: no room. Make some.', file=sys.stderr); sys.exit(1)"
DIES = "import os; os.kill(os.getpid(), 9)"
UNKNOWN = 'no model "os:environ" is registered where the builder runs. Add it there.'


@pytest.mark.parametrize(
    ("model", "program", "error"),
    [
        ("m", REFUSES, "no room. Make some."),
        ("m", DIES, "the command ended with status -9."),
        ("os:environ", TELLS, UNKNOWN),
    ],
    ids=["refused", "killed", "unknown"],
)
def test_a_job_that_fails_says_why(
    catalog: Catalog, database: Database, store: JobStore, model: str, program: str, error: str
) -> None:
    job = queued(store, model)
    with working(database, catalog, program):
        until(lambda: store.find(job.id).state.is_final)
    assert (store.find(job.id).state, store.find(job.id).error) == (State.FAILED, error)


STUCK = (
    TELLS + "import subprocess\n"
    "child = subprocess.Popen(['sleep', '600'])\n"
    "tell(str(child.pid), 0.8)\n"
    "child.wait()\n"
)


def grandchild(store: JobStore, job: Job) -> int:
    until(lambda: store.find(job.id).fraction == 0.8)
    return int(store.find(job.id).phrase.removeprefix("int8: "))


def is_alive(pid: int) -> bool:
    with contextlib.suppress(OSError):
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    return False


def test_cancelling_stops_all_that_the_command_started(
    catalog: Catalog, database: Database, store: JobStore
) -> None:
    job = queued(store)
    with working(database, catalog, STUCK):
        pid = grandchild(store, job)
        store.cancel(job.id)
        until(lambda: store.find(job.id).state is State.CANCELLED)
        until(lambda: not is_alive(pid))


def test_a_builder_that_is_stopped_leaves_its_job_to_the_next(
    catalog: Catalog, database: Database, store: JobStore
) -> None:
    job = queued(store)
    with working(database, catalog, STUCK):
        pid = grandchild(store, job)
    assert not is_alive(pid)
    assert (store.find(job.id).state, store.find(job.id).attempts) == (State.QUEUED, 0)


BUILDER = """
import sys
from pathlib import Path
from service.building import Builder
from service.state.database import Database
from variants.catalog import Catalog
Builder(Database(sys.argv[1]), Catalog(root=Path(sys.argv[2])), (sys.executable, "-c", sys.argv[3])).run()
"""


def test_the_job_of_a_builder_that_is_killed_is_done_by_the_next(
    url: str, catalog: Catalog, database: Database, store: JobStore
) -> None:
    job = queued(store)
    with subprocess.Popen([sys.executable, "-c", BUILDER, url, catalog.root, STUCK], cwd=ROOT) as first:
        pid = grandchild(store, job)
        first.kill()
    os.kill(pid, signal.SIGKILL)
    with database.writing() as connection:  # its lease ends
        connection.execute(update(jobs).values(expires=0.0))
    with working(database, catalog, TELLS):
        until(lambda: store.find(job.id).state.is_final)
    ended = store.find(job.id)
    assert (ended.state, ended.error, ended.attempts) == (State.SUCCEEDED, None, 2)


def test_a_recipe_of_a_running_gateway_is_built_for_real(homes: Homes) -> None:
    database = Database(f"sqlite:///{homes.mipgate / 'state.db'}")
    database.migrate()
    store = JobStore(database)
    job = store.add(Kind.BUILD, "digits", {"name": "mine", "steps": [{"pass": "fp16"}]})
    builder = subprocess.Popen([sys.executable, "-m", "service.building"], cwd=ROOT, env=homes.environment)
    try:
        until(lambda: store.find(job.id).state.is_final, BUILT_WITHIN_S)
    finally:
        builder.send_signal(signal.SIGTERM)
        assert builder.wait(SOON_S) == 0
    ended = store.find(job.id)
    assert (ended.state, ended.error) == (State.SUCCEEDED, None)
    assert ended.result["life"] == "candidate"
    assert ended.result["variant"].startswith("mine@")
    database.close()
