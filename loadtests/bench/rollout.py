"""What an active A/B rollout costs: beside one variant alone, and beside both without a rollout."""

from __future__ import annotations

import http.client
import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from types import MappingProxyType

import orjson

from loadtests.bench.arithmetic import Sample
from loadtests.bench.processes import Server, ask
from loadtests.bench.requests import Request
from loadtests.bench.servers import KEY_HEADERS
from loadtests.bench.stage import Contender, Stage
from loadtests.bench.subject import BALANCED, Subject, best_row_ms, profile_of

ROUTED, HALVES, WITH_ROLLOUT = "mipgate, routed", "mipgate, half of each pinned", "mipgate, routed, A/B"
CONNECTIONS = 16

_JSON = {"Content-Type": "application/json"} | KEY_HEADERS
_CREATED = http.client.CREATED
_LONGEST_S = 3600
_BEGINS_S, _POLL_S, _BEGUN = 10.0, 0.05, 20
_ENDS_S = 1.0
_ARM_HEADER = "x-mipgate-arm"


class RolloutError(Exception):
    """No rollout runs; the message says why."""


@dataclass(frozen=True)
class Trial:
    """The traffic of an A/B rollout, and what it is held against.

    Attributes:
        routed: Requests that the gateway routes; during the rollout half of them go to the candidate.
        halves: The same, half of them for each of the two variants by name: what both cost without a rollout.
        model: Whose traffic, of the tier `balanced`.
        primary: What serves it on an idle gateway. It is named: under load the router may prefer the other.
        candidate: The variant that gets half.
    """

    routed: Contender
    halves: Contender
    model: str
    primary: str
    candidate: str

    def measure(self, number: int, seconds: float, stage: Stage) -> dict[str, Sample | None]:
        """One closed loop of each; the order changes with each round."""
        run = partial(self.routed.run, CONNECTIONS, seconds)
        alone = partial(self.halves.run, CONNECTIONS, seconds)
        first = number % 2 == 0
        before = (run(), alone()) if first else (None, None)
        during: Sample | None = None
        with self.routed.server.awake():
            try:
                with _ab_rollout(self.routed.server, self):
                    self._await_arms()
                    during = run()
            except RolloutError as error:
                stage.rollout_hole = str(error)
        routed, halves = before if first else (run(), alone())
        return {ROUTED: routed, HALVES: halves, WITH_ROLLOUT: during}

    def _await_arms(self) -> None:
        """Waits until the rollout has begun on every worker: many answers in a row over new connections.

        Raises:
            RolloutError: It does not.
        """
        port, request = self.routed.server.port, self.routed.requests[0]
        deadline, named = time.monotonic() + _BEGINS_S, 0
        while named < _BEGUN:
            named = named + 1 if _ARM_HEADER in ask(port, request)[2] else 0
            if time.monotonic() > deadline:
                raise RolloutError("answers name no arm while the rollout runs")
            if not named:
                time.sleep(_POLL_S)


def trial_of(
    routed: Contender | None,
    subject: Subject,
    wire: str,
    stage: Stage,
    parameters: Mapping[str, str | int] = MappingProxyType({}),
) -> Trial | None:
    """What serves `balanced` against the variant that meets its floor too and is nearest in speed.

    Args:
        routed: Requests that the gateway routes; None where it does not answer.
        subject: The model.
        wire: `json` or `binary`, as the routed requests are.
        stage: Told why there is no trial.
        parameters: Of the requests by name.
    """
    if routed is None:
        return None
    told = subject.tiers.get(BALANCED, {})
    if not told.get("serves"):
        stage.rollout_hole = f"nothing serves a tier {BALANCED}"
        return None
    serving, floor = str(told["serves"]), float(told["min_quality_ratio"])
    speed = best_row_ms(subject.variants[serving])
    others = [
        name
        for name, each in subject.variants.items()
        if name != serving and profile_of(each)["quality"]["validation"]["ratio"] >= floor
    ]
    if not others:
        stage.rollout_hole = f"only {serving} meets the floor of {BALANCED}"
        return None
    candidate = min(others, key=lambda name: abs(best_row_ms(subject.variants[name]) - speed))
    samples = subject.some(len(routed.requests))
    both = [
        request
        for name in (serving, candidate)
        for request in subject.pinned(name, parameters)[wire].requests(samples)
    ]
    random.Random(0).shuffle(both)
    return Trial(routed, Contender(routed.server, both), subject.model, serving, candidate)


@contextmanager
def _ab_rollout(server: Server, trial: Trial) -> Iterator[None]:
    """Half of the traffic of `balanced` goes to the candidate while this lasts; the gateway is awake.

    Raises:
        RolloutError: The gateway offers no rollouts, or refuses this one.
    """
    wanted = {
        "kind": "ab",
        "tier": BALANCED,
        "primary": trial.primary,
        "candidate": trial.candidate,
        "weight": 50,
        "max_duration_s": _LONGEST_S,
    }
    path = f"/admin/models/{trial.model}/rollouts"
    status, body, _ = ask(server.port, Request(path, orjson.dumps(wanted), _JSON))
    if status == http.client.NOT_FOUND:
        raise RolloutError("this gateway offers no rollouts")
    if status != _CREATED:
        raise RolloutError(f"the gateway answers {status}: {body[:300].decode(errors='replace')}")
    number = orjson.loads(body)["id"]
    try:
        yield
    finally:
        ask(server.port, Request(f"/admin/rollouts/{number}/abort", b"{}", _JSON))
        time.sleep(_ENDS_S)  # until every worker knows
