"""`mipgate list`."""

from __future__ import annotations

import click

from variants.assessment import assess_model, describe, measured_metric
from variants.catalog import Catalog
from variants.cli.output import json_option, print_json, print_table
from variants.cli.show import print_model
from variants.host import this_host
from variants.registration import registered
from variants.store import DamagedArtifactError


@click.command(name="list")
@click.argument("model", required=False)
@json_option
def command(model: str | None, as_json: bool) -> None:
    """List the registered models, or the variants of MODEL.

    Example: mipgate list digits
    """
    catalog, host = Catalog(), this_host()
    names = [model] if model else catalog.models()
    unbuilt = [] if model else sorted(set(registered()) - set(names))
    assessed, damaged = {}, {}
    for name in names:
        try:
            assessed[name] = assess_model(catalog, name, host)
        except DamagedArtifactError as error:
            damaged[name] = str(error)
    if as_json:
        print_json([describe(card, standings, host) for card, standings in assessed.values()])
    elif model and model in assessed:
        print_model(*assessed[model], host)
    elif not names and not unbuilt:
        click.echo("no models are registered. Run `mipgate build digits` to make the first.")
    else:
        rows = [
            [
                name,
                measured_metric(card, standings),
                str(len(standings)),
                str(sum(s.routable for s in standings)),
                card.spec.description,
            ]
            for name, (card, standings) in assessed.items()
        ] + [[name, "-", "0", "0", f"registered, not built: `mipgate build {name}`"] for name in unbuilt]
        print_table(["model", "metric", "variants>", "routed>", ""], rows)
    if damaged:
        raise click.ClickException("\n".join(damaged.values()))
