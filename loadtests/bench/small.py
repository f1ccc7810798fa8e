"""A small model: what each server costs per request. JSON and binary; 1, 16 and 64 connections."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loadtests.bench.arithmetic import Sample
from loadtests.bench.checking import check
from loadtests.bench.idle import added_latency
from loadtests.bench.processes import Peer, Server
from loadtests.bench.profile import ProfileError, profile
from loadtests.bench.requests import Request, Wire
from loadtests.bench.rollout import CONNECTIONS as ROLLOUT_CONNECTIONS
from loadtests.bench.rollout import ROUTED, trial_of
from loadtests.bench.servers import ECHO, GATEWAY, ONE_WORKER, gateway, peer
from loadtests.bench.stage import Contender, Settings, Stage, round_of
from loadtests.bench.subject import Subject, direct

MODEL = "digits"
CONNECTIONS = (1, 16, 64)
_WIRES = ("json", "binary")
_SENT = 16
_IDLE_CALLS = 400
_HALF = 0.5


def case_name(wire: str, connections: int) -> str:
    """The name of a case in the record."""
    return f"{wire}, {connections} connection{'s' if connections > 1 else ''}"


HALF_LOAD = f"{case_name('json', CONNECTIONS[-1])}, half load"
ROLLOUT = f"{case_name('json', ROLLOUT_CONNECTIONS)}, rollout"


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
    trial = trial_of(contenders["json"].get(ROUTED), subject, "json", stage)
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
        if trial:
            cases[ROLLOUT] = trial.measure(number, settings.seconds, stage)
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
        return subject.pinned(subject.reference)["json"].requests(subject.some(1))[0]

    return stage.start(name, lambda folder: gateway(folder, subject.model, workers), probe)


def _wires(subject: Subject, server: Server) -> dict[str, Wire]:
    if server.peer.name in (GATEWAY, ONE_WORKER):
        return subject.pinned(subject.reference)
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
