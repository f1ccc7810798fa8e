"""`mipgate keys`."""

from __future__ import annotations

import json
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import click

from variants.cli.output import json_option, print_json, print_table
from variants.cli.remote import Remote, key_option, over_api_option


@click.group(name="keys")
def command() -> None:
    """Make, list and revoke API keys.

    Without --url they are kept in the database that MIPGATE_STATE names, which needs no key: it is
    for whoever may write there anyway. Running gateways follow within a second.

    Example: mipgate keys create ci --role operate
    """


@command.command()
@click.argument("name")
@click.option("--role", type=click.Choice(["infer", "operate", "admin"]), required=True)
@click.option("--rate", metavar="N/s", help="Requests a second that it may send.  [default: any number]")
@over_api_option
@key_option
@json_option
def create(name: str, role: str, rate: str | None, url: str | None, key: str | None, as_json: bool) -> None:
    """Make a key for NAME, and show it: this once, never again.

    Example: mipgate keys create web --role infer --rate 100/s
    """
    rate_per_s = _rate(rate)
    if url is None:
        made = _here("create", name, role, *([] if rate_per_s is None else [str(rate_per_s)]))
    else:
        body = {"name": name, "role": role, "rate_per_s": rate_per_s}
        made = Remote(url, key).post("/admin/keys", body)
    if as_json:
        print_json(made)
        return
    click.echo(made["key"])
    click.echo(f"{made['id']}, {role}. Nobody can show it again: keep it now.", err=True)


@command.command(name="list")
@over_api_option
@key_option
@json_option
def list_keys(url: str | None, key: str | None, as_json: bool) -> None:
    """List the keys that are in force, and sessions of the console.

    Example: mipgate keys list
    """
    keys = _here("list") if url is None else Remote(url, key).get("/admin/keys")
    if as_json:
        print_json(keys)
        return
    rows = [
        [
            each["id"],
            f"{each['name']} (console)" if each["session_of"] else each["name"],
            each["role"],
            "any" if each["rate_per_s"] is None else f"{each['rate_per_s']:g}/s",
            _moment(each["created"]),
            _moment(each["expires"]),
        ]
        for each in keys
    ]
    print_table(["id", "name", "role", "rate>", "made", "ends"], rows)


@command.command()
@click.argument("key_id", metavar="ID")
@over_api_option
@key_option
def revoke(key_id: str, url: str | None, key: str | None) -> None:
    """Revoke the key ID, with the console's sessions that came from it.

    Example: mipgate keys revoke 3f2a9c0d1e4b
    """
    _here("revoke", key_id) if url is None else Remote(url, key).delete(f"/admin/keys/{key_id}")
    click.echo(f"{key_id} is revoked.")


def _here(*arguments: str) -> Any:
    """Asks the database directly, in a process of the service."""
    sources = Path(__file__).resolve().parents[2]
    command_line = [sys.executable, "-m", "service.access", *arguments]
    done = subprocess.run(command_line, cwd=sources, capture_output=True, text=True, check=False)
    if done.returncode:
        lines = done.stderr.strip().splitlines() or ["it said nothing."]
        raise click.ClickException(lines[-1].removeprefix("Error: "))
    return json.loads(done.stdout)


def _rate(text: str | None) -> float | None:
    if text is None:
        return None
    number, _, unit = text.partition("/")
    try:
        rate = float(number)
    except ValueError:
        rate = 0.0
    if unit not in ("", "s") or not 0 < rate <= 1e6:
        raise click.BadParameter(f"{text!r} is no rate. Write 100/s.", param_hint="--rate")
    return rate


def _moment(seconds: float | None) -> str:
    return "-" if seconds is None else f"{datetime.fromtimestamp(seconds, UTC):%Y-%m-%d %H:%M} UTC"
