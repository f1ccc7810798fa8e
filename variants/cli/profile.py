"""`mipgate profile`."""

from __future__ import annotations

import click

from variants.assessment import assess, describe, verify_artifacts
from variants.catalog import Catalog
from variants.cli.output import json_option, print_json
from variants.cli.remote import Remote, key_option, over_api_option
from variants.cli.remote_job import run_job
from variants.cli.show import print_model
from variants.host import this_host
from variants.profiler import profile_model
from variants.progress import reporter


@click.command(name="profile")
@click.argument("model")
@click.option(
    "--workers",
    type=click.IntRange(1),
    default=1,
    show_default=True,
    help="Of the gateway.",
)
@over_api_option
@key_option
@json_option
def command(model: str, workers: int, url: str | None, key: str | None, as_json: bool) -> None:
    """Measure latency and quality of MODEL's variants again on this host.

    Example: mipgate profile digits
    """
    if url is not None:
        gateway = Remote(url, key)
        run_job(gateway, f"/admin/models/{model}/profile", {})
        if as_json:
            print_json(gateway.get(f"/admin/models/{model}"))
        return
    catalog, host = Catalog(), this_host(workers)
    with reporter() as progress:
        card = profile_model(catalog, model, host, progress, again=True)
    standings = assess(card, verify_artifacts(catalog, card), host)
    if as_json:
        print_json(describe(card, standings, host))
    else:
        print_model(card, standings, host)
