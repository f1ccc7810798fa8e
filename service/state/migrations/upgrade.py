"""The upgrade itself. Imported when it is due: alembic takes a while, and most processes never need it."""

from __future__ import annotations

from alembic import command
from alembic.config import Config
from alembic.script.revision import ResolutionError
from alembic.util import CommandError
from sqlalchemy import Connection

_SCRIPTS = "service.state:migrations"


class UnknownRevisionError(Exception):
    """The tables are of a revision that is not known here; the message is its name."""


def upgrade(connection: Connection) -> None:
    """Brings the tables to this version, in the transaction that is open.

    Raises:
        UnknownRevisionError: They are those of a newer version.
    """
    scripts = Config()
    scripts.set_main_option("script_location", _SCRIPTS)
    scripts.attributes["connection"] = connection
    try:
        command.upgrade(scripts, "head")
    except CommandError as error:
        if not isinstance(error.__cause__, ResolutionError):
            raise
        raise UnknownRevisionError(error.__cause__.argument) from error
