"""A record as tables in Markdown, which is also what is printed."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from math import isinf
from statistics import median
from typing import Any

from loadtests.bench import overload, real, rollout, small
from loadtests.bench.arithmetic import MIN_ROUNDS, Outcome, Round, Rounds, Spread, case, figures, ratios
from loadtests.bench.figures import Figure, outcomes_of, rounds_of
from loadtests.bench.profile import CONNECTIONS as PROFILED
from loadtests.bench.servers import GATEWAY
from loadtests.bench.subject import BALANCED

_BUSY = 0.1
_MB = 1e6


def markdown(record: Mapping[str, Any], found: Sequence[Figure]) -> str:
    """The whole record."""
    host, parts = record["host"], record["parts"]
    lines = [
        f"{host['cpu']}, {host.get('cores', '?')} cores ({', '.join(host['features'])}); {record['taken']}; "
        f"{record['settings']['rounds']} rounds, {record['settings']['seconds']} s per closed loop.",
        "",
    ]
    if record["settings"]["rounds"] < MIN_ROUNDS:
        lines += ["**Too few rounds: these figures prove nothing.**", ""]
    busy = [share for part in parts.values() for share in part["busy_with_other_work"]]
    if max(busy, default=0.0) > _BUSY:
        lines += [f"**Other work took up to {max(busy):.0%} of this machine: indicative only.**", ""]
    lines += ["## Required figures", "", *_required(found)]
    if "small" in parts:
        lines += _small(parts["small"])
    if "real" in parts:
        lines += _real(parts["real"])
    if "overload" in parts:
        lines += _overload(parts["overload"])
    return "\n".join(lines).rstrip() + "\n"


def _required(found: Sequence[Figure]) -> list[str]:
    rows = []
    for each in found:
        unit = "" if each["unit"] in ("x", "%") else " "
        measured = _values(each["measured"], f"{unit}{each['unit']}")
        why = f"{each['verdict']}: {each['why']}" if each["why"] else each["verdict"]
        rows.append((each["part"], each["name"], each["required"], measured, why))
    return _table(("part", "figure", "required", "measured", "verdict"), rows)


def _small(part: Mapping[str, Any]) -> list[str]:
    rounds = rounds_of(part)
    lines = [f"## Small model: {part['model']}, {part['variant']}", ""]
    for name in _cases(rounds):
        ours = rollout.WITH_ROLLOUT if name == small.ROLLOUT else GATEWAY
        lines += [f"### {name}", "", *_closed(case(rounds, name), _holes_of(part, name), ours)]
    lines += ["", "### One request at a time, nothing else", ""]
    idle = part["idle"].items()
    rows = [
        (wire, f"{at['gateway_ms']:.3f}", f"{at['direct_ms']:.3f}", f"{at['added_ms']:.3f}")
        for wire, at in idle
    ]
    lines += _table(("wire", "gateway ms", "direct call ms", "added ms"), rows)
    return lines + _profiles(part["profiles"]) + _servers(part)


def _profiles(taken: Mapping[str, Any]) -> list[str]:
    """Where the gateway's time goes, a column per wire."""
    layers = dict.fromkeys(layer for each in taken.values() for layer in each["shares"])
    rows = [
        (layer, *(f"{each['shares'].get(layer, 0.0):.1%}" for each in taken.values())) for layer in layers
    ]
    holes = [f"{wire}: {each['hole']}" for wire, each in taken.items() if each["hole"]]
    title = f"### Where {GATEWAY}'s processor time goes, {PROFILED} connections"
    return [title, "", *_table(("layer", *taken), rows), *(line for hole in holes for line in (hole, ""))]


def _holes_of(part: Mapping[str, Any], name: str) -> dict[str, str]:
    """Why servers are missing from a case: they failed, or do not speak its wire."""
    if name == small.ROLLOUT:
        return _rollout_holes(part)
    if name == small.HALF_LOAD:
        return {}
    wire = name.partition(",")[0]
    lacks = {server: each[wire] for server, each in part["lacks"].items() if wire in each}
    return {**part["holes"], **lacks}


def _rollout_holes(part: Mapping[str, Any]) -> dict[str, str]:
    return {rollout.WITH_ROLLOUT: part["rollout_hole"]} if part["rollout_hole"] else {}


def _real(part: Mapping[str, Any]) -> list[str]:
    rounds = rounds_of(part)
    tiers = ", ".join(f"{tier} is {variant}" for tier, variant in part["tiers"].items())
    served = f"On an idle gateway {tiers}."
    if part["candidate"]:
        served += f" The candidate of the rollout is {part['candidate']}."
    lines = [f"## Real model: {part['model']}", "", served, ""]
    for name in _cases(rounds):
        lines += [f"### {name}", ""]
        if name == real.ROLLOUT:
            lines += _closed(case(rounds, name), _rollout_holes(part), rollout.WITH_ROLLOUT)
            continue
        lines += _closed(case(rounds, name), part["holes"], real.tier_name(BALANCED), answers=part["answers"])
    return lines + _servers(part)


def _overload(part: Mapping[str, Any]) -> list[str]:
    lines = [f"## Overload: {part['model']}", ""]
    if not part["rounds"]:
        return [*lines, *(f"{name}: {why}" for name, why in part["holes"].items()), ""]
    possible = part["best_possible_per_s"]
    lines += [
        f"Capacity of {part['reference']}: {part['fp32_capacity_per_s']:.0f} requests/s. "
        f"Best possible for the mix, by the profiles: {f'{possible:.0f}' if possible else '-'} requests/s. "
        f"`{overload.FASTEST}` is {part['fastest']}.",
        "",
    ]
    for load in overload.LOADS:
        rows = [
            (policy, *_outcome([each for each in outcomes_of(part, load, policy) if each]))
            for policy in overload.POLICIES
        ]
        lines += [f"### {overload.load_name(load)} the capacity of {part['reference']}", ""]
        lines += _table(
            (
                "policy",
                "offered/s",
                "goodput/s",
                "misses",
                "late of admitted",
                "degraded",
                "accuracy",
                "p50 ms",
                "p99 ms",
                "client behind ms",
            ),
            rows,
        )
    return lines


def _outcome(known: Sequence[Outcome]) -> Iterable[str]:
    if not known:
        return ("hole",) + ("-",) * 8
    return (
        f"{median(each.offered / each.seconds for each in known):.0f}",
        _values([each.goodput for each in known], ""),
        _values([100 * each.misses for each in known], "%"),
        _values([100 * each.late_of_admitted for each in known], "%"),
        _values([100 * each.degraded / each.in_time for each in known if each.in_time], "%"),
        _values([each.accuracy for each in known if each.accuracy is not None], ""),
        _values([each.p50_ms for each in known if each.p50_ms is not None], ""),
        _values([each.p99_ms for each in known if each.p99_ms is not None], ""),
        f"{max(each.client_lag_ms for each in known):.1f}",
    )


def _closed(
    rounds: Sequence[Round],
    holes: Mapping[str, str],
    ours: str,
    answers: Mapping[str, Mapping[str, Any]] | None = None,
) -> list[str]:
    """One case: every contender, and how many times as fast ours is."""
    names = list(dict.fromkeys([*(name for each in rounds for name in each), *holes]))
    rows = []
    for name in names:
        said = figures(name, rounds)
        accuracy = () if answers is None else (_accuracy(answers.get(name)),)
        if said["void"]:
            rows.append((name, f"hole: {holes.get(name, said['void'])}", "-", "-", "-", *accuracy))
            continue
        over = ratios(rounds, ours, rounds, name)
        rows.append(
            (
                name,
                _spread(said["requests_per_s"], 0),
                _spread(said["p50_ms"], 3),
                _spread(said["p99_ms"], 3),
                _values(over, "x") if name != ours else "",
                *accuracy,
            )
        )
    header = ["server", "requests/s", "p50 ms", "p99 ms", f"{ours} is"]
    return _table([*header, "accuracy"] if answers is not None else header, rows)


def _servers(part: Mapping[str, Any]) -> list[str]:
    rows = [
        (
            name,
            f"{at['ready_s']:.1f}",
            f"{at['largest_bytes'] / _MB:.0f}",
            f"{at['all_bytes'] / _MB:.0f}",
        )
        for name, at in part["servers"].items()
    ]
    return ["### Servers", "", *_table(("server", "ready s", "largest process MB", "all MB"), rows)]


def _accuracy(checked: Mapping[str, Any] | None) -> str:
    if not checked or checked["correct"] is None:
        return "-"
    return f"{checked['correct'] / checked['rows']:.4f}"


def _cases(rounds: Rounds) -> list[str]:
    return list(dict.fromkeys(name for each in rounds for name in each))


def _spread(of: Spread | None, digits: int) -> str:
    if of is None:
        return "-"
    return f"{of['median']:.{digits}f} ({of['low']:.{digits}f} to {of['high']:.{digits}f})"


def _values(values: Sequence[float], unit: str) -> str:
    """Median and spread with three significant digits."""
    if not values:
        return "-"
    found = (median(values), min(values), max(values))
    middle, low, high = ("∞" if isinf(each) else f"{each:.3g}" for each in found)
    return f"{middle}{unit}" if len(values) == 1 else f"{middle}{unit} ({low} to {high})"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> list[str]:
    if not rows:
        return ["none", ""]
    safe = [[" ".join(cell.split()).replace("|", "\\|") for cell in row] for row in rows]
    lines = [header, ["---"] * len(header), *safe]
    return [*(f"| {' | '.join(line)} |" for line in lines), ""]
