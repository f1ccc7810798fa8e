"""API keys and the audit in the database. Blocks; called from threads."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

from sqlalchemy import ColumnElement, Connection, Row, delete, insert, or_, select, update

from service.access.keys import ApiKey
from service.access.principal import Principal, Role
from service.state.database import Database
from service.state.tables import api_keys, audit

log = logging.getLogger("mipgate.audit")

_LONGEST_TARGET = 255
_MOST_SESSIONS = 20  # of one parent


@dataclass(frozen=True)
class AuditLine:
    """One change: when (Unix time), by whom, what, to which target, and its state before and after."""

    at: float
    who: str
    what: str
    target: str
    before: Any
    after: Any


class AccessStore:
    """Reads and writes keys and audit lines."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def keys(self, now: float) -> list[ApiKey]:
        """Every key that is neither revoked nor expired, the oldest first.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(api_keys).where(*_in_force(now)).order_by(api_keys.c.created)
        with self._database.reading() as connection:
            return [_key(row) for row in connection.execute(query)]

    def had_keys(self) -> bool:
        """Whether there ever was a key, sessions not counted: revoked ones are kept.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(api_keys.c.id).where(api_keys.c.parent.is_(None)).limit(1)
        with self._database.reading() as connection:
            return connection.scalar(query) is not None

    def add(self, key: ApiKey) -> None:
        """Keeps a new key; a session beyond what one parent may have ends the oldest.

        Raises:
            StateAwayError: The database does not answer.
        """
        values = {
            "id": key.id,
            "hash": key.digest.hex(),
            "role": key.role.value,
            "name": key.name,
            "rate_per_s": key.rate_per_s,
            "created": key.created,
            "expires": key.expires,
            "parent": key.parent,
        }
        with self._database.writing() as connection:
            connection.execute(insert(api_keys).values(values))
            if key.parent is not None:
                _end_oldest(connection, key)

    def revoke(self, key_id: str, now: float) -> ApiKey | None:
        """Revokes a key, and the sessions that came from it.

        Returns:
            The key as it was, or None when there is no such key that is not revoked.

        Raises:
            StateAwayError: The database does not answer.
        """
        mine = or_(api_keys.c.id == key_id, api_keys.c.parent == key_id)
        with self._database.writing() as connection:
            found = connection.execute(
                select(api_keys).where(api_keys.c.id == key_id, api_keys.c.revoked.is_(None))
            ).one_or_none()
            if found is not None:
                unrevoked = update(api_keys).where(mine, api_keys.c.revoked.is_(None))
                connection.execute(unrevoked.values(revoked=now))
        return None if found is None else _key(found)

    def record(
        self, who: Principal, what: str, target: str, before: Any, after: Any, now: float
    ) -> AuditLine:
        """Writes one line of the audit: to the log, and to the table.

        Raises:
            StateAwayError: The database does not answer; the log has the line.
        """
        line = AuditLine(now, who.who, what, target[:_LONGEST_TARGET], before, after)
        log.info("%s: %s %s, before %s, after %s", line.who, what, line.target, before, after)
        with self._database.writing() as connection:
            connection.execute(insert(audit).values(vars(line)))
        return line

    def audited(self, limit: int) -> list[AuditLine]:
        """The newest lines of the audit, the newest first.

        Raises:
            StateAwayError: The database does not answer.
        """
        query = select(audit).order_by(audit.c.id.desc()).limit(limit)
        with self._database.reading() as connection:
            return [
                AuditLine(row.at, row.who, row.what, row.target, row.before, row.after)
                for row in connection.execute(query)
            ]

    def prune(self, connection: Connection, now: float, before: float) -> None:
        """Forgets sessions that have expired, and lines of the audit that are older than `before`."""
        expired = api_keys.c.parent.is_not(None), api_keys.c.expires <= now
        connection.execute(delete(api_keys).where(*expired))
        connection.execute(delete(audit).where(audit.c.at < before))


def _in_force(now: float) -> tuple[ColumnElement[bool], ...]:
    return api_keys.c.revoked.is_(None), or_(api_keys.c.expires.is_(None), api_keys.c.expires > now)


def _end_oldest(connection: Connection, newest: ApiKey) -> None:
    others = api_keys.c.parent == newest.parent, api_keys.c.id != newest.id, *_in_force(newest.created)
    by_age = select(api_keys.c.id).where(*others).order_by(api_keys.c.created.desc())
    if surplus := connection.scalars(by_age.offset(_MOST_SESSIONS - 1)).all():
        ended = update(api_keys).where(api_keys.c.id.in_(surplus))
        connection.execute(ended.values(revoked=newest.created))


def _key(row: Row[Any]) -> ApiKey:
    return ApiKey(
        row.id,
        row.name,
        Role(row.role),
        bytes.fromhex(row.hash),
        row.rate_per_s,
        row.created,
        row.expires,
        row.parent,
        row.revoked,
    )
