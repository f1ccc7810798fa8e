"""A real model: every peer with FP32 and with one 8-bit file, beside the tiers, on the same requests."""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from loadtests.bench.arithmetic import Sample
from loadtests.bench.checking import Checked, check
from loadtests.bench.processes import Peer, Server
from loadtests.bench.requests import Array, Request, Wire, v2_binary
from loadtests.bench.rollout import trial_of
from loadtests.bench.servers import ECHO, GATEWAY, gateway, peer, with_key
from loadtests.bench.stage import Contender, Settings, Stage, round_of
from loadtests.bench.subject import BALANCED, Subject, direct

CONNECTIONS = (1, 16, 64)
ROLLOUT = "rollout"
_SENT = 64
_UNHURRIED = {"max_latency_ms": 60_000}


def tier_name(tier: str) -> str:
    """How the gateway's tier is called in the tables."""
    return f"{GATEWAY}: {tier}"


def pinned_name(variant: str) -> str:
    """How the gateway's pinned variant is called there."""
    return f"{GATEWAY}: {variant} pinned"


def peer_name(name: str, variant: str) -> str:
    """How a peer with the file of a variant is called there."""
    return f"{name}: {variant}"


def case_name(connections: int) -> str:
    """The name of a case in the record."""
    return f"{connections} connection{'s' if connections > 1 else ''}"


def measure(settings: Settings, subject: Subject, stage: Stage) -> dict[str, Any]:
    """Starts, checks and measures everyone. Binary tensors where a peer takes them, else JSON."""
    quantized = subject.quantized()
    if quantized is None:
        stage.hole("8-bit file", f"{subject.model} has no released 8-bit variant that is plain ONNX")
    files = [name for name in (subject.reference, quantized) if name]
    contenders: dict[str, Contender] = {}
    answered: dict[str, Checked] = {}
    _add_gateway(settings, subject, stage, files, contenders, answered)
    for variant in files:
        _add_peers(settings, subject, stage, variant, contenders, answered)
    for contender in contenders.values():
        contender.run(16, 1)
    trial = trial_of(contenders.get(tier_name(BALANCED)), subject, "binary", stage, _UNHURRIED)
    rounds: list[dict[str, dict[str, Sample | None]]] = []
    for number in range(settings.rounds):
        stage.look()
        settings.progress(f"real: round {number + 1} of {settings.rounds}")
        cases = {
            case_name(connections): round_of(contenders, number, connections, settings.seconds)
            for connections in CONNECTIONS
        }
        if trial:
            cases[ROLLOUT] = trial.measure(number, settings.seconds, stage)
        rounds.append(cases)
    return {
        "model": subject.model,
        "reference": subject.reference,
        "quantized": quantized,
        "tiers": {tier: each["serves"] for tier, each in subject.tiers.items()},
        "rounds": [
            {case: {name: s and asdict(s) for name, s in each.items()} for case, each in cases.items()}
            for cases in rounds
        ],
        "answers": {name: asdict(each) for name, each in answered.items()},
        "servers": {
            name: {"ready_s": server.ready_s, **asdict(server.memory())}
            for name, server in stage.servers.items()
        },
        "holes": stage.holes,
        "rollout_hole": stage.rollout_hole,
        "candidate": trial and trial.candidate,
        "busy_with_other_work": stage.busy,
    }


def _add_gateway(
    settings: Settings,
    subject: Subject,
    stage: Stage,
    files: list[str],
    contenders: dict[str, Contender],
    answered: dict[str, Checked],
) -> None:
    def probe(_: Peer) -> Request:
        return subject.pinned(subject.reference)["binary"].requests(subject.some(1))[0]

    server = stage.start(GATEWAY, lambda folder: gateway(folder, subject.model), probe)
    if server is None:
        return
    path = f"/v2/models/{subject.model}/infer"
    for tier in subject.tiers:
        wire = v2_binary(path, with_key({"tier": tier, **_UNHURRIED}))
        _add(settings, subject, stage, tier_name(tier), server, wire, None, contenders, answered)
    for variant in files:
        expected = direct(subject.artifact(variant)).run(subject.rows(settings.rows))
        wire = subject.pinned(variant, _UNHURRIED)["binary"]
        _add(settings, subject, stage, pinned_name(variant), server, wire, expected, contenders, answered)


def _add_peers(
    settings: Settings,
    subject: Subject,
    stage: Stage,
    variant: str,
    contenders: dict[str, Contender],
    answered: dict[str, Checked],
) -> None:
    artifact = subject.artifact(variant)
    expected = direct(artifact).run(subject.rows(settings.rows))
    for name in settings.peers:
        if name == ECHO:
            continue
        server = stage.start(
            peer_name(name, variant),
            lambda folder, name=name: peer(name, artifact, folder, settings.progress),  # type: ignore[misc]
            lambda made: _wire(made).requests(subject.some(1))[0],
        )
        if server is not None:
            wire, title = _wire(server.peer), peer_name(name, variant)
            _add(settings, subject, stage, title, server, wire, expected, contenders, answered)


def _add(
    settings: Settings,
    subject: Subject,
    stage: Stage,
    name: str,
    server: Server,
    wire: Wire,
    expected: Array | None,
    contenders: dict[str, Contender],
    answered: dict[str, Checked],
) -> None:
    with stage.checking(name, server):
        answered[name] = check(server, wire, subject.some(settings.rows), expected)
        contenders[name] = Contender(server, wire.requests(subject.some(_SENT)))


def _wire(made: Peer) -> Wire:
    return made.wires.get("binary", made.wires["json"])
