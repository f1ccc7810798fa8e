"""`python -m service.access`: keys in the database, for whoever may write there; behind `mipgate keys`."""

from __future__ import annotations

import getpass
import json
import time

import click

from service.access.keys import new_key
from service.access.principal import Principal, Role
from service.access.store import AccessStore
from service.config import ConfigError, config
from service.state.database import Database, StateAwayError, StateNewerError, StateUrlError

_LONGEST_NAME = 80


@click.group()
def main() -> None:
    """Makes, lists and revokes keys; answers in JSON."""


@main.command()
@click.argument("name")
@click.argument("role", type=click.Choice([role.value for role in Role]))
@click.argument("rate", type=float, required=False)
def create(name: str, role: str, rate: float | None) -> None:
    """Makes a key."""
    if not 1 <= len(name) <= _LONGEST_NAME or not name.isprintable():
        raise click.ClickException(f"the name has 1 to {_LONGEST_NAME} printable characters. Change it.")
    store, who = _store(), _who()
    shown, key = new_key(name, Role(role), time.time(), rate)
    store.add(key)
    store.record(who, "create key", key.id, None, key.to_json(), time.time())
    click.echo(json.dumps({**key.to_json(), "key": shown}))


@main.command(name="list")
def list_keys() -> None:
    """Lists the keys in force."""
    click.echo(json.dumps([key.to_json() for key in _store().keys(time.time())]))


@main.command()
@click.argument("key_id")
def revoke(key_id: str) -> None:
    """Revokes a key."""
    store = _store()
    key = store.revoke(key_id, time.time())
    if key is None:
        raise click.ClickException(f'no key "{key_id[:80]}" is in force. List them: `mipgate keys list`.')
    store.record(_who(), "revoke key", key.id, key.to_json(), None, time.time())
    click.echo(json.dumps({"id": key.id, "revoked": True}))


def _store() -> AccessStore:
    database = Database(config().state)
    database.migrate()
    return AccessStore(database)


def _who() -> Principal:
    return Principal(f"shell {getpass.getuser()}", Role.ADMIN)


if __name__ == "__main__":
    try:
        main(standalone_mode=True)
    except (ConfigError, StateAwayError, StateNewerError, StateUrlError) as error:
        raise SystemExit(f"Error: {error}") from error
