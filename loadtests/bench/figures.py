"""The figures that are required, beside what was measured, and whether they are reached. Pure."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from statistics import median
from typing import Any, Literal, TypedDict

from loadtests.bench import overload, real, rollout, small
from loadtests.bench.arithmetic import (
    MIN_ROUNDS,
    Outcome,
    Round,
    Rounds,
    Sample,
    best,
    case,
    ratios,
    tail,
    throughput,
    why_void,
)
from loadtests.bench.profile import attributed
from loadtests.bench.servers import ECHO, GATEWAY, MODEL_PEERS, MOSEC, ONE_WORKER, PLAIN, TRITON
from loadtests.bench.subject import BALANCED

Verdict = Literal["reached", "not reached", "void", "does not apply"]

MAX_CLIENT_LAG_MS = 10.0
_MB = 1e6
_AMX = "amx_int8"
_JSON_16, _BINARY_16 = small.case_name("json", 16), small.case_name("binary", 16)
_SPEEDUPS = ((TRITON, 1.5), (MOSEC, 3.0), (PLAIN, 20.0), (ECHO, 0.5))
_ACCURACY_KEPT = 0.99
_BESIDE = {rollout.ROUTED: "one variant alone", rollout.HALVES: "both by name without it"}
_OVERLOADED = (1.0, 2.0, 3.0)


class Figure(TypedDict):
    """One requirement.

    `measured` has one value per round; `why` says what stands in the way of a verdict or of its certainty.
    """

    part: str
    name: str
    required: str
    unit: str
    measured: list[float]
    verdict: Verdict
    why: str


def rounds_of(part: Mapping[str, Any]) -> Rounds:
    """The closed loops of a recorded part."""
    return [
        {case: {name: s and Sample(**s) for name, s in each.items()} for case, each in cases.items()}
        for cases in part["rounds"]
    ]


def outcomes_of(part: Mapping[str, Any], load: float, policy: str) -> list[Outcome | None]:
    """The open loops of a policy at one load."""
    named = [each[overload.load_name(load)][policy] for each in part["rounds"]]
    return [each and Outcome(**each) for each in named]


def small_figures(part: Mapping[str, Any]) -> list[Figure]:
    """Of the small model."""
    rounds = rounds_of(part)
    json16, binary16 = case(rounds, _JSON_16), case(rounds, _BINARY_16)
    ours = {"": GATEWAY}
    if any(ONE_WORKER in part[known] for known in ("servers", "holes")):
        ours["1 worker, "] = ONE_WORKER
    found = [
        _at_least("small", f"JSON, 16 connections, {how}over {name}", factor, json16, who, json16, name)
        for how, who in ours.items()
        for name, factor in _SPEEDUPS
    ]
    found += _binary(part, binary16, json16)
    half = case(rounds, small.HALF_LOAD)
    found.append(
        _figure(
            "small",
            f"p99/p50 at half load over {ECHO}'s own",
            ("at most", 1.5, "x"),
            ratios(half, GATEWAY, half, ECHO, tail),
            _voids((half, GATEWAY), (half, ECHO)),
        )
    )
    idle = part["idle"].get("json")
    found.append(
        _figure(
            "small",
            "added latency over a direct call, idle, JSON",
            ("at most", 0.5, "ms"),
            [idle["added_ms"]] if idle else [],
            "" if idle else "the gateway did not answer",
            rounds=1,
        )
    )
    found += _footprint(part)
    return found + [_kept("small", part, small.ROLLOUT, beside) for beside in _BESIDE]


def _kept(title: str, part: Mapping[str, Any], name: str, beside: str) -> Figure:
    """Throughput during an A/B rollout over that of one variant alone, or of both without a rollout."""
    rounds = case(rounds_of(part), name)
    return _figure(
        title,
        f"throughput kept with an active A/B rollout, over {_BESIDE[beside]}",
        ("at least", 0.95, "x"),
        ratios(rounds, rollout.WITH_ROLLOUT, rounds, beside),
        part["rollout_hole"] or _voids((rounds, rollout.WITH_ROLLOUT), (rounds, beside)),
    )


def _binary(part: Mapping[str, Any], binary16: Sequence[Round], json16: Sequence[Round]) -> list[Figure]:
    """The binary wire is much faster than JSON, or a profile tells where the time goes instead."""
    faster = _at_least("small", "binary over JSON, 16 connections", 1.5, binary16, GATEWAY, json16, GATEWAY)
    taken = part["profiles"].get("binary", {"shares": {}, "hole": "the gateway did not answer"})
    told = _figure(
        "small",
        "or else: share of the binary wire's time that its profile attributes",
        ("at least", 80, "%"),
        [100 * attributed(taken["shares"])] if taken["shares"] else [],
        taken["hole"],
        rounds=1,
    )
    if faster["verdict"] == "not reached" and told["verdict"] == "reached":
        faster["verdict"], faster["why"] = "does not apply", "the profile stands in its place"
    return [faster, told]


def _footprint(part: Mapping[str, Any]) -> list[Figure]:
    server = part["servers"].get(GATEWAY)
    void = "" if server else "the gateway did not start"
    name = f"{part['model']}, {part['variants']} variants"
    bytes_, ready = ([server["largest_bytes"] / _MB], [server["ready_s"]]) if server else ([], [])
    return [
        _figure(
            "small", f"resident memory of the worker, {name}", ("at most", 300, "MB"), bytes_, void, rounds=1
        ),
        _figure("small", f"time to ready, {name}", ("at most", 5, "s"), ready, void, rounds=1),
    ]


def real_figures(part: Mapping[str, Any], features: Sequence[str]) -> list[Figure]:
    """Of the real model."""
    rounds = case(rounds_of(part), real.case_name(16))
    balanced = real.tier_name(BALANCED)
    fp32 = [real.peer_name(name, part["reference"]) for name in MODEL_PEERS]
    int8 = [real.peer_name(name, part["quantized"]) for name in MODEL_PEERS] if part["quantized"] else []
    found = []
    for names, factor, kind in ((fp32, 4.0, "FP32"), (int8, 1.0, "the same 8-bit file")):
        rival = best(names, rounds)
        found.append(
            _at_least(
                "real",
                f"balanced over the best peer with {kind}" + (f" ({rival})" if rival else ""),
                factor,
                rounds,
                balanced,
                rounds,
                rival or f"any peer with {kind}",
            )
        )
    if _AMX not in features and found[0]["verdict"] == "not reached":
        found[0]["verdict"] = "does not apply"
        found[0]["why"] = "this CPU has no AMX, for which it is required"
    found.append(_accuracy(part, balanced, fp32))
    found.append(_kept("real", part, real.ROLLOUT, rollout.HALVES))
    return found


def _accuracy(part: Mapping[str, Any], balanced: str, fp32: Sequence[str]) -> Figure:
    """Accuracy of the answers of `balanced` over that of the peers with FP32, on the same rows."""
    answers = part["answers"]
    ours = _share(answers.get(balanced))
    theirs = [share for name in fp32 if (share := _share(answers.get(name))) is not None]
    known = ours is not None and bool(theirs)
    return _figure(
        "real",
        "accuracy of balanced over that of the peers with FP32",
        ("at least", _ACCURACY_KEPT, "x"),
        [ours / max(theirs)] if known and ours is not None else [],
        "" if known else "no answers were judged",
        rounds=1,
    )


def _share(checked: Mapping[str, Any] | None) -> float | None:
    return checked["correct"] / checked["rows"] if checked and checked["correct"] else None


def overload_figures(part: Mapping[str, Any]) -> list[Figure]:
    """Of the open loops."""
    found: list[Figure] = []
    possible = part["best_possible_per_s"]
    for load in _OVERLOADED:
        name = overload.load_name(load)
        ours, void = _outcomes(part, load, GATEWAY)
        goodput = [
            each.goodput / min(each.offered / each.seconds, possible) for each in ours if possible is not None
        ]
        found.append(
            _figure(
                "overload",
                f"goodput at {name} over the least of offered and best possible",
                ("at least", 0.9, "x"),
                goodput,
                void or ("" if possible else "the profiles tell no best possible"),
            )
        )
        late = [100 * each.late_of_admitted for each in ours]
        found.append(_figure("overload", f"admitted and late at {name}", ("at most", 1, "%"), late, void))
        if load > 1:
            fp32, no_fp32 = _outcomes(part, load, overload.FP32)
            fewer = [
                theirs.misses / each.misses if each.misses else float("inf")
                for each, theirs in zip(ours, fp32, strict=False)
            ]
            found.append(
                _figure(
                    "overload",
                    f"fewer misses at {name} than always fp32",
                    ("at least", 5, "x"),
                    fewer,
                    void or no_fp32,
                )
            )
    return found


def _outcomes(part: Mapping[str, Any], load: float, policy: str) -> tuple[list[Outcome], str]:
    """The open loops of a policy; or none, and why they say nothing."""
    if not part["rounds"]:
        return [], part["holes"].get(GATEWAY, "no rounds")
    known = outcomes_of(part, load, policy)
    present = [each for each in known if each is not None]
    if len(present) < len(known):
        return [], part["holes"].get(policy, f"{policy} did not answer")
    if slow := [each.client_lag_ms for each in present if each.client_lag_ms > MAX_CLIENT_LAG_MS]:
        return [], f"the client fell {max(slow):.0f} ms behind its plan"
    return present, ""


def figures(record: Mapping[str, Any]) -> list[Figure]:
    """All figures of the parts that were measured."""
    parts = record["parts"]
    found: list[Figure] = []
    if "small" in parts:
        found += small_figures(parts["small"])
    if "real" in parts:
        found += real_figures(parts["real"], record["host"]["features"])
    if "overload" in parts:
        found += overload_figures(parts["overload"])
    return found


def _at_least(
    part: str,
    name: str,
    factor: float,
    ours: Sequence[Round],
    our_name: str,
    theirs: Sequence[Round],
    their_name: str,
    value: Callable[[Sample], float] = throughput,
) -> Figure:
    measured = ratios(ours, our_name, theirs, their_name, value)
    return _figure(
        part, name, ("at least", factor, "x"), measured, _voids((ours, our_name), (theirs, their_name))
    )


def _voids(*contenders: tuple[Sequence[Round], str]) -> str:
    """Why contenders say nothing."""
    found = {f"{name}: {void}" for rounds, name in contenders if (void := why_void(name, rounds))}
    return "; ".join(sorted(found))


def _figure(
    part: str,
    name: str,
    required: tuple[str, float, str],
    measured: Sequence[float],
    void: str,
    rounds: int = MIN_ROUNDS,
) -> Figure:
    """A figure and its verdict on the median; a void or too few rounds give none."""
    bound, limit, unit = required
    if not void and len(measured) < rounds:
        void = f"{len(measured)} rounds, fewer than {rounds}"
    holds = [value >= limit if bound == "at least" else value <= limit for value in measured]
    verdict: Verdict = "void"
    if not void:
        middle = median(measured)
        reached = middle >= limit if bound == "at least" else middle <= limit
        verdict = "reached" if reached else "not reached"
        if len(set(holds)) > 1:
            void = f"it held in {sum(holds)} of {len(holds)} rounds"
    return {
        "part": part,
        "name": name,
        "required": f"{bound} {limit:g}{'' if unit in ('x', '%') else ' '}{unit}",
        "unit": unit,
        "measured": list(measured),
        "verdict": verdict,
        "why": void,
    }
