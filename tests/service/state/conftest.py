"""The two databases: a SQLite file, and a database of a real PostgreSQL server."""

import os
import secrets
import shutil
import sqlite3
import subprocess
import tempfile
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import psycopg
import pytest

from service.state.database import Database
from tests.debian import program
from tests.variants.handmade import card, entry
from variants.catalog import SAMPLES_FILE, VALIDATION_FILE, Catalog
from variants.variant import Life

_FAST = "-c fsync=off -c listen_addresses= -c shared_buffers=16MB"


class Postgres:
    """A server of its own in a temporary folder, on a socket there."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.data = folder / "data"
        # PostgreSQL refuses to run as root.
        self._user = "nobody" if os.geteuid() == 0 else None
        if self._user:
            shutil.chown(folder, self._user)
        self._run("initdb", "--username=mipgate", "--auth=trust", "--no-sync", f"--pgdata={self.data}")

    def start(self) -> None:
        log = self.folder / "log"
        options = f"{_FAST} -k {self.folder}"
        self._run("pg_ctl", "start", "-w", f"--pgdata={self.data}", f"--log={log}", "-o", options)

    def stop(self, mode: str = "immediate") -> None:
        self._run("pg_ctl", "stop", "-w", f"--pgdata={self.data}", f"--mode={mode}")

    def url(self, user: str = "mipgate") -> str:
        return f"postgresql://{user}@/postgres?host={self.folder}"

    def create(self) -> str:
        """The URL of a user with an empty schema: cheaper than a database, and as good."""
        name = f"test_{secrets.token_hex(4)}"
        with psycopg.connect(self.url(), autocommit=True) as connection:
            connection.execute(f"CREATE ROLE {name} LOGIN; CREATE SCHEMA {name} AUTHORIZATION {name}")
        return self.url(name)

    def _run(self, name: str, *arguments: str) -> None:
        started = program("postgresql", f"usr/lib/postgresql/*/bin/{name}")
        ended = subprocess.run(
            [started, *arguments], user=self._user, cwd=self.folder, stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if name == "initdb" else subprocess.DEVNULL, stderr=subprocess.STDOUT,
            timeout=60,
        )  # fmt: skip
        assert ended.returncode == 0, (name, ended.stdout, (self.folder / "log").exists())


@pytest.fixture(scope="session")
def postgres() -> Iterator[Postgres]:
    folder = Path(tempfile.mkdtemp(prefix="pg-"))  # short: a socket's path has at most 107 characters
    server = Postgres(folder)
    server.start()
    yield server
    server.stop()
    shutil.rmtree(folder)


@pytest.fixture(params=["sqlite", "postgresql"])
def url(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """The URL of a database without tables, on each server in turn."""
    if request.param == "sqlite":
        return f"sqlite:///{tmp_path / 'state.db'}"
    server: Postgres = request.getfixturevalue("postgres")
    return server.create()


@pytest.fixture
def database(url: str) -> Iterator[Database]:
    """A database with its tables."""
    opened = Database(url)
    opened.migrate()
    yield opened
    opened.close()


@dataclass(frozen=True)
class Outage:
    """A database that can be taken away and given back."""

    url: str
    begin: Callable[[], None]
    end: Callable[[], None]


@pytest.fixture
def outage(request: pytest.FixtureRequest, url: str) -> Iterator[Outage]:
    """The same databases, each away in its own manner: locked by someone, or its server gone."""
    if url.startswith("sqlite"):
        path = url.removeprefix("sqlite:///")
        with closing(sqlite3.connect(path, isolation_level=None, check_same_thread=False)) as other:
            yield Outage(url, partial(_lock, other), other.rollback)
        return
    server: Postgres = request.getfixturevalue("postgres")
    yield Outage(url, server.stop, server.start)


def _lock(connection: sqlite3.Connection) -> None:
    connection.execute("BEGIN EXCLUSIVE")


@pytest.fixture
def catalog(tmp_path: Path) -> Catalog:
    """A store with a released reference of the model m and a candidate."""
    for name in (SAMPLES_FILE, VALIDATION_FILE):
        (tmp_path / name).touch()
    made = Catalog(root=tmp_path / "models")
    made.register(card(entry("fp32"), entry("int8", life=Life.CANDIDATE)), tmp_path)
    return made
