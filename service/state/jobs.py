"""Work for builders: queued by gateways, taken by one builder at a time, taken over when that one dies."""

from __future__ import annotations

import secrets
from collections.abc import Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, and_, delete, insert, or_, select, update

from service.errors import ConflictError, NotFoundError
from service.state.database import Database
from service.state.tables import jobs

MOST_ATTEMPTS = 3


class Kind(StrEnum):
    """What a builder can do."""

    BUILD = "build"
    SEARCH = "search"
    PROFILE = "profile"


class State(StrEnum):
    """Where a job stands."""

    QUEUED = "queued"
    RUNNING = "running"
    SUCCEEDED = "succeeded"
    FAILED = "failed"
    CANCELLED = "cancelled"

    @property
    def is_final(self) -> bool:
        """Whether nothing follows."""
        return self not in (State.QUEUED, State.RUNNING)


@dataclass(frozen=True)
class Job:
    """A piece of work.

    Attributes:
        id: Its name.
        kind: What is to be done.
        model: Which model it is about.
        arguments: What the kind needs to know, as JSON.
        state: Where it stands.
        phrase: What it does now, for people.
        fraction: How far it is, 0..1.
        created: When it was asked for, in Unix time.
        started: When a builder first took it, or None.
        finished: When it ended, or None.
        error: Why it failed, or None.
        result: What came of it, as JSON, or None.
        cancelling: Whether it was asked to stop.
        attempts: How many builders took it.
    """

    id: str
    kind: Kind
    model: str
    arguments: dict[str, Any]
    state: State
    phrase: str
    fraction: float
    created: float
    started: float | None
    finished: float | None
    error: str | None
    result: Any
    cancelling: bool
    attempts: int


class JobStore:
    """Reads and writes jobs."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def add(self, kind: Kind, model: str, arguments: Mapping[str, Any]) -> Job:
        """Queues a job.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            values = {
                "id": secrets.token_hex(6),
                "kind": kind.value,
                "model": model,
                "arguments": dict(arguments),
                "state": State.QUEUED.value,
                "phrase": "waits for a builder",
                "created": self._database.now(connection),
            }
            row = connection.execute(insert(jobs).values(values).returning(jobs)).one()
        return _job(row)

    def find(self, job: str) -> Job:
        """The job of this id.

        Raises:
            NotFoundError: There is none.
            StateAwayError: The database does not answer.
        """
        with self._database.reading() as connection:
            return _find(connection, job)

    def of(self, model: str | None = None, limit: int = 100) -> list[Job]:
        """Jobs of a model, or of all, the newest first.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(jobs).order_by(jobs.c.created.desc(), jobs.c.id).limit(limit)
        if model is not None:
            query = query.where(jobs.c.model == model)
        with self._database.reading() as connection:
            return [_job(row) for row in connection.execute(query)]

    def cancel(self, job: str) -> Job:
        """Cancels a job that waits, or asks the builder of one that runs to stop it.

        Raises:
            NotFoundError: There is no such job.
            ConflictError: It has ended already.
            StateAwayError: The database does not answer.
        """
        mine = jobs.c.id == job
        with self._database.writing() as connection:
            now = self._database.now(connection)
            ended = {"state": State.CANCELLED.value, "finished": now, "phrase": "cancelled"}
            waits = update(jobs).where(mine, jobs.c.state == State.QUEUED.value).values(ended)
            if not connection.execute(waits).rowcount:
                runs = update(jobs).where(mine, jobs.c.state == State.RUNNING.value)
                if not connection.execute(runs.values(cancelling=True)).rowcount:
                    found = _find(connection, job)
                    raise ConflictError(f"the job {job} has {found.state.value}. There is nothing to cancel.")
            return _find(connection, job)

    # For builders

    def take(self, holder: str, duration_s: float) -> Job | None:
        """The oldest job that waits, or whose builder died; None when there is none.

        A job that was begun too often, or was to be cancelled when its builder died, ends here.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            _end_orphans(connection, now)
            oldest = select(jobs).where(_is_free(now)).order_by(jobs.c.created, jobs.c.id).limit(1)
            row = connection.execute(oldest.with_for_update(skip_locked=True)).one_or_none()
            if row is None:
                return None
            begun = {
                "state": State.RUNNING.value,
                "started": row.started or now,
                "phrase": "begins",
                "fraction": 0.0,
                "attempts": row.attempts + 1,
                "holder": holder,
                "expires": now + duration_s,
            }
            taken = update(jobs).where(jobs.c.id == row.id).values(begun).returning(jobs)
            return _job(connection.execute(taken).one())

    def progress(self, job: Job, holder: str, phrase: str, fraction: float, duration_s: float) -> Job | None:
        """Tells how far a job is, and keeps it for this builder.

        Returns:
            The job, whose `cancelling` is to be heeded; None when it is another builder's now.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            expires = self._database.now(connection) + duration_s
            told = {"phrase": phrase, "fraction": fraction, "expires": expires}
            mine = update(jobs).where(*_is_mine(job, holder)).values(told).returning(jobs)
            row = connection.execute(mine).one_or_none()
        return None if row is None else _job(row)

    def finish(
        self, job: Job, holder: str, state: State, error: str | None = None, result: Any = None
    ) -> bool:
        """Ends a job; says whether it was still this builder's.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            ended = {
                "state": state.value,
                "phrase": state.value,
                "finished": self._database.now(connection),
                "error": error,
                "result": result,
            }
            if state is State.SUCCEEDED:
                ended["fraction"] = 1.0
            return bool(connection.execute(update(jobs).where(*_is_mine(job, holder)).values(ended)).rowcount)

    def give_back(self, job: Job, holder: str) -> None:
        """Puts a job back that this builder cannot end; the attempt does not count.

        Raises:
            StateAwayError: The database does not answer; the job is taken over when its lease ends.
        """
        waits = {"state": State.QUEUED.value, "phrase": "waits for a builder", "attempts": job.attempts - 1}
        with self._database.writing() as connection:
            connection.execute(update(jobs).where(*_is_mine(job, holder)).values(waits))

    def ended(self, after: float, until: float) -> list[Job]:
        """Jobs that ended in this time.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(jobs).where(jobs.c.finished > after, jobs.c.finished <= until)
        with self._database.reading() as connection:
            return [_job(row) for row in connection.execute(query)]

    def prune(self, connection: Connection, before: float) -> None:
        """Forgets jobs that ended earlier."""
        connection.execute(delete(jobs).where(jobs.c.finished < before))


def _is_mine(job: Job, holder: str) -> tuple[ColumnElement[bool], ...]:
    # The attempt is the fencing token: it grows with every builder that takes the job.
    return (
        jobs.c.id == job.id,
        jobs.c.state == State.RUNNING.value,
        jobs.c.holder == holder,
        jobs.c.attempts == job.attempts,
    )


def _is_orphan(now: float) -> ColumnElement[bool]:
    return and_(jobs.c.state == State.RUNNING.value, jobs.c.expires < now)


def _is_free(now: float) -> ColumnElement[bool]:
    return or_(jobs.c.state == State.QUEUED.value, _is_orphan(now))


def _end_orphans(connection: Connection, now: float) -> None:
    cancelled = update(jobs).where(_is_orphan(now), jobs.c.cancelling.is_(True))
    connection.execute(cancelled.values(state=State.CANCELLED.value, phrase="cancelled", finished=now))
    worn_out = update(jobs).where(_is_orphan(now), jobs.c.attempts >= MOST_ATTEMPTS)
    error = f"its builder died {MOST_ATTEMPTS} times. Look at the builder's log and at its memory."
    connection.execute(worn_out.values(state=State.FAILED.value, phrase="failed", finished=now, error=error))


def _find(connection: Connection, job: str) -> Job:
    row = connection.execute(select(jobs).where(jobs.c.id == job)).one_or_none()
    if row is None:
        raise NotFoundError(f'no job "{job[:80]}". List them at /admin/jobs.')
    return _job(row)


def _job(row: Row[Any]) -> Job:
    return Job(
        row.id,
        Kind(row.kind),
        row.model,
        row.arguments,
        State(row.state),
        row.phrase,
        row.fraction,
        row.created,
        row.started,
        row.finished,
        row.error,
        row.result,
        row.cancelling,
        row.attempts,
    )
