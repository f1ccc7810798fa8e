"""Rollouts in the database: each change with its line of history, guarded by the version before it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from sqlalchemy import Connection, delete, func, insert, select, text, update

from service.errors import ConflictError, NotFoundError
from service.rollout.rollout import Rollout, Transition
from service.state.database import Database
from service.state.leases import Lease, check
from service.state.tables import EVERY_TIER, evidence, rollout_history, rollouts


class StaleError(ConflictError):
    """The rollout has changed since it was read.

    Attributes:
        current: What it is now.
    """

    def __init__(self, message: str, current: Rollout) -> None:
        super().__init__(message)
        self.current = current


class RolloutStore:
    """Reads and writes rollouts and their history."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def create(self, started: Transition) -> None:
        """Keeps a new rollout.

        Raises:
            StaleError: Another rollout runs for the same requests; the error has it.
            StateAwayError: The database does not answer.
        """
        rollout = started.rollout
        with self._database.writing() as connection:
            if connection.dialect.name == "postgresql":  # SQLite's writers wait for each other anyway
                connection.execute(text("LOCK TABLE rollouts IN SHARE ROW EXCLUSIVE MODE"))
            if running := _overlapping(connection, rollout):
                where = "all tiers" if running.tier is None else f"tier {running.tier}"
                raise StaleError(
                    f"tier: the rollout {running.id} of {running.model} has {where} and is "
                    f"{running.phase.value}. Promote or abort it first.",
                    running,
                )
            connection.execute(insert(rollouts).values(_row(rollout) | {"created": rollout.created}))
            _remember(connection, started)

    def record(self, transition: Transition, lease: Lease | None = None) -> None:
        """Keeps a change and its line of history, both or neither.

        Args:
            transition: The change; its version is one more than that of what it began from.
            lease: What the writer must still hold, for the gateway's own changes.

        Raises:
            StaleError: The rollout has changed meanwhile; the error has what it is now.
            FencedError: The lease has another holder now.
            StateAwayError: The database does not answer.
        """
        after = transition.rollout
        with self._database.writing() as connection:
            if lease is not None:
                check(connection, lease)
            unchanged = rollouts.c.id == after.id, rollouts.c.version == after.version - 1
            changed = connection.execute(update(rollouts).where(*unchanged).values(_row(after)))
            if not changed.rowcount:
                raise _stale(_find(connection, after.id))
            _remember(connection, transition)

    def check(self, rollout: Rollout, lease: Lease) -> None:
        """Makes sure that what is about to be done for a rollout is still wanted, and ours to do.

        Raises:
            StaleError: The rollout has changed meanwhile; the error has what it is now.
            FencedError: The lease has another holder now.
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            check(connection, lease)
            current = _find(connection, rollout.id)
        if current.version != rollout.version:
            raise _stale(current)

    def change(
        self, rollout: str, decide: Callable[[Rollout, float], Transition], version: int | None = None
    ) -> Rollout:
        """Makes an operator's change.

        Args:
            rollout: Its id.
            decide: The change to a rollout at a time (Unix); raises what the caller is told.
            version: What the operator saw; None for whatever it is now.

        Returns:
            The rollout after it.

        Raises:
            NotFoundError: There is no such rollout.
            StaleError: It is not, or no longer, what the operator saw.
            StateAwayError: The database does not answer.
        """
        with self._database.reading() as connection:
            before, now = _find(connection, rollout), self._database.now(connection)
        if version not in (None, before.version):
            raise _stale(before)
        transition = decide(before, now)
        self.record(transition)
        return transition.rollout

    def find(self, rollout: str) -> Rollout:
        """The rollout of this id.

        Raises:
            NotFoundError: There is none.
            StateAwayError: The database does not answer.
        """
        with self._database.reading() as connection:
            return _find(connection, rollout)

    def of(self, model: str | None = None, limit: int = 100) -> list[Rollout]:
        """Rollouts of a model, or of all: those that run, then the others, the newest first.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(rollouts.c.document).order_by(rollouts.c.ended, rollouts.c.created.desc()).limit(limit)
        if model is not None:
            query = query.where(rollouts.c.model == model)
        with self._database.reading() as connection:
            return [Rollout.from_json(document) for document in connection.scalars(query)]

    def running(self, known: Mapping[str, Rollout]) -> dict[str, Rollout]:
        """Rollouts that have not ended, by id; only those that differ from the known are read in full.

        Raises:
            StateAwayError: The database does not answer.
        """
        versions = select(rollouts.c.id, rollouts.c.version).where(rollouts.c.ended.is_(False))
        with self._database.reading() as connection:
            found = {row.id: row.version for row in connection.execute(versions)}
            kept = {i: known[i] for i, version in found.items() if i in known and known[i].version == version}
            changed = select(rollouts.c.document).where(rollouts.c.id.in_(found.keys() - kept.keys()))
            documents = connection.scalars(changed).all() if len(kept) < len(found) else ()
        read = (Rollout.from_json(document) for document in documents)
        return kept | {rollout.id: rollout for rollout in read}

    def history(self, rollout: str) -> list[dict[str, Any]]:
        """Every change of a rollout, the oldest first.

        Raises:
            NotFoundError: There is no such rollout.
            StateAwayError: The database does not answer.
        """
        lines = rollout_history.c
        columns = lines.at, lines.version, lines.phase, lines.who, lines.reason, lines.weights, lines.figures
        query = select(*columns).where(lines.rollout == rollout).order_by(lines.version)
        with self._database.reading() as connection:
            _find(connection, rollout)
            return [
                {str(name): value for name, value in row.items()}
                for row in connection.execute(query).mappings()
            ]

    def prune(self, connection: Connection, before: float) -> None:
        """Forgets rollouts that ended earlier, with their history and evidence."""
        old = rollouts.c.ended.is_(True), rollouts.c.updated < before
        connection.execute(delete(rollouts).where(*old))
        orphaned = evidence.c.rollout.not_in(select(rollouts.c.id))
        connection.execute(delete(evidence).where(orphaned))


def _overlapping(connection: Connection, rollout: Rollout) -> Rollout | None:
    """A rollout that runs for requests which the given one would take."""
    query = select(rollouts.c.document).where(rollouts.c.model == rollout.model, rollouts.c.ended.is_(False))
    if rollout.tier is not None:
        query = query.where(rollouts.c.tier.in_([rollout.tier, EVERY_TIER]))
    document = connection.scalar(query.limit(1))
    return None if document is None else Rollout.from_json(document)


def _find(connection: Connection, rollout: str) -> Rollout:
    document = connection.scalar(select(rollouts.c.document).where(rollouts.c.id == rollout))
    if document is None:
        known = connection.scalar(select(func.count()).select_from(rollouts))
        raise NotFoundError(f'no rollout "{rollout[:80]}" among {known}. List them by their model.')
    return Rollout.from_json(document)


def _stale(current: Rollout) -> StaleError:
    return StaleError(
        f"the rollout {current.id} has changed: it is {current.phase.value} in version {current.version}. "
        "Look at it and decide again.",
        current,
    )


def _row(rollout: Rollout) -> dict[str, Any]:
    return {
        "id": rollout.id,
        "model": rollout.model,
        "tier": rollout.tier or EVERY_TIER,
        "phase": rollout.phase.value,
        "ended": rollout.phase.is_final,
        "version": rollout.version,
        "updated": rollout.updated,
        "document": rollout.to_json(),
    }


def _remember(connection: Connection, transition: Transition) -> None:
    line = transition.to_json() | {"rollout": transition.rollout.id}
    connection.execute(insert(rollout_history).values(line))
