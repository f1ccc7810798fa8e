"""Leases: what only one process may do at a time, and how a late one is kept from doing it.

The token grows with every holder, and a write that needs the lease is refused when its token is an older one
(Gray and Cheriton 1989, "Leases"; Kleppmann 2016, "How to do distributed locking").
"""

from __future__ import annotations

from dataclasses import dataclass

from sqlalchemy import ColumnElement, Connection, delete, insert, select, update
from sqlalchemy.exc import IntegrityError

from service.state.database import Database
from service.state.tables import leases


class FencedError(Exception):
    """The lease has another holder now; what was about to be written is not."""


@dataclass(frozen=True)
class Lease:
    """The right to do something, until someone with a larger token has it."""

    name: str
    holder: str
    token: int


class Leases:
    """Gives leases out."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def take(self, name: str, holder: str, duration_s: float) -> Lease | None:
        """The lease, taken anew or prolonged; None while another holds it.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.reading() as connection:
            row = connection.execute(select(leases).where(leases.c.name == name)).one_or_none()
            if row is not None and row.holder != holder and row.expires > self._database.now(connection):
                return None
        try:
            with self._database.writing() as connection:
                return self._take(connection, name, holder, duration_s)
        except IntegrityError:  # two made the first lease of this name
            return None

    def _take(self, connection: Connection, name: str, holder: str, duration_s: float) -> Lease | None:
        row = connection.execute(select(leases).where(leases.c.name == name).with_for_update()).one_or_none()
        now = self._database.now(connection)
        if row is None:
            values = {"name": name, "holder": holder, "token": 1, "expires": now + duration_s}
            connection.execute(insert(leases).values(values))
            return Lease(name, holder, 1)
        if row.holder != holder and row.expires > now:
            return None
        token = row.token if row.holder == holder else row.token + 1
        changed = update(leases).where(leases.c.name == name)
        connection.execute(changed.values(holder=holder, token=token, expires=now + duration_s))
        return Lease(name, holder, token)

    def give_back(self, lease: Lease) -> None:
        """Lets the next one have it at once.

        Raises:
            StateAwayError: The database does not answer; the lease expires by itself.
        """
        with self._database.writing() as connection:
            connection.execute(update(leases).where(*_is(lease)).values(expires=0.0))

    def held(self, prefix: str) -> list[str]:
        """Names of the leases that begin like this and have a holder now.

        Raises:
            StateAwayError: The database does not answer.
        """
        with self._database.reading() as connection:
            now = self._database.now(connection)
            query = select(leases.c.name).where(leases.c.name.startswith(prefix), leases.c.expires > now)
            return list(connection.scalars(query))


def check(connection: Connection, lease: Lease) -> None:
    """Keeps the lease from changing hands until the transaction ends.

    Raises:
        FencedError: It has changed hands already.
    """
    query = select(leases.c.token).where(*_is(lease)).with_for_update()
    if connection.scalar(query) is None:
        raise FencedError(f"the lease {lease.name} is no longer {lease.holder}'s")


def forget(connection: Connection, prefix: str, before: float) -> None:
    """Deletes leases that expired by then; only for names that no holder uses again."""
    connection.execute(delete(leases).where(leases.c.name.startswith(prefix), leases.c.expires < before))


def _is(lease: Lease) -> tuple[ColumnElement[bool], ...]:
    return leases.c.name == lease.name, leases.c.holder == lease.holder, leases.c.token == lease.token
