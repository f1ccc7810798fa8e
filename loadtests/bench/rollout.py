"""An A/B rollout for the time of a measurement, where the gateway offers them."""

from __future__ import annotations

import http.client
from collections.abc import Iterator
from contextlib import contextmanager

import orjson

from loadtests.bench.processes import Server, ask
from loadtests.bench.requests import Request

_JSON = {"Content-Type": "application/json"}
_CREATED = http.client.CREATED
_LONGEST_S = 3600


class RolloutError(Exception):
    """No rollout runs; the message says why."""


@contextmanager
def ab_rollout(server: Server, model: str, candidate: str, headers: dict[str, str]) -> Iterator[None]:
    """Half of the traffic goes to a candidate for as long as this lasts.

    Args:
        server: The gateway, awake.
        model: Whose traffic.
        candidate: The variant that gets half of it.
        headers: That say who asks.

    Raises:
        RolloutError: The gateway offers no rollouts, or refuses this one.
    """
    wanted = {"kind": "ab", "candidate": candidate, "weight": 50, "max_duration_s": _LONGEST_S}
    path = f"/admin/models/{model}/rollouts"
    status, body, _ = ask(server.port, Request(path, orjson.dumps(wanted), _JSON | headers))
    if status == http.client.NOT_FOUND:
        raise RolloutError("this gateway offers no rollouts")
    if status != _CREATED:
        raise RolloutError(f"the gateway answers {status}: {body[:300].decode(errors='replace')}")
    number = orjson.loads(body)["id"]
    try:
        yield
    finally:
        ask(server.port, Request(f"/admin/rollouts/{number}/abort", b"{}", _JSON | headers))
