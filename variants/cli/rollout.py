"""`mipgate rollout`."""

from __future__ import annotations

import re
import time
from datetime import UTC, datetime
from typing import Any

import click

from variants.cli.output import json_option, print_json, print_table
from variants.cli.remote import Remote, gateway_option, key_option
from variants.cli.rollout_view import print_status

_FINAL = ("succeeded", "failed", "inconclusive")
_LOOK_EVERY_S = 1.0
_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


class _Duration(click.ParamType[float]):
    """`90`, `90s`, `15m`, `2h`: seconds."""

    name = "duration"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        match = re.fullmatch(r"(\d+(?:\.\d+)?)\s*([smhd]?)", str(value))
        if match is None:
            self.fail(f"{value!r} is no duration. Write 90s, 15m or 2h.", param, ctx)
        return float(match[1]) * _SECONDS[match[2]]


class _Percentages(click.ParamType[list[float]]):
    """`5,25,50,100`."""

    name = "percentages"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[float]:
        try:
            return [float(part) for part in str(value).split(",")]
        except ValueError:
            self.fail(f"{value!r} is no list of percentages. Write 5,25,50,100.", param, ctx)


@click.group(name="rollout")
def command() -> None:
    """Move traffic between variants on evidence, on a running gateway.

    Example: mipgate rollout start digits --kind canary --candidate int8-static --guard "errors<=0.1%"
    """


@command.command()
@click.argument("model")
@click.option("--kind", type=click.Choice(["ab", "canary", "shadow", "bandit"]), required=True)
@click.option(
    "--candidate", "candidates", multiple=True, required=True, metavar="VARIANT", help="Repeatable for some."
)
@click.option(
    "--primary", metavar="VARIANT", help="What answers beside it; else the router's choice, or the reference."
)
@click.option("--tier", help="Only requests of this tier take part.")
@click.option("--weight", type=float, metavar="PERCENT", help="A/B: of each one.  [default: equal shares]")
@click.option("--steps", type=_Percentages(), help="Canary: growing weights.  [default: 5,25,50,100]")
@click.option("--step-duration", "step_duration_s", type=_Duration(), help="Shortest step.  [default: 60s]")
@click.option("--guard", "guards", multiple=True, metavar="GUARD", help="What must hold; repeatable.")
@click.option("--fraction", type=float, metavar="SHARE", help="Share of requests that are copied.")
@click.option("--reward", help='Bandit: accuracy, in_time or "within 20ms".')
@click.option("--failure", type=click.Choice(["keep", "retire"]), help="What becomes of a failed candidate.")
@click.option("--failure-budget", type=float, metavar="SHARE", help="Requests that a candidate may fail.")
@click.option("--max-duration", "max_duration_s", type=_Duration(), help="Then inconclusive.  [default: 1h]")
@click.option("--watch", is_flag=True, help="Look on until it ends.")
@gateway_option
@key_option
@json_option
def start(
    model: str,
    candidates: tuple[str, ...],
    guards: tuple[str, ...],
    watch: bool,
    url: str,
    key: str | None,
    as_json: bool,
    **options: Any,
) -> None:
    """Start a rollout of MODEL.

    A guard names a statistic, a threshold and, if wanted, confidence and samples.

    Example: mipgate rollout start digits --kind canary --primary fp32 --candidate int8-static
    --steps 5,25,50,100 --guard "agreement>=0.99@95%,n=500" --guard "p99<=1.2x" --guard "errors<=0.1%"
    """
    gateway = Remote(url, key)
    body = {name: value for name, value in options.items() if value is not None}
    body |= {"candidate": candidates[0] if len(candidates) == 1 else list(candidates), "guards": list(guards)}
    started = gateway.post(f"/admin/models/{model}/rollouts", body)
    for note in started["notes"]:
        click.echo(f"note: {note}", err=True)
    _show(gateway, started, watch, as_json)


@command.command()
@click.argument("model")
@click.option("--tier", help="Of the rollout, where several run.")
@click.option("--watch", is_flag=True, help="Look on until it ends.")
@gateway_option
@key_option
@json_option
def status(model: str, tier: str | None, watch: bool, url: str, key: str | None, as_json: bool) -> None:
    """Show where MODEL's rollout stands: phase, weights, evidence, and what each guard says.

    Example: mipgate rollout status digits --watch
    """
    gateway = Remote(url, key)
    _show(gateway, _newest(gateway, model, tier), watch, as_json)


@command.command()
@click.argument("model")
@click.option("--tier", help="Of the rollout, where several run.")
@gateway_option
@key_option
@json_option
def history(model: str, tier: str | None, url: str, key: str | None, as_json: bool) -> None:
    """Show every change of MODEL's newest rollout, and why.

    Example: mipgate rollout history digits
    """
    gateway = Remote(url, key)
    lines = gateway.get(f"/admin/rollouts/{_newest(gateway, model, tier)['id']}/history")
    if as_json:
        print_json(lines)
        return
    rows = [
        [
            f"{datetime.fromtimestamp(line['at'], UTC):%H:%M:%S}",
            str(line["version"]),
            line["phase"],
            " ".join(f"{weight:g}" for weight in line["weights"].values()),
            line["who"],
            line["reason"],
        ]
        for line in lines
    ]
    print_table(["UTC", "version>", "phase", "weights", "who", "why"], rows)


def _command(verb: str, what: str) -> click.Command:
    """The verb that changes the running rollout of a model."""

    def change(model: str, tier: str | None, url: str, key: str | None, as_json: bool) -> None:
        gateway = Remote(url, key)
        seen = _newest(gateway, model, tier)
        after = gateway.post(f"/admin/rollouts/{seen['id']}/{verb}", {"version": seen["version"]})
        print_json(after) if as_json else click.echo(f"{after['id']}: {after['phase']}, {after['reason']}")

    change.__doc__ = f"{what}\n\nExample: mipgate rollout {verb} digits"
    options = (
        click.argument("model"),
        click.option("--tier", help="Of the rollout, where several run."),
        gateway_option,
        key_option,
        json_option,
    )
    for option in reversed(options):
        change = option(change)
    return click.command(name=verb)(change)


for _verb, _what in {
    "promote": "Release MODEL's candidate now, whatever the evidence says.",
    "pause": "Keep MODEL's rollout at its weights until it is resumed.",
    "resume": "Go on with MODEL's paused rollout.",
    "abort": "Send all of MODEL's traffic back to the primary.",
}.items():
    command.add_command(_command(_verb, _what))


def _newest(gateway: Remote, model: str, tier: str | None) -> dict[str, Any]:
    """The running rollout of a model, else the newest that ended."""
    found = gateway.get(f"/admin/models/{model}/rollouts")
    if tier is not None:
        found = [rollout for rollout in found if rollout["tier"] == tier]
    running = [rollout for rollout in found if rollout["phase"] not in _FINAL]
    if len(running) > 1:
        tiers = ", ".join(str(rollout["tier"]) for rollout in running)
        raise click.ClickException(
            f"{model} has a rollout in each of the tiers {tiers}. Name one with --tier."
        )
    if not found:
        raise click.ClickException(
            f"{model} has no rollout{f' of tier {tier}' if tier else ''}. Start one with "
            f"`mipgate rollout start {model}`."
        )
    rollout: dict[str, Any] = (running or found)[0]
    return rollout


def _show(gateway: Remote, rollout: dict[str, Any], watch: bool, as_json: bool) -> None:
    while watch and rollout["phase"] not in _FINAL:
        if not as_json:
            click.clear()
            print_status(rollout, time.time())
        time.sleep(_LOOK_EVERY_S)
        rollout = gateway.get(f"/admin/rollouts/{rollout['id']}")
    if as_json:
        print_json(rollout)
        return
    if watch:
        click.clear()
    print_status(rollout, time.time())
