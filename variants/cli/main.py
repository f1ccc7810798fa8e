"""`mipgate`: the command line. Each verb is a file of its own and is imported when it is called."""

from __future__ import annotations

import importlib
import logging
from typing import Any

import click

# Verb -> what it is for, in the order of `mipgate --help`.
VERBS = {
    "doctor": "Tell what this host can do, and why a runtime is missing.",
    "add": "Register a model of your own, and build it.",
    "build": "Build, score, profile and publish a model's variants.",
    "list": "List models, or the variants of one.",
    "show": "Show a model or a variant in full.",
    "survey": "Build every technique once: what does each bring?",
    "search": "Look for the cheapest recipe above a floor of quality.",
    "replicate": "Build a recipe with several seeds: merit, or luck?",
    "report": "Write one HTML file about a model and its variants.",
    "view": "Show a variant's graph in the browser.",
    "profile": "Measure a model's variants again on this host.",
    "release": "Give a variant traffic.",
    "retire": "Take a variant out of traffic.",
    "rm": "Delete a variant.",
    "gc": "Delete what nothing refers to.",
    "bento": "Pack the released variants into a Bento.",
    "serve": "Serve the models, or a Bento, over HTTP.",
    "builder": "Build what running gateways ask for.",
    "rollout": "Move traffic between variants on evidence.",
    "keys": "Make, list and revoke API keys.",
    "compare": "Load-test every variant and tier of a running gateway.",
}


class _Verbs(click.Group):
    """Finds a verb in `variants.cli.<verb>`, so that one verb does not pay for another's imports."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        if cmd_name not in VERBS:
            return None
        command: click.Command = importlib.import_module(f"variants.cli.{cmd_name}").command
        return command

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        with formatter.section("Commands"):
            formatter.write_dl(list(VERBS.items()))

    def invoke(self, ctx: click.Context) -> Any:
        from variants.cli.errors import explained

        with explained():
            return super().invoke(ctx)


@click.group(cls=_Verbs, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="mipgate")
@click.option("--verbose", "-v", is_flag=True, help="Log what happens, and print tracebacks.")
def main(verbose: bool) -> None:
    """Mipmaps for models: build compressed variants, route each request to the one that fits.

    Example: mipgate build digits && mipgate serve
    """
    logging.basicConfig(
        level=logging.INFO if verbose else logging.WARNING, format="%(levelname)s %(name)s: %(message)s"
    )
    click.get_current_context().obj = {"verbose": verbose}
