"""What changed since an earlier run, and whether the two runs can tell. Pure.

Percentiles and error shares: a permutation test over blocks of time (Fisher 1935, "The Design of
Experiments"). If nothing changed, a block may as well have come from either run. When both runs sent the same
schedule, block is swapped with block (paired); otherwise blocks are dealt anew. Accuracy: McNemar's exact
test (1947) over the rows that both runs judged. All p-values are corrected for their number (Holm 1979).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from loadtests.figures import binned_quantile, histogram
from loadtests.schema import FORMAT, Baseline, Block, Change, Report, TargetReport
from loadtests.terms import show

Array = NDArray[Any]

_PERMUTATIONS = 2000
_DRAWS = 1000
_ALPHA = 0.05
_SEED = 0
_FEWEST_BLOCKS = 8
_BUSY = 0.9
_FEWEST_BEYOND = 5
_PERCENTILES = {"p50": 0.5, "p99": 0.99}
_SAME = ("shape", "rate", "peak", "seconds", "users", "binary", "trace", "speed", "allow_degrade")
_NOISE = (
    "The test knows the noise within the two runs. A machine that others use varies more from run to run: "
    "before you act on a small change, repeat both."
)
Statistic = Callable[[Array], Array]


class BaselineError(Exception):
    """The earlier run is none, or of another model."""


def compare_runs(now: Report, before: Mapping[str, Any]) -> Baseline:
    """Compares each target that both runs loaded.

    Args:
        now: This run.
        before: The earlier run's `report.json`.

    Raises:
        BaselineError: The earlier run is none, or of another model.
    """
    _check(now, before)
    unlike = _unlike(now, before)
    earlier: dict[str, TargetReport] = {target["target"]: target for target in before["targets"]}
    changes: list[Change] = []
    paired = True
    for target in now["targets"]:
        if (old := earlier.get(target["target"])) is None:
            continue
        same = target["digest"] is not None and target["digest"] == old["digest"]
        paired &= same
        changes += _changes(target, old, same)
        changes += _accuracy(target, old)
    _judge(changes, bool(unlike))
    return {
        "taken": before["taken"],
        "url": before["url"],
        "paired": paired and bool(changes),
        "unlike": unlike,
        "changes": changes,
        "text": _summary(changes, unlike) + _caution(now, before),
    }


def _check(now: Report, before: Mapping[str, Any]) -> None:
    try:
        found, model, _ = before["format"], before["model"], before["targets"][0]["blocks"]
    except (KeyError, TypeError, IndexError) as error:
        raise BaselineError(
            f"the earlier run holds no {error} to compare with. "
            "Give a report.json that `mipgate compare` wrote."
        ) from error
    if found != FORMAT or model != now["model"]:
        raise BaselineError(
            f"the earlier run is of {model} (format {found}), this one of {now['model']} (format {FORMAT}). "
            "Give a run of the same model."
        )


def _unlike(now: Report, before: Mapping[str, Any]) -> list[str]:
    found = []
    if now["host"].get("fingerprint") != before["host"].get("fingerprint"):
        found.append(f"the host was {before['host'].get('cpu', 'another')}")
    for name in _SAME:
        was, is_now = before["settings"].get(name), now["settings"].get(name)
        if was != is_now:
            found.append(f"{name} was {was} and is {is_now}")
    return found


def _changes(target: TargetReport, old: TargetReport, same: bool) -> list[Change]:
    now, before = target["blocks"], old["blocks"]
    if not now or not before:
        return []
    found: list[Change] = []
    counts = histogram(now), histogram(before)
    for name, share in _PERCENTILES.items():
        enough = min(counts[0].sum(), counts[1].sum()) * (1 - share) >= _FEWEST_BEYOND
        found += _tested(target, old, name, counts, _quantile_of(share), same, relative=True, enough=enough)
    requests = _requests(now), _requests(before)
    found += _tested(target, old, "errors", requests, _failed, same, relative=False, enough=True)
    return found


def _tested(
    target: TargetReport,
    old: TargetReport,
    figure: str,
    counts: tuple[Array, Array],
    statistic: Statistic,
    same: bool,
    *,
    relative: bool,
    enough: bool,
) -> list[Change]:
    """The change of one figure, with its interval and its uncorrected p-value."""
    now, before = target["figures"].get(figure), old["figures"].get(figure)
    if now is None or before is None:
        return []
    change = now / before - 1 if relative else now - before
    made: Change = {
        "target": target["target"], "figure": figure, "before": before, "now": now, "change": change,
        "low": None, "high": None, "p": None, "verdict": "", "text": "",
    }  # fmt: skip
    if enough and min(len(counts[0]), len(counts[1])) >= _FEWEST_BLOCKS:
        generator = np.random.default_rng(_SEED)
        made["p"] = _permutation(counts, statistic, same, generator)
        made["low"], made["high"] = _interval(counts, statistic, same, relative, generator)
    return [made]


def _permutation(
    counts: tuple[Array, Array], statistic: Statistic, same: bool, generator: np.random.Generator
) -> float:
    """The share of dealings of the blocks that differ at least as much as the two runs do."""
    now, before = counts
    pooled = np.concatenate(counts)
    if same:
        swapped = generator.integers(0, 2, (_PERMUTATIONS, len(now)))
        dealt = np.concatenate([1 - swapped, swapped], axis=1)
    else:
        first = np.arange(len(pooled)) < len(now)
        dealt = generator.permuted(np.tile(first, (_PERMUTATIONS, 1)), axis=1).astype(int)
    found = np.abs(statistic(dealt @ pooled) - statistic((1 - dealt) @ pooled))
    seen = np.abs(statistic(now.sum(0)[None]) - statistic(before.sum(0)[None]))[0]
    return float(((found >= seen - 1e-12).sum() + 1) / (_PERMUTATIONS + 1))


def _interval(
    counts: tuple[Array, Array],
    statistic: Statistic,
    same: bool,
    relative: bool,
    generator: np.random.Generator,
) -> tuple[float, float]:
    sizes = [len(part) for part in counts]
    drawn = [generator.multinomial(size, np.full(size, 1 / size), _DRAWS) for size in sizes]
    if same:
        drawn[1] = drawn[0]
    now, before = (statistic(weights @ part) for weights, part in zip(drawn, counts, strict=True))
    change = now / before - 1 if relative else now - before
    low, high = np.nanpercentile(change, [2.5, 97.5])
    return float(low), float(high)


def _accuracy(target: TargetReport, old: TargetReport) -> list[Change]:
    now, before = target["answers_by_row"], old["answers_by_row"]
    pairs = [pair for pair in zip(now, before, strict=False) if "-" not in pair]
    if not pairs or len(now) != len(before):
        return []
    won, lost = pairs.count(("1", "0")), pairs.count(("0", "1"))
    right_now = sum(mark == "1" for mark, _ in pairs) / len(pairs)
    right_before = sum(mark == "1" for _, mark in pairs) / len(pairs)
    return [
        {
            "target": target["target"], "figure": "accuracy", "before": right_before, "now": right_now,
            "change": right_now - right_before, "low": None, "high": None, "p": mcnemar(won, lost),
            "verdict": "", "text": "",
        }
    ]  # fmt: skip


def mcnemar(won: int, lost: int) -> float:
    """Exact two-sided p-value: of the rows that changed, as many should be won as lost by chance."""
    count = won + lost
    tail: float = sum(math.comb(count, k) for k in range(min(won, lost) + 1)) / 2**count
    return min(1.0, 2 * tail)


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number."""
    found = [0.0] * len(values)
    highest = 0.0
    for place, index in enumerate(sorted(range(len(values)), key=lambda i: values[i])):
        highest = max(highest, min(1.0, values[index] * (len(values) - place)))
        found[index] = highest
    return found


def _judge(changes: list[Change], unlike: bool) -> None:
    """Corrects the p-values and says what can be said."""
    tested = [change for change in changes if change["p"] is not None]
    corrected = holm([change["p"] or 0.0 for change in tested])
    for change, value in zip(tested, corrected, strict=True):
        change["p"] = value
    for change in changes:
        p, more = change["p"], change["figure"] == "accuracy"
        if unlike or p is None or p >= _ALPHA or not change["change"]:
            change["verdict"] = "cannot tell"
        else:
            change["verdict"] = "better" if (change["change"] > 0) == more else "worse"
        change["text"] = _sentence(change, unlike)


def _sentence(change: Change, unlike: bool) -> str:
    figure = change["figure"]
    size = f"{change['change']:+.1%}" if figure in _PERCENTILES else f"{100 * change['change']:+.2f} points"
    values = f"{show(figure, change['before'])} -> {show(figure, change['now'])}"
    text = f"{change['target']}: {figure} {values} ({size})"
    if unlike:
        return f"{text}: cannot tell, the runs are not alike"
    if change["p"] is None:
        return f"{text}: cannot tell, too few answers"
    return f"{text}: {change['verdict']} (p = {change['p']:.2g})"


def _summary(changes: Sequence[Change], unlike: Sequence[str]) -> str:
    if not changes:
        return "No target was loaded in both runs, so there is nothing to compare."
    if unlike:
        return f"The runs are not alike ({'; '.join(unlike)}), so what changed cannot be told from them."
    told = [change for change in changes if change["verdict"] != "cannot tell"]
    if not told:
        return f"No figure changed by more than chance explains ({len(changes)} compared). {_NOISE}"
    worse = [c["text"] for c in told if c["verdict"] == "worse"]
    better = [c["text"] for c in told if c["verdict"] == "better"]
    parts = [f"Worse: {'; '.join(worse)}."] if worse else []
    parts += [f"Better: {'; '.join(better)}."] if better else []
    return f"{' '.join(parts)} The other {len(changes) - len(told)} figures: cannot tell. {_NOISE}"


def _caution(now: Report, before: Mapping[str, Any]) -> str:
    """Latencies of a machine that had no processor left tell of its neighbours too."""
    busy = [
        name
        for name, run in (("this", now), ("the earlier", before))
        if any(target["machine_cpu"] >= _BUSY for target in run["targets"])
    ]
    if not busy:
        return ""
    return (
        f" All processors were busy in {' and '.join(busy)} run: other programs may have made a change too."
    )


def _quantile_of(share: float) -> Statistic:
    return lambda counts: binned_quantile(counts, share)


def _requests(parts: Sequence[Block]) -> Array:
    return np.array([[part["requests"], part["requests"] - part["good"]] for part in parts], float)


def _failed(counts: Array) -> Array:
    found: Array = counts[:, 1] / np.maximum(counts[:, 0], 1)
    return found
