"""`mipgate profile`."""

from __future__ import annotations

import click

from variants.assessment import assess, describe, verify_artifacts
from variants.catalog import Catalog
from variants.cli.output import json_option, print_json
from variants.cli.remote import Remote, key_option, over_api_option
from variants.cli.remote_job import run_job
from variants.cli.show import print_model
from variants.cli.target import find_variant
from variants.host import Host, this_host
from variants.profile import Profile
from variants.profiler import profile_model
from variants.progress import reporter


@click.command(name="profile")
@click.argument("name", metavar="MODEL[/VARIANT]")
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
def command(name: str, workers: int, url: str | None, key: str | None, as_json: bool) -> None:
    """Measure latency and quality of MODEL's variants, or of one, again on this host.

    Example: mipgate profile digits
    """
    model, _, variant = name.partition("/")
    if url is not None:
        if variant:
            raise click.UsageError("a gateway measures whole models. Name MODEL alone, or leave out --url.")
        gateway = Remote(url, key)
        run_job(gateway, f"/admin/models/{model}/profile", {})
        if as_json:
            print_json(gateway.get(f"/admin/models/{model}"))
        return
    catalog, host = Catalog(), this_host(workers)
    with reporter() as progress:
        doubted = _profiles_of(catalog, name, host) if variant else {}
        card = profile_model(catalog, model, host, progress, again=not variant, doubted=doubted)
    standings = assess(card, verify_artifacts(catalog, card), host)
    if as_json:
        print_json(describe(card, standings, host))
    else:
        print_model(card, standings, host)


def _profiles_of(catalog: Catalog, name: str, host: Host) -> dict[str, list[Profile]]:
    """What is known of one variant on this host, which is to be measured again."""
    card, variant = find_variant(catalog, name)
    known = card.measured_on(host).profiles
    if variant.version not in known:
        raise click.ClickException(
            f"{variant} has no profile of this host to replace. Run `mipgate profile {variant.model}`."
        )
    return {variant.version: known[variant.version]}
