"""Who wins at what. Latencies and throughputs within 10% of the best are ties, broken by accuracy."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from loadtests.schema import TargetReport, Winner

_TIE = 0.10


def winners(targets: Sequence[TargetReport]) -> list[Winner]:
    """Titles among the variants, or among the tiers when no variant was measured; the unknown never win."""
    variants = [target for target in targets if target["kind"] == "variant"]
    field = [target for target in variants or targets if target["latency_ms"] is not None]
    titles = [
        _title("fastest p99", "ms", field, _p99, lowest=True, tie=_TIE),
        _title("highest throughput", "requests/s", field, _throughput, tie=_TIE),
        _title("best accuracy", "", field, lambda t: t["accuracy"]),
        _title("smallest artifact", "bytes", field, lambda t: t["artifact_bytes"], lowest=True),
        _title("best accuracy per latency", "accuracy per ms of p50", field, _per_latency, tie=_TIE),
    ]
    return [title for title in titles if title is not None]


def _title(
    title: str,
    unit: str,
    field: Sequence[TargetReport],
    value: Callable[[TargetReport], float | None],
    *,
    lowest: bool = False,
    tie: float = 0.0,
) -> Winner | None:
    known = [(number, target) for target in field if (number := value(target)) is not None]
    if not known:
        return None
    numbers = [number for number, _ in known]
    best = min(numbers) if lowest else max(numbers)
    near = [
        (number, target)
        for number, target in known
        if (number <= best * (1 + tie) if lowest else number >= best * (1 - tie))
    ]
    near.sort(key=lambda pair: (-(pair[1]["accuracy"] or 0.0), pair[0] if lowest else -pair[0]))
    (number, winner), tied = near[0], near[1:]
    return {
        "title": title,
        "target": winner["target"],
        "value": number,
        "unit": unit,
        "tied": [target["target"] for _, target in tied],
    }


def _throughput(target: TargetReport) -> float | None:
    """Of an open loop the rate that was searched for: otherwise it answers what is sent, and nobody wins."""
    if target["digest"] is None:
        return target["requests_per_s"]
    return target["capacity"]["rate"] if target["capacity"] else None


def _p99(target: TargetReport) -> float | None:
    latency = target["latency_ms"]
    return None if latency is None else latency["p99"]


def _per_latency(target: TargetReport) -> float | None:
    latency, accuracy = target["latency_ms"], target["accuracy"]
    return None if latency is None or accuracy is None or not latency["p50"] else accuracy / latency["p50"]
