"""From measurements to a report: pure arithmetic.

Quantiles are nearest-rank over all good answers at full resolution (Locust's own are rounded to whole
milliseconds). Throughput counts good answers only.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from loadtests.schema import FORMAT, Quantiles, Report, TargetReport, TierVerdict
from loadtests.tally import Load, Measurement
from loadtests.winners import winners

# Locust's own threshold; its monitor looks every 10 s only, so the share is measured over each load.
CLIENT_BUSY = 0.9
PACING = (
    "Load is closed-loop: each user waits for its answer before it sends again, so when the gateway stalls, "
    "requests that independent clients would have sent are never sent, and the tail looks better than such "
    "clients would see it (coordinated omission)."
)
_REASONS_SHOWN = 5


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
    """
    reference = next((m for m in measurements if m.target.label == f"variant:{document['reference']}"), None)
    targets = [_target(m, m.load, reference, document, rows) for m in measurements if m.load is not None]
    reasons = [reason for target in targets for reason in _complaints(target)]
    if reference is not None and reference.load is None and reference.test.failures:
        count = reference.test.failures.total()
        reasons.append(f"the reference failed on {count} of {rows} rows of the test split.")
    return {
        "format": FORMAT,
        "model": document["model"],
        "metric": document["metric"],
        "reference": document["reference"],
        "url": url,
        "taken": taken,
        "host": dict(document["host"]),
        "settings": dict(settings),
        "pacing": PACING,
        "targets": targets,
        "winners": winners(targets),
        "not_measured": dict(not_measured),
        "warnings": _warnings(targets, document),
        "verdict": {"ok": not reasons, "reasons": reasons},
    }


def _target(
    measurement: Measurement,
    load: Load,
    reference: Measurement | None,
    document: Mapping[str, Any],
    rows: int,
) -> TargetReport:
    target, test = measurement.target, measurement.test
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
        "tier": _tier(measurement, reference, document, rows) if target.kind == "tier" else None,
    }


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


def _warnings(targets: Sequence[TargetReport], document: Mapping[str, Any]) -> list[str]:
    warnings = []
    busy = [t["target"] for t in targets if t["client_cpu"] >= CLIENT_BUSY]
    if busy:
        worst = max(t["client_cpu"] for t in targets)
        warnings.append(
            f"The load generator itself was the bottleneck (up to {worst:.0%} of one processor) for "
            f"{', '.join(busy)}: the gateway can do more, and latencies hold the client's own queue. "
            "Use fewer users, another machine, or `make bench` for the data plane's own speed."
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
