"""Load in Locust's web UI, for every tier and variant that a gateway offers.

    locust -f loadtests/locustfile.py --host http://localhost:3000 --model digits --samples samples.npz

A gateway that needs a key gets that of `MIPGATE_KEY`, or `--key`; each worker of a distributed test its own.

`--class-picker` chooses among the user classes in the web UI; a class named on the command line runs alone:
`TierMix`, `tier_fast`, `variant_int8_static`. Without a choice most users are `TierMix`. The share of right
answers is at `/accuracy` of the web UI, and in the log when a test stops. Without `--samples` rows are
invented: they have no labels, and nothing is judged.
"""

from __future__ import annotations

import argparse
import json
import logging
import os
import random
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from locust import FastHttpUser, events, task

from loadtests.authorization import KEY_HELP, take_key
from loadtests.samples import Body, Samples, SamplesError, invented_samples, read_samples
from loadtests.tally import Tally
from loadtests.targets import OTHER_TIER, TIER_MIX, GatewayError, Offer, Target, offer
from loadtests.users import ask, user_class

log = logging.getLogger("loadtests")

DEFAULT_HOST = "http://localhost:3000"
_MIX_WEIGHT = 20

tallies: dict[str, Tally] = {}


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    """Locust's own parser shows these in its help and refuses unknown ones."""
    _add_arguments(parser)
    parser.add_argument("--key", help=KEY_HELP, include_in_web_ui=False)


@events.init.add_listener
def prepare(environment: Any, **_: Any) -> None:
    """Serves the live accuracy per target at `/accuracy` of the web UI."""
    environment.parsed_options.key = None  # Locust would send it to its workers, as it is
    if environment.host:
        environment.host = environment.host.rstrip("/")  # Locust puts paths right behind it
    if environment.web_ui is not None:
        environment.web_ui.app.add_url_rule("/accuracy", "accuracy", accuracy)


@events.test_start.add_listener
def forget(**_: Any) -> None:
    """Each test counts anew."""
    for tally in tallies.values():
        tally.forget()


@events.test_stop.add_listener
def log_accuracy(**_: Any) -> None:
    """Says how many answers were right."""
    for label, entry in accuracy().items():
        if entry["answers"]:
            log.info("%s: %s", label, json.dumps(entry))


def accuracy() -> dict[str, dict[str, Any]]:
    """Answers, who gave them, and the share that was right, by target."""
    return {
        label: {
            "answers": tally.variants.total(),
            "accuracy": tally.accuracy,
            "judged": tally.judged,
            "answered_by": dict(tally.variants),
        }
        for label, tally in tallies.items()
    }


class TierMix(FastHttpUser):
    """Asks for tiers as callers plausibly do: mostly balanced, some fast, few accurate."""

    weight = _MIX_WEIGHT
    requests: Sequence[tuple[Target, Sequence[Body], Tally]] = ()
    shares: Sequence[int] = ()

    @task
    def infer(self) -> None:
        """Sends a random row to a tier of the mix."""
        ((target, bodies, tally),) = random.choices(self.requests, self.shares)
        ask(self.client, target, random.choice(bodies), tally)


def _add_arguments(parser: Any) -> None:
    environment = os.environ
    parser.add_argument("--model", default=environment.get("MIPGATE_MODEL"), help="the model's name")
    parser.add_argument(
        "--samples", default=environment.get("MIPGATE_SAMPLES"), help="labelled rows: the model's samples.npz"
    )
    parser.add_argument("--binary", action="store_true", help="send binary tensors instead of JSON")


def _known_arguments() -> argparse.Namespace:
    """The arguments that decide which classes there are: Locust reads its own only after this file."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("-H", "--host", default=os.environ.get("LOCUST_HOST"))
    _add_arguments(parser)
    parser.add_argument("--key")
    return parser.parse_known_args()[0]


def _samples(offered: Offer, path: str | None) -> Samples:
    if path:
        return read_samples(Path(path))
    log.warning("no --samples: rows are invented, and no answer is judged")
    return invented_samples(offered.inputs)


def _classes(offered: Offer, samples: Samples, *, binary: bool) -> Mapping[str, type[FastHttpUser]]:
    """A user class per tier and variant, by name; fills `TierMix`."""
    classes: dict[str, type[FastHttpUser]] = {}
    mix = []
    for target in offered.targets():
        bodies = samples.bodies(target.parameters(), binary=binary)
        tally = tallies[target.label] = Tally(keep_times=False)
        cls = user_class(target, bodies, tally)
        classes[cls.__name__] = cls
        if target.kind == "tier":
            mix.append((target, bodies, tally))
    TierMix.requests = mix
    TierMix.shares = [TIER_MIX.get(target.name, OTHER_TIER) for target, _, _ in mix]
    return classes


def _discover() -> Mapping[str, type[FastHttpUser]]:
    options = _known_arguments()
    take_key(options.key)
    host = (options.host or DEFAULT_HOST).rstrip("/")
    TierMix.host = host
    try:
        offered = offer(host, options.model)
        classes = _classes(offered, _samples(offered, options.samples), binary=options.binary)
    except (GatewayError, SamplesError) as error:
        sys.exit(f"error: {error}")
    for cls in classes.values():
        cls.host = host
    return classes


# Locust takes the user classes from this module's names, before it reads its own arguments.
globals().update(_discover())
