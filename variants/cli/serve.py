"""`mipgate serve`."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path

import click
import httpx

from variants.catalog import SAMPLES_FILE, Catalog
from variants.cli.bento import pack
from variants.cli.builder import builder_beside
from variants.home import subfolder
from variants.samples import read_split

_SERVICE = "service.gateway:Gateway"
_READY_WITHIN_S = 600.0
_LONGEST_ON_SCREEN = 2000
_KEY_HEADER = ' -H "Authorization: Bearer $MIPGATE_KEY"'


@click.command(name="serve")
@click.option("--port", default=3000, show_default=True, envvar="PORT", help="Port to listen on.")
@click.option("--host", default="0.0.0.0", show_default=True, help="Address to listen on.")
@click.option("--workers", type=click.IntRange(1), envvar="MIPGATE_WORKERS", help="Worker processes.")
@click.option("--bento", is_flag=True, help="Pack the released variants into a Bento and serve that.")
@click.option("--with-builder", is_flag=True, help="Start a builder beside the gateway, and stop it with it.")
@click.option("--examples/--no-examples", default=True, help="Print a request per tier once ready.")
def command(
    port: int, host: str, workers: int | None, bento: bool, with_builder: bool, examples: bool
) -> None:
    """Serve the registered models over HTTP, until interrupted.

    Example: mipgate serve --port 3000
    """
    catalog = Catalog()
    if not catalog.models():
        raise click.ClickException("no model is registered. Run `mipgate build digits` first.")
    service = pack() if bento else _SERVICE
    environment = os.environ | ({"MIPGATE_WORKERS": str(workers)} if workers else {})
    command_line = [sys.executable, "-m", "bentoml", "serve", service, "--port", str(port), "--host", host]
    started = time.monotonic()
    beside = builder_beside() if with_builder else nullcontext()
    with beside, subprocess.Popen(command_line, env=environment, cwd=_service_folder()) as server:
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, lambda received, _: server.send_signal(received))
        address = f"http://localhost:{port}"
        if examples and _wait_until_ready(server, address):
            click.echo(f"\nready after {time.monotonic() - started:.1f} s on {address}\n")
            print_examples(catalog, address, os.environ.get("MIPGATE_KEY"))
        status = server.wait()
    sys.exit(max(status, 0))


def _service_folder() -> Path:
    """The folder that BentoML imports the service from."""
    return Path(__file__).resolve().parents[2]


def _wait_until_ready(server: subprocess.Popen[bytes], address: str) -> bool:
    end = time.monotonic() + _READY_WITHIN_S
    while server.poll() is None and time.monotonic() < end:
        try:
            if httpx.get(f"{address}/v2/health/ready", timeout=5).is_success:
                return True
        except httpx.TransportError:
            pass  # not listening yet
        time.sleep(0.1)
    return False


def print_examples(catalog: Catalog, address: str, key: str | None) -> None:
    """Copy-paste requests for each model, or in a sentence why there are none."""
    bring = {"Authorization": f"Bearer {key}"} if key else {}
    for model in catalog.models():
        try:
            answer = httpx.get(f"{address}/v2/models/{model}", headers=bring, timeout=30)
        except httpx.TransportError as error:
            click.echo(f"No examples of {model}: the gateway does not answer ({error}). Read its log.")
            return
        if answer.status_code == httpx.codes.UNAUTHORIZED:
            wrong = "it does not know that of MIPGATE_KEY" if key else "set MIPGATE_KEY to see them"
            click.echo(f"Examples need a key that this gateway takes; {wrong}.")
            return
        if not answer.is_success:
            click.echo(f"No examples of {model}: the gateway answers {answer.status_code}. Read its log.")
            continue
        datatypes = {tensor["name"]: tensor["datatype"] for tensor in answer.json()["inputs"]}
        _print_model(catalog, model, datatypes, address, _KEY_HEADER if key else "")


def _print_model(
    catalog: Catalog, model: str, datatypes: Mapping[str, str], address: str, header: str
) -> None:
    """One `curl` per tier, with a real row in it."""
    split = read_split(catalog.card_file(model, SAMPLES_FILE))
    for number, tier in enumerate(catalog.card(model).spec.tiers):
        row = split.take(slice(number, number + 1))
        label = f": a {row.labels[0]}" if row.labels is not None else ""
        inputs = [
            {
                "name": name,
                "datatype": datatypes[name],
                "shape": list(array.shape),
                "data": [_short(value) for value in array.ravel().tolist()],
            }
            for name, array in row.inputs.items()
        ]
        body = json.dumps({"inputs": inputs, "parameters": {"tier": tier.name}}, separators=(",", ":"))
        click.echo(f"# {model}, tier {tier.name}{label}")
        url = f"{address}/v2/models/{model}/infer"
        click.echo(f"curl -s {url} -H 'Content-Type: application/json'{header} \\")
        click.echo(f"  -d {_data(body, model, tier.name)}\n")


def _short(value: object) -> object:
    """`5` for 5.0: the example is for people to read."""
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _data(body: str, model: str, tier: str) -> str:
    """The body itself, or the name of a file that holds it when it would fill the screen."""
    if len(body) <= _LONGEST_ON_SCREEN:
        return f"'{body}'"
    path = subfolder("examples") / f"{model}-{tier}.json"
    path.write_text(body)
    return f"@{path}"
