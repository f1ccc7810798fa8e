"""From measurements to a report: pure arithmetic.

Quantiles are nearest-rank over all good answers at full resolution (Locust's own are rounded to whole
milliseconds). Throughput counts good answers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any, Literal, cast

from loadtests.figures import answers_by_row, blocks, curve, figures, intervals, lateness, timeline
from loadtests.schema import FORMAT, Found, Part, Quantiles, Report, TargetReport, TierVerdict
from loadtests.tally import Load, Measurement
from loadtests.terms import Term, judge
from loadtests.winners import winners

# Locust's own threshold; its monitor looks every 10 s only, so the share is measured over each load.
CLIENT_BUSY = 0.9
PACING = (
    "Load is closed-loop: each user waits for its answer before it sends again, so when the gateway stalls, "
    "requests that independent clients would have sent are never sent, and the tail looks better than such "
    "clients would see it (coordinated omission)."
)
OPEN_PACING = (
    "Load is open-loop: all times were drawn before it began, no request waits for the answer of another, "
    "and latency counts from the moment at which a request was meant to start. When the gateway "
    "stalls, requests that arrive meanwhile are sent and counted, so the tail is what independent clients "
    "would see (no coordinated omission)."
)
_REASONS_SHOWN = 5
# Sending late is part of the latency: from this share on it says more of the client than of the gateway.
_LATE_MS = 1.0
_LATE_SHARE = 0.25


def quantiles(values: Sequence[float]) -> Quantiles | None:
    """Nearest-rank p50, p95 and p99, or None of nothing."""
    if not values:
        return None
    ordered = sorted(values)

    def rank(share: float) -> float:
        return ordered[max(0, math.ceil(share * len(ordered)) - 1)]

    return {"p50": rank(0.50), "p95": rank(0.95), "p99": rank(0.99)}


def tier_verdict(floor: float, correct: int, reference: int, rows: int, judged: int) -> TierVerdict:
    """Holds a tier's right answers against its floor.

    Args:
        floor: Lowest quality ratio of the tier.
        correct: Rows that the tier got right.
        reference: Rows of the same split that the reference got right.
        rows: Rows of the split.
        judged: Rows for which both answered; with fewer than `rows` there is no verdict.
    """
    if judged < rows or not rows or not reference:
        return {"floor": floor, "quality_ratio": None, "verdict": "not judged", "rows_short": 0}
    ratio = correct / reference
    # The tolerance is for floors like 0.97 that binary fractions only approximate.
    needed = math.ceil(floor * reference - 1e-9)
    short = max(0, needed - correct)
    return {
        "floor": floor,
        "quality_ratio": ratio,
        "verdict": "below" if short else "ok",
        "rows_short": short,
    }


def make_report(
    measurements: Sequence[Measurement],
    document: Mapping[str, Any],
    *,
    rows: int,
    url: str,
    settings: Mapping[str, Any],
    taken: str,
    not_measured: Mapping[str, str],
    price: float = 0.0,
    gate: Sequence[Term] = (),
    slo: str | None = None,
) -> Report:
    """The whole report.

    Args:
        measurements: Of every target, and of the reference's pass over the test split.
        document: What `mipgate show MODEL --json` prints.
        rows: Rows of the test split.
        url: The gateway's address.
        settings: How it was measured.
        taken: When, in ISO 8601.
        not_measured: Why a variant was not measured, by name.
        price: Of a processor hour.
        gate: Conditions that must not be true; they take the place of the usual verdict.
        slo: The objective of the search, as it was written.
    """
    reference = next((m for m in measurements if m.target.label == f"variant:{document['reference']}"), None)
    targets = [
        _target(m, m.load, reference, document, rows, price) for m in measurements if m.load is not None
    ]
    judged = judge(gate, targets)
    reasons = [reason for target in targets for reason in _complaints(target)]
    if reference is not None and reference.load is None and reference.test.failures:
        count = reference.test.failures.total()
        reasons.append(f"the reference failed on {count} of {rows} rows of the test split.")
    warnings = _warnings(targets, document)
    if gate:
        warnings += reasons
        reasons = [entry["text"] for entry in judged if entry["breached"]]
    return {
        "format": FORMAT,
        "model": document["model"],
        "metric": document["metric"],
        "reference": document["reference"],
        "url": url,
        "taken": taken,
        "host": dict(document["host"]),
        "settings": dict(settings),
        "pacing": OPEN_PACING if settings.get("shape") else PACING,
        "targets": targets,
        "winners": winners(targets),
        "not_measured": dict(not_measured),
        "warnings": warnings,
        "verdict": {"ok": not reasons, "reasons": reasons},
        "gate": judged,
        "slo": slo,
        "baseline": None,
        "loadgen": [],
    }


def _target(
    measurement: Measurement,
    load: Load,
    reference: Measurement | None,
    document: Mapping[str, Any],
    rows: int,
    price: float,
) -> TargetReport:
    target, test, requests = measurement.target, measurement.test, load.tally.rows
    tier = _tier(measurement, reference, document, rows) if target.kind == "tier" else None
    parts = blocks(requests, load.seconds)
    capacity = measurement.capacity
    known = figures(requests, load, price, whole=True)
    known["quality"] = tier["quality_ratio"] if tier else None
    known["capacity"] = capacity.rate if capacity else None
    variants = test.variants + load.tally.variants
    failures = test.failures + load.tally.failures
    answered = len(load.tally.latencies_ms)
    return {
        "target": target.label,
        "kind": target.kind,
        "name": target.name,
        "answered_by": {name: count / variants.total() for name, count in variants.most_common()},
        "requests": variants.total() + failures.total(),
        "requests_per_s": answered / load.seconds,
        "latency_ms": quantiles(load.tally.latencies_ms),
        "gateway_ms": quantiles(load.tally.gateway_ms),
        "failures": failures.total(),
        "failure_reasons": dict(failures.most_common(_REASONS_SHOWN)),
        "accuracy": test.accuracy,
        "accuracy_rows": test.judged,
        "live_accuracy": load.tally.accuracy,
        "live_rows": load.tally.judged,
        "client_cpu": load.client_cpu,
        "machine_cpu": load.machine_cpu,
        "artifact_bytes": _bytes(document, target.name) if target.kind == "variant" else None,
        "tier": tier,
        "figures": known,
        "intervals": intervals(requests, parts),
        "tiers": _parts("tier", load) if target.kind == "mix" else [],
        "variants": _parts("variant", load) if target.kind != "variant" else [],
        "blocks": parts,
        "timeline": timeline(requests, load.seconds),
        "curve": curve(requests),
        "answers_by_row": answers_by_row(requests, rows),
        "late_ms": lateness(requests) if load.digest else None,
        "processes": load.server.processes if load.server else None,
        "digest": load.digest,
        "capacity": cast(Found, asdict(capacity)) if capacity else None,
    }


def _parts(kind: Literal["tier", "variant"], load: Load) -> list[Part]:
    """The load's requests by tier, or by variant; the largest part first."""
    requests, names = load.tally.rows, list(load.tally.names)
    found: list[Part] = []
    for code in sorted(set(requests[kind].tolist()) - {-1}):
        mine = requests[requests[kind] == code]
        found.append(
            {
                "name": names[code],
                "share": len(mine) / len(requests),
                "figures": figures(mine, load, 0.0, whole=False),
                "intervals": intervals(mine, blocks(mine, load.seconds)),
            }
        )
    return sorted(found, key=lambda part: -part["share"])


def _tier(
    measurement: Measurement, reference: Measurement | None, document: Mapping[str, Any], rows: int
) -> TierVerdict:
    floor = float(document["tiers"][measurement.target.name]["min_quality_ratio"])
    if document["metric"] != "accuracy" or reference is None:
        return tier_verdict(floor, 0, 0, rows, 0)
    judged = min(measurement.test.judged, reference.test.judged)
    return tier_verdict(floor, measurement.test.correct, reference.test.correct, rows, judged)


def _bytes(document: Mapping[str, Any], variant: str) -> int | None:
    """Size of the artifact; of several builds the released one, which is what a bare recipe means."""
    builds = [entry for entry in document["variants"] if entry["name"] == variant]
    builds.sort(key=lambda entry: entry["life"] != "released")
    return (builds[0].get("artifact") or {}).get("bytes") if builds else None


def _complaints(target: TargetReport) -> list[str]:
    complaints = []
    if target["failures"]:
        reason = next(iter(target["failure_reasons"]))
        complaints.append(
            f"{target['target']}: {target['failures']} of {target['requests']} requests failed, "
            f"most of them with: {reason}"
        )
    tier = target["tier"]
    if tier is not None and tier["verdict"] == "below":
        complaints.append(
            f"{target['target']} is below its floor: quality ratio {tier['quality_ratio']:.4f} of "
            f"{tier['floor']:g}, {tier['rows_short']} row(s) short of {target['accuracy_rows']}."
        )
    return complaints


def sends_late(late_ms: float | None, p99_ms: float | None) -> bool:
    """Whether the delay of sending is a large part of the latencies."""
    return late_ms is not None and late_ms > max(_LATE_MS, _LATE_SHARE * (p99_ms or 0.0))


def _warnings(targets: Sequence[TargetReport], document: Mapping[str, Any]) -> list[str]:
    warnings = []
    busy = [t["target"] for t in targets if t["client_cpu"] >= CLIENT_BUSY]
    if busy:
        worst = max(t["client_cpu"] for t in targets)
        warnings.append(
            f"The load generator itself was the bottleneck (up to {worst:.0%} of one processor) for "
            f"{', '.join(busy)}: the gateway can do more, and latencies hold the client's own queue. "
            "Use fewer users or more --processes, another machine, or `make bench` for the data plane's own "
            "speed."
        )
    late = [t["target"] for t in targets if sends_late(t["late_ms"], t["figures"]["p99"])]
    if late:
        worst = max(t["late_ms"] or 0.0 for t in targets)
        warnings.append(
            f"Locust sent late (1 in 100 requests by {worst:.1f} ms or more) for {', '.join(late)}: the load "
            "generator or its machine was too slow, and latencies hold that delay. Use more --processes, a "
            "lower --rate, or another machine."
        )
    full = [t["target"] for t in targets if t["machine_cpu"] >= CLIENT_BUSY and t["target"] not in busy]
    if full:
        warnings.append(
            f"All processors of this machine were busy for {', '.join(full)}: the load generator waited for "
            "its turn, and latencies hold that wait. Load the gateway from another machine."
        )
    if any(t["tier"] and t["tier"]["verdict"] == "not judged" for t in targets):
        warnings.append(
            f"A tier could not be judged: its floor is on {document['metric']}, and this client judges "
            "classes of labelled rows only, each of which the tier and the reference must have answered."
        )
    return warnings
