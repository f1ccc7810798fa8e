"""A small model: what each server costs per request. JSON and binary; 1, 16 and 64 connections."""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import asdict
from functools import partial
from types import MappingProxyType
from typing import Any

from loadtests.bench.arithmetic import Sample
from loadtests.bench.checking import check
from loadtests.bench.idle import added_latency
from loadtests.bench.processes import Peer, Server, ask
from loadtests.bench.profile import ProfileError, profile
from loadtests.bench.requests import Request, Wire, v2_binary, v2_json
from loadtests.bench.rollout import RolloutError, ab_rollout
from loadtests.bench.servers import (
    ECHO,
    GATEWAY,
    KEY_HEADERS,
    ONE_WORKER,
    gateway,
    peer,
    with_key,
)
from loadtests.bench.stage import Contender, Settings, Stage, round_of
from loadtests.bench.subject import Subject, best_row_ms, direct

MODEL = "digits"
CONNECTIONS = (1, 16, 64)
ROUTED, WITH_ROLLOUT = "mipgate, routed", "mipgate, routed, A/B"
_WIRES = ("json", "binary")
_SENT = 16
_IDLE_CALLS = 400
_HALF = 0.5
_BEGINS_S, _POLL_S, _BEGUN = 10.0, 0.05, 20
_ARM_HEADER = "x-mipgate-arm"


def case_name(wire: str, connections: int) -> str:
    """The name of a case in the record."""
    return f"{wire}, {connections} connection{'s' if connections > 1 else ''}"


HALF_LOAD = f"{case_name('json', CONNECTIONS[-1])}, half load"
ROLLOUT = f"{case_name('json', 16)}, rollout"


def measure(settings: Settings, subject: Subject, stage: Stage) -> dict[str, Any]:
    """Starts, checks and measures everyone."""
    artifact = subject.artifact(subject.reference)
    samples = subject.some(_SENT)
    expected = direct(artifact).run(subject.rows(settings.rows))
    for name, workers in ((GATEWAY, 0), (ONE_WORKER, 1)):
        _start_gateway(stage, subject, name, workers)
    for name in settings.peers:
        stage.start(
            name,
            lambda folder, name=name: peer(name, artifact, folder, settings.progress),  # type: ignore[misc]
            lambda made: made.wires["json"].requests(samples)[0],
        )
    contenders: dict[str, dict[str, Contender]] = {wire: {} for wire in _WIRES}
    for name, server in stage.servers.items():
        for wire_name, wire in _wires(subject, server).items():
            with stage.checking(name, server):
                check(server, wire, subject.some(settings.rows), expected)
                contenders[wire_name][name] = Contender(server, wire.requests(samples))
    if GATEWAY in stage.servers:
        _add_routed(contenders, stage, subject, settings)
    return _measure_all(settings, subject, stage, contenders)


def _measure_all(
    settings: Settings, subject: Subject, stage: Stage, contenders: dict[str, dict[str, Contender]]
) -> dict[str, Any]:
    for contender in (each for wire in contenders.values() for each in wire.values()):
        contender.run(16, 1)
    rounds: list[dict[str, dict[str, Sample | None]]] = []
    for number in range(settings.rounds):
        stage.look()
        settings.progress(f"small: round {number + 1} of {settings.rounds}")
        cases = {
            case_name(wire, connections): round_of(contenders[wire], number, connections, settings.seconds)
            for connections in CONNECTIONS
            for wire in _WIRES
        }
        cases[HALF_LOAD] = _half_load(contenders["json"], cases[case_name("json", CONNECTIONS[-1])], settings)
        if ROUTED in contenders["json"]:
            cases[ROLLOUT] = _rollout(contenders["json"][ROUTED], number, subject, stage, settings)
        rounds.append(cases)
    return {
        "model": subject.model,
        "variant": subject.reference,
        "variants": len(subject.variants),
        "rounds": [
            {case: {name: s and asdict(s) for name, s in each.items()} for case, each in cases.items()}
            for cases in rounds
        ],
        "lacks": {name: dict(server.peer.lacks) for name, server in stage.servers.items()},
        "idle": _idle(contenders, subject, stage),
        "profiles": _profiles(contenders, settings),
        "servers": {name: _describe(server) for name, server in stage.servers.items()},
        "holes": stage.holes,
        "rollout_hole": stage.rollout_hole,
        "busy_with_other_work": stage.busy,
    }


def _start_gateway(stage: Stage, subject: Subject, name: str, workers: int) -> Server | None:
    def probe(_: Peer) -> Request:
        return pinned(subject, subject.reference)["json"].requests(subject.some(1))[0]

    return stage.start(name, lambda folder: gateway(folder, subject.model, workers), probe)


def pinned(
    subject: Subject, variant: str, parameters: Mapping[str, str | int] = MappingProxyType({})
) -> dict[str, Wire]:
    """How one variant of the gateway is asked."""
    path = f"/v2/models/{subject.model}/versions/{variant}/infer"
    told = with_key(parameters)
    return {"json": v2_json(path, told), "binary": v2_binary(path, told)}


def _wires(subject: Subject, server: Server) -> dict[str, Wire]:
    if server.peer.name in (GATEWAY, ONE_WORKER):
        return pinned(subject, subject.reference)
    return dict(server.peer.wires)


def _add_routed(
    contenders: dict[str, dict[str, Contender]], stage: Stage, subject: Subject, settings: Settings
) -> None:
    """Requests without a version: the gateway routes them to whatever serves the tier."""
    server = stage.servers[GATEWAY]
    for name, wire in server.peer.wires.items():
        with stage.checking(ROUTED, server):
            check(server, wire, subject.some(settings.rows), None)
            contenders[name][ROUTED] = Contender(server, wire.requests(subject.some(_SENT)))


def _half_load(
    contenders: dict[str, Contender], full: dict[str, Sample | None], settings: Settings
) -> dict[str, Sample | None]:
    """Connections that pause so long that half of what they just reached is asked for."""
    connections = CONNECTIONS[-1]
    measured: dict[str, Sample | None] = {}
    for name in (GATEWAY, ECHO):
        sample = full.get(name)
        if name not in contenders or sample is None or sample.flaw:
            measured[name] = None
            continue
        pause_ms = connections * 1e3 / (_HALF * sample.requests_per_s)
        measured[name] = contenders[name].run(connections, settings.seconds, pause_ms)
    return measured


def _rollout(
    routed: Contender, number: int, subject: Subject, stage: Stage, settings: Settings
) -> dict[str, Sample | None]:
    """Routed requests without and with an A/B rollout; the order changes with each round."""
    run = partial(routed.run, 16, settings.seconds)
    before = run() if number % 2 == 0 else None
    during: Sample | None = None
    with routed.server.awake():
        try:
            with ab_rollout(routed.server, subject.model, _near(subject), KEY_HEADERS):
                _await_arms(routed)
                during = run()
        except RolloutError as error:
            stage.rollout_hole = str(error)
    return {ROUTED: before or run(), WITH_ROLLOUT: during}


def _await_arms(routed: Contender) -> None:
    """Waits until the rollout has begun on every worker: many answers in a row, each over its own connection.

    Raises:
        RolloutError: It does not.
    """
    deadline, named = time.monotonic() + _BEGINS_S, 0
    while named < _BEGUN:
        named = named + 1 if _ARM_HEADER in ask(routed.server.port, routed.requests[0])[2] else 0
        if time.monotonic() > deadline:
            raise RolloutError("answers name no arm while the rollout runs")
        if not named:
            time.sleep(_POLL_S)


def _near(subject: Subject) -> str:
    """The variant whose speed is nearest to the serving one's, so that the rollout is what costs."""
    serving = str(subject.tiers[next(iter(subject.tiers))]["serves"])
    speed = best_row_ms(subject.variants[serving])
    others = [name for name in subject.variants if name != serving]
    return min(others, key=lambda name: abs(best_row_ms(subject.variants[name]) - speed))


def _idle(contenders: dict[str, dict[str, Contender]], subject: Subject, stage: Stage) -> dict[str, Any]:
    """Per wire: the gateway's median over a direct call's, while nothing else happens."""
    if GATEWAY not in stage.servers:
        return {}
    session, row = direct(subject.artifact(subject.reference)), subject.rows(1)
    measured: dict[str, Any] = {}
    for wire, named in contenders.items():
        if GATEWAY not in named:
            continue
        with stage.servers[GATEWAY].awake():
            request = named[GATEWAY].requests[0]
            measured[wire] = added_latency(
                stage.servers[GATEWAY].port, request, lambda: session.run(row), _IDLE_CALLS
            )
    return measured


def _profiles(contenders: dict[str, dict[str, Contender]], settings: Settings) -> dict[str, Any]:
    """Per wire: where the gateway's processor time goes, or why nobody knows."""
    found: dict[str, Any] = {}
    for wire, named in contenders.items():
        if GATEWAY in named:
            settings.progress(f"small: profile of {wire}")
            try:
                found[wire] = {"shares": profile(named[GATEWAY], settings.seconds), "hole": ""}
            except ProfileError as error:
                found[wire] = {"shares": {}, "hole": str(error)}
    return found


def _describe(server: Server) -> dict[str, Any]:
    return {"ready_s": server.ready_s, **asdict(server.memory())}
