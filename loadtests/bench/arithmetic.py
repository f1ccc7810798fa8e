"""From recorded rounds to figures and verdicts: pure. A peer that did not answer is a hole, not a win."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from statistics import median
from typing import TypedDict

GATEWAY, PLAIN, ECHO = "mipgate", "plain bentoml", "bare uvicorn"
PEERS = (GATEWAY, PLAIN, ECHO)
MIN_ROUNDS = 3
MIN_SPEEDUP = 12.0
MAX_TAIL = 5.0


@dataclass(frozen=True, slots=True)
class Sample:
    """One run of the client against one peer.

    Attributes:
        requests: Answers that came.
        seconds: How long it ran.
        p50_ms: Median latency.
        p99_ms: 99th percentile of latency.
        bad_answers: Answers whose status was an error.
        socket_errors: Connections, reads, writes that failed or timed out.
    """

    requests: int
    seconds: float
    p50_ms: float
    p99_ms: float
    bad_answers: int = 0
    socket_errors: int = 0

    @property
    def requests_per_s(self) -> float:
        """Throughput."""
        return self.requests / self.seconds

    @property
    def flaw(self) -> str | None:
        """Why the run says nothing about speed, or None."""
        if not self.requests:
            return "no answers"
        if self.bad_answers:
            return f"{self.bad_answers} of {self.requests} answers were errors"
        return f"{self.socket_errors} socket errors" if self.socket_errors else None


Round = Mapping[str, Sample | None]


class PeerFigures(TypedDict):
    """Medians over the rounds of one peer; None where any of its rounds is void, with the reason."""

    requests_per_s: float | None
    p50_ms: float | None
    p99_ms: float | None
    tail: float | None
    void: str | None


class Ratio(TypedDict):
    """Throughput over a peer's, paired by round."""

    median: float | None
    rounds: list[float]


class Requirement(TypedDict):
    """What is required, what was measured, and whether it is `met`, `missed` or `void`."""

    name: str
    required: str
    measured: float | None
    verdict: str
    why: str


class Summary(TypedDict):
    """All figures. `ratios` has the gateway's throughput over each other peer's."""

    peers: dict[str, PeerFigures]
    ratios: dict[str, Ratio]
    requirements: list[Requirement]


def summarize(rounds: Sequence[Round]) -> Summary:
    """Medians, paired ratios, and the verdicts."""
    peers = {name: _figures(name, rounds) for name in PEERS}
    ratios = {name: _ratio(peers, name, rounds) for name in PEERS if name != GATEWAY}
    speedup, tail = ratios[PLAIN]["median"], peers[GATEWAY]["tail"]
    voids = [f"{name}: {peers[name]['void']}" for name in (GATEWAY, PLAIN) if peers[name]["void"]]
    return {
        "peers": peers,
        "ratios": ratios,
        "requirements": [
            _requirement(
                f"throughput over {PLAIN}",
                f"at least {MIN_SPEEDUP:g}x",
                speedup,
                speedup is not None and speedup >= MIN_SPEEDUP,
                "; ".join(voids) or _disagreement([r >= MIN_SPEEDUP for r in ratios[PLAIN]["rounds"]]),
            ),
            _requirement(
                f"p99 over p50 of {GATEWAY}",
                f"at most {MAX_TAIL:g}x",
                tail,
                tail is not None and tail <= MAX_TAIL,
                peers[GATEWAY]["void"]
                or _disagreement(
                    [s.p99_ms / s.p50_ms <= MAX_TAIL for each in rounds if (s := each[GATEWAY])]
                ),
            ),
        ],
    }


def _figures(name: str, rounds: Sequence[Round]) -> PeerFigures:
    void = _void(name, rounds)
    if void:
        return {"requests_per_s": None, "p50_ms": None, "p99_ms": None, "tail": None, "void": void}
    samples = [sample for each in rounds if (sample := each.get(name)) is not None]
    return {
        "requests_per_s": median(sample.requests_per_s for sample in samples),
        "p50_ms": median(sample.p50_ms for sample in samples),
        "p99_ms": median(sample.p99_ms for sample in samples),
        "tail": median(sample.p99_ms / sample.p50_ms for sample in samples),
        "void": None,
    }


def _void(name: str, rounds: Sequence[Round]) -> str | None:
    """One flawed round voids a peer: what was dropped or refused there was not worked on."""
    if len(rounds) < MIN_ROUNDS:
        return f"{len(rounds)} rounds, fewer than {MIN_ROUNDS}"
    for number, each in enumerate(rounds, 1):
        sample = each.get(name)
        if sample is None:
            return f"did not answer in round {number}"
        if sample.flaw:
            return f"{sample.flaw} in round {number}"
    return None


def _ratio(peers: Mapping[str, PeerFigures], name: str, rounds: Sequence[Round]) -> Ratio:
    if peers[GATEWAY]["void"] or peers[name]["void"]:
        return {"median": None, "rounds": []}
    ratios = [
        ours.requests_per_s / theirs.requests_per_s
        for each in rounds
        if (ours := each.get(GATEWAY)) is not None and (theirs := each.get(name)) is not None
    ]
    return {"median": median(ratios), "rounds": ratios}


def _disagreement(held: Sequence[bool]) -> str:
    """A median says little when rounds fall on both sides of what is required."""
    if len(set(held)) < 2:
        return ""
    return f"inconclusive: it held in {sum(held)} of {len(held)} rounds"


def _requirement(name: str, required: str, measured: float | None, holds: bool, why: str) -> Requirement:
    verdict = "void" if measured is None else "met" if holds else "missed"
    return {"name": name, "required": required, "measured": measured, "verdict": verdict, "why": why}
