"""Both databases: their tables, and who comes first."""

import subprocess
import sys
import time
from contextlib import closing, suppress
from pathlib import Path

import pytest
from alembic import command
from alembic.autogenerate import compare_metadata
from alembic.config import Config
from alembic.migration import MigrationContext
from alembic.script import ScriptDirectory
from sqlalchemy import create_engine, make_url, text
from sqlalchemy.exc import IntegrityError

from service.state.database import Database, StateAwayError, StateNewerError, StateUrlError
from service.state.tables import metadata
from tests.conftest import ROOT
from tests.service.state.conftest import Postgres

SCRIPTS = Config()
SCRIPTS.set_main_option("script_location", "service.state:migrations")
REVISIONS = [script.revision for script in ScriptDirectory.from_config(SCRIPTS).walk_revisions()][::-1]


def test_revisions_lead_to_the_tables_that_the_code_knows(database: Database) -> None:
    with database.reading() as connection:
        assert not compare_metadata(MigrationContext.configure(connection), metadata)


@pytest.mark.parametrize("older", REVISIONS[:-1])
def test_an_older_database_is_brought_up_to_date_and_keeps_its_rows(url: str, older: str) -> None:
    drivername = "postgresql+psycopg" if url.startswith("postgresql") else "sqlite"
    engine = create_engine(make_url(url).set(drivername=drivername))
    with engine.begin() as connection:
        SCRIPTS.attributes["connection"] = connection
        command.upgrade(SCRIPTS, older)
        connection.execute(text("INSERT INTO leases VALUES ('conductor', 'w1', 7, 0)"))
    engine.dispose()
    database = Database(url)
    database.migrate()
    with database.reading() as connection:
        assert connection.execute(text("SELECT * FROM leases")).all() == [("conductor", "w1", 7, 0.0)]
        assert not compare_metadata(MigrationContext.configure(connection), metadata)
    database.close()


def test_the_database_of_a_newer_version_is_refused_and_left_alone(database: Database) -> None:
    with database.writing() as connection:
        connection.execute(text("UPDATE alembic_version SET version_num = '9999'"))
    for _ in range(2):
        with pytest.raises(StateNewerError, match=r"revision 9999 .* Start that version, or restore"):
            database.migrate()
    with database.reading() as connection:
        assert connection.scalar(text("SELECT version_num FROM alembic_version")) == "9999"


def test_workers_that_start_at_once_do_not_collide(url: str) -> None:
    code = "import sys; from service.state.database import Database; Database(sys.argv[1]).migrate()"
    starting = [
        subprocess.Popen([sys.executable, "-c", code, url], cwd=ROOT, stderr=subprocess.PIPE)
        for _ in range(4)
    ]
    assert [(process.communicate()[1], process.returncode) for process in starting] == [(b"", 0)] * 4


def test_a_transaction_that_raises_leaves_nothing(database: Database) -> None:
    with suppress(ZeroDivisionError), database.writing() as connection:
        connection.execute(text("INSERT INTO leases VALUES ('a', 'w1', 1, 0)"))
        _ = 1 / 0
    with database.reading() as connection:
        assert not connection.scalar(text("SELECT count(*) FROM leases"))


@pytest.mark.parametrize(
    ("beginning", "statement"),
    [
        ("SET TRANSACTION READ ONLY", "DELETE FROM leases"),  # as on a server that was failed over from
        ("SET idle_in_transaction_session_timeout = '20ms'; SELECT pg_sleep(0)", "SELECT 1"),
        ("SELECT pg_terminate_backend(pg_backend_pid())", "SELECT 1"),
    ],
    ids=["read only", "idle", "terminated"],
)
def test_a_server_that_refuses_is_away_and_is_connected_to_anew(
    postgres: Postgres, beginning: str, statement: str
) -> None:
    process = text("SELECT pg_backend_pid()")
    with closing(Database(postgres.create())) as database:
        database.migrate()
        with database.reading() as connection:
            before = connection.scalar(process)

        def write() -> None:
            with database.writing() as connection:
                assert connection.scalar(process) == before
                connection.exec_driver_sql(beginning)
                time.sleep(0.1)
                connection.execute(text(statement))

        with pytest.raises(StateAwayError, match="the database does not answer"):
            write()
        with database.writing() as connection:
            assert connection.scalar(process) != before
            connection.execute(text("DELETE FROM leases"))


def test_a_mistake_of_ours_is_none_of_the_database(database: Database) -> None:
    row = text("INSERT INTO leases VALUES ('a', 'w1', 1, 0)")
    with database.writing() as connection:
        connection.execute(row)
    with pytest.raises(IntegrityError), database.writing() as connection:
        connection.execute(row)


def test_the_default_is_a_file_in_the_home(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MIPGATE_HOME", str(tmp_path / "home"))
    database = Database()
    database.migrate()
    database.close()
    assert (tmp_path / "home" / "state.db").is_file()


@pytest.mark.parametrize("url", ["nonsense", "mysql://host/name", "sqlite://", "sqlite:///:memory:"])
def test_a_url_that_cannot_be_used_says_what_can(url: str) -> None:
    with pytest.raises(StateUrlError, match=r"MIPGATE_STATE .* Use sqlite:////path"):
        Database(url)


def test_a_password_is_not_shown() -> None:
    assert "geheim" not in str(Database("postgresql://me:geheim@nowhere/name"))
