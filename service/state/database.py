"""The database: SQLite in the Mipgate home, or PostgreSQL by URL. Synchronous: not for the event loop."""

from __future__ import annotations

import sqlite3
import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from pathlib import Path

import orjson
from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from filelock import FileLock
from sqlalchemy import URL, Connection, Engine, ExceptionContext, create_engine, event, make_url, text
from sqlalchemy.exc import ArgumentError, InterfaceError, InternalError, OperationalError
from sqlalchemy.exc import TimeoutError as PoolTimeoutError

from variants.home import mipgate_home

_SCRIPTS = "service.state:migrations"
_MIGRATION_LOCK = 0x6D697067  # of PostgreSQL's advisory locks: "mipg"
_POOL_TIMEOUT_S = 5
_PRAGMAS = ("busy_timeout=2000", "synchronous=NORMAL", "foreign_keys=ON")
_POSTGRES = {
    "application_name": "mipgate",
    "connect_timeout": 2,
    # A server that went away without a word is noticed within seconds, not after a quarter of an hour, and
    # a worker that stops in the middle of a transaction does not hold up the others.
    "tcp_user_timeout": 3000,
    "options": "-c statement_timeout=5s -c lock_timeout=3s -c idle_in_transaction_session_timeout=2s",
}
_PATIENT = ("statement_timeout", "lock_timeout", "idle_in_transaction_session_timeout")
# SQLSTATEs: no connection; a transaction that may not write, or was ended for idling; an operator's doing.
_LOST = ("08", "25", "57P")
_REMEDY = "Use sqlite:////path/to/file or postgresql://user@host/name."


class StateAwayError(Exception):
    """The database does not answer now."""


class StateNewerError(Exception):
    """A newer Mipgate has changed the database."""


class StateUrlError(ValueError):
    """`MIPGATE_STATE` names no database that Mipgate can use."""


class Database:
    """Connections to the shared state.

    Args:
        url: `sqlite:////path/to/file` or `postgresql://user@host/name`; empty for a file in the Mipgate home.

    Raises:
        StateUrlError: The URL cannot be used.
    """

    def __init__(self, url: str = "") -> None:
        self._engine = _engine(url or f"sqlite:///{mipgate_home() / 'state.db'}")

    def __str__(self) -> str:
        """The URL, without its password."""
        return self._engine.url.render_as_string(hide_password=True)

    @property
    def kind(self) -> str:
        """`sqlite` or `postgresql`."""
        return self._engine.dialect.name

    @contextmanager
    def reading(self) -> Iterator[Connection]:
        """A transaction that only reads.

        Raises:
            StateAwayError: The database does not answer.
        """
        with _told(), self._engine.begin() as connection:
            yield connection

    @contextmanager
    def writing(self) -> Iterator[Connection]:
        """A transaction that is committed as a whole when the block ends, and undone when it raises.

        Raises:
            StateAwayError: The database does not answer; whether a commit arrived is unknown then.
        """
        with _told(), self._engine.execution_options(writes=True).begin() as connection:
            yield connection

    def now(self, connection: Connection) -> float:
        """Unix time by the clock that all workers share: the server's, or this host's where it is a file."""
        if self._file is not None:
            return time.time()
        return float(connection.scalar(text("SELECT extract(epoch FROM clock_timestamp())")) or 0.0)

    def migrate(self) -> None:
        """Brings the tables to this version; of several that start at once, one does it and the others wait.

        Raises:
            StateAwayError: The database does not answer.
            StateNewerError: Its tables are those of a newer version.
        """
        scripts = Config()
        scripts.set_main_option("script_location", _SCRIPTS)
        with self._alone(), _told(), self._engine.execution_options(writes=True).connect() as connection:
            connection.detach()  # what is set for this connection does not go back to the others
            if self._file is not None:
                connection.connection.execute("PRAGMA journal_mode=WAL")
                connection.connection.execute("PRAGMA foreign_keys=OFF")  # a table may be made anew
            with connection.begin():
                if self._file is None:
                    for limit in _PATIENT:
                        connection.execute(text(f"SET LOCAL {limit} = 0"))
                    connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _MIGRATION_LOCK})
                scripts.attributes["connection"] = connection
                _upgrade(scripts)

    def close(self) -> None:
        """Closes every connection."""
        self._engine.dispose()

    @property
    def _file(self) -> Path | None:
        return Path(self._engine.url.database or "") if self._engine.dialect.name == "sqlite" else None

    def _alone(self) -> AbstractContextManager[object]:
        """A lock beside the file: SQLite does not wait for its turn to switch to its write-ahead log."""
        if self._file is None:
            return nullcontext()
        self._file.parent.mkdir(parents=True, exist_ok=True)
        return FileLock(f"{self._file}.lock")


def _upgrade(scripts: Config) -> None:
    try:
        command.upgrade(scripts, "head")
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise StateNewerError(
            f"a newer Mipgate has changed this database: revision {error.__cause__.argument} is not known "
            "here. Start that version, or restore the backup of before."
        ) from error


@contextmanager
def _told() -> Iterator[None]:
    """Tells a database that is away from a mistake of ours."""
    try:
        yield
    except (OperationalError, InterfaceError, InternalError) as error:
        raise StateAwayError(f"the database does not answer: {str(error.orig).strip()}") from error
    except PoolTimeoutError as error:
        raise StateAwayError("the database does not answer: no connection became free") from error


def _engine(text_url: str) -> Engine:
    try:
        url = make_url(text_url)
        if url.get_backend_name() == "sqlite" and url.database not in (None, "", ":memory:"):
            return _sqlite(url)
        if url.get_backend_name() == "postgresql":
            url = url.set(drivername="postgresql+psycopg")
            return _postgresql(url)
    except ArgumentError as error:
        raise StateUrlError(f"MIPGATE_STATE is no URL of a database. {_REMEDY}") from error
    except ImportError as error:
        raise StateUrlError("the driver of PostgreSQL is missing. Install psycopg[binary].") from error
    raise StateUrlError(f"MIPGATE_STATE names {url.get_backend_name()} without a file or server. {_REMEDY}")


def _to_json(document: object) -> str:
    """JSON that every database takes: a number that is none becomes null."""
    return orjson.dumps(document).decode()


def _from_json(value: str | bytes | float) -> object:
    """What JSON says; SQLite gives a lone number as one."""
    return orjson.loads(value) if isinstance(value, str | bytes) else value


def _postgresql(url: URL) -> Engine:
    engine = create_engine(
        url,
        connect_args=_POSTGRES,
        pool_pre_ping=True,
        pool_timeout=_POOL_TIMEOUT_S,
        json_serializer=_to_json,
        json_deserializer=_from_json,
    )

    @event.listens_for(engine, "handle_error")
    def failed(context: ExceptionContext) -> None:
        # After a failover the old server may answer still, and refuse to write: connections are made anew.
        if (getattr(context.original_exception, "sqlstate", None) or "").startswith(_LOST):
            context.is_disconnect = True

    return engine


def _sqlite(url: URL) -> Engine:
    engine = create_engine(
        url, pool_timeout=_POOL_TIMEOUT_S, json_serializer=_to_json, json_deserializer=_from_json
    )

    @event.listens_for(engine, "connect")
    def connected(connection: sqlite3.Connection, _: object) -> None:
        connection.isolation_level = None  # we say when a transaction begins
        for pragma in _PRAGMAS:
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begun(connection: Connection) -> None:
        # A writer takes its turn at the start: one that had read before could only give up.
        writes = connection.get_execution_options().get("writes")
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
