"""What workers saw, as increments that add up, and the answers whose labels may still come."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from secrets import token_hex
from typing import Any

from sqlalchemy import Connection, Row, Table, delete, insert, select, update
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert

from service.errors import ConflictError, NotFoundError
from service.rollout.evidence import ArmEvidence, Feedback, merge
from service.state.database import Database
from service.state.leases import Lease, check
from service.state.sealed import Seal, Served
from service.state.tables import evidence, rollouts, secrets, served, writers

_ROWS_PER_ARM = 20
_SEAL = "seal"

Arm = tuple[str, str]  # rollout, name of the arm


@dataclass(frozen=True)
class Batch:
    """What one worker writes at once. Its number keeps it from being written twice."""

    number: int
    evidence: Mapping[Arm, ArmEvidence] = field(default_factory=dict)
    served: Sequence[Served] = ()


@dataclass(frozen=True)
class Seen:
    """What a holder of the lease has read of a rollout: increments are read once.

    Attributes:
        token: Of the lease under which it was read; a later holder may have added increments up.
        rows: Ids of the increments.
        evidence: Their sum, by the arm's name.
    """

    token: int
    rows: frozenset[int] = frozenset()
    evidence: Mapping[str, ArmEvidence] = field(default_factory=dict)


class EvidenceStore:
    """Reads and writes evidence and served requests."""

    def __init__(self, database: Database) -> None:
        self._database = database
        self._seal: Seal | None = None

    def seal(self) -> Seal:
        """What makes and reads ids that carry their answer; its secret is made by whoever comes first.

        Raises:
            StateAwayError: The database does not answer.
        """
        if self._seal is None:
            with self._database.writing() as connection:
                _insert_new(connection, secrets, {"name": _SEAL, "value": token_hex(32)})
                value = connection.scalar(select(secrets.c.value).where(secrets.c.name == _SEAL))
            self._seal = Seal(bytes.fromhex(str(value)))
        return self._seal

    def write(self, worker: str, batch: Batch) -> None:
        """Writes a batch, once: it may be tried again when it is unknown whether it arrived.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.writing() as connection:
            now = self._database.now(connection)
            if not _is_first(connection, worker, batch.number, now):
                return
            _add(connection, batch.evidence, now)
            if batch.served:  # an id that was used before stays with its first answer
                _insert_new(connection, served, [answer._asdict() for answer in batch.served])

    def read(self, rollout: str) -> dict[str, ArmEvidence]:
        """All that was seen of a rollout, by the arm's name.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(evidence).where(evidence.c.rollout == rollout)
        with self._database.reading() as connection:
            return _merged(connection.execute(query))

    def compact(self, rollout: str, lease: Lease, before: Seen | None = None) -> Seen:
        """Adds the increments of a rollout up into one row for each arm, once there are many.

        Args:
            rollout: Its id.
            lease: Lets this worker alone do so.
            before: What the call before returned; None after one that failed, which may have come far.

        Returns:
            All that was seen of it.

        Raises:
            FencedError: The lease has another holder now.
            StateAwayError: The database does not answer.
        """
        if before is None or before.token != lease.token:
            before = Seen(lease.token)
        query = select(evidence).where(evidence.c.rollout == rollout, evidence.c.id.not_in(before.rows))
        with self._database.reading() as connection:
            fresh = connection.execute(query).all()
        rows = before.rows.union(row.id for row in fresh)
        seen = merge([before.evidence, _merged(fresh)])
        if len(rows) <= _ROWS_PER_ARM * len(seen):
            return Seen(lease.token, rows, seen)
        with self._database.writing() as connection:
            check(connection, lease)  # nobody else compacts, so the rows are still there
            now = self._database.now(connection)
            connection.execute(delete(evidence).where(evidence.c.id.in_(rows)))
            sums = _increments({(rollout, arm): counts for arm, counts in seen.items()}, now)
            rows = frozenset(connection.scalars(insert(evidence).returning(evidence.c.id), sums))
        return Seen(lease.token, rows, seen)

    def judge(
        self, labels: Mapping[str, Any], score: Callable[[Served, Any], Feedback], age_s: float
    ) -> list[Served]:
        """Joins labels with their answers, each once: all of them, or none.

        They are evidence of rollouts that run; of what has ended nothing follows any more.

        Args:
            labels: By the request's id.
            score: Holds an answer against its label; may refuse the label.
            age_s: Older answers are forgotten.

        Raises:
            NotFoundError: No answer with such an id is known, or it is too old.
            ConflictError: An answer was judged already.
            StateAwayError: The database does not answer.
        """
        judged = []
        seal = self.seal()
        with self._database.writing() as connection:
            now = self._database.now(connection)
            found: dict[Arm, ArmEvidence] = {}
            for request, label in sorted(labels.items()):  # in one order: two never block each other
                answer = _judged_once(connection, request, seal.open(request), now - age_s)
                counts = ArmEvidence(feedback=score(answer, label))
                arm = answer.rollout, answer.arm
                found[arm] = found[arm].merged(counts) if arm in found else counts
                judged.append(answer)
            mine = rollouts.c.id.in_({rollout for rollout, _ in found}), rollouts.c.ended.is_(False)
            running = set(connection.scalars(select(rollouts.c.id).where(*mine)))
            _add(connection, {arm: counts for arm, counts in found.items() if arm[0] in running}, now)
        return judged

    def prune(self, connection: Connection, before: float) -> None:
        """Forgets answers and writers that are older."""
        connection.execute(delete(served).where(served.c.at < before))
        connection.execute(delete(writers).where(writers.c.at < before))


def _judged_once(connection: Connection, request: str, carried: Served | None, oldest: float) -> Served:
    """The answer, unless it was judged already; one that its id carries is written now that it is."""
    if carried is not None and carried.at >= oldest:
        if _insert_new(connection, served, carried._asdict() | {"judged": True}):
            return carried
        raise _judged_already(request)
    mine = served.c.request == request, served.c.at >= oldest
    unjudged = update(served).where(*mine, served.c.judged.is_(False)).values(judged=True)
    row = connection.execute(unjudged.returning(served)).one_or_none()
    if row is not None:
        return Served(*row[:-1])
    if connection.scalar(select(served.c.request).where(*mine)) is None:
        raise NotFoundError(
            f'no answer "{request[:80]}" waits for a label. Send the `request_id` of a newer answer.'
        )
    raise _judged_already(request)


def _judged_already(request: str) -> ConflictError:
    return ConflictError(f'the answer "{request[:80]}" has its label already. Send each label once.')


def _is_first(connection: Connection, worker: str, number: int, now: float) -> bool:
    """Whether no batch with this number, or a later one, was written."""
    mine = update(writers).where(writers.c.worker == worker, writers.c.batch < number)
    if connection.execute(mine.values(batch=number, at=now)).rowcount:
        return True
    return _insert_new(connection, writers, {"worker": worker, "batch": number, "at": now}) > 0


def _insert_new(connection: Connection, table: Table, rows: dict[str, Any] | list[dict[str, Any]]) -> int:
    """Inserts the rows whose key is new; returns how many."""
    dialect_insert = sqlite_insert if connection.dialect.name == "sqlite" else postgresql_insert
    statement = dialect_insert(table).on_conflict_do_nothing()
    return connection.execute(statement, rows, execution_options={"preserve_rowcount": True}).rowcount


def _add(connection: Connection, arms: Mapping[Arm, ArmEvidence], now: float) -> None:
    if arms:
        connection.execute(insert(evidence), _increments(arms, now))


def _increments(arms: Mapping[Arm, ArmEvidence], now: float) -> list[dict[str, Any]]:
    return [
        {"rollout": rollout, "arm": arm, "at": now, "document": counts.to_json()}
        for (rollout, arm), counts in arms.items()
    ]


def _merged(rows: Iterable[Row[Any]]) -> dict[str, ArmEvidence]:
    return merge({row.arm: ArmEvidence.from_json(row.document)} for row in rows)
