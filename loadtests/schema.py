"""The shape of `report.json`. Fields are added, never renamed."""

from __future__ import annotations

from typing import Any, TypedDict

FORMAT = 1


class Quantiles(TypedDict):
    """Times in milliseconds."""

    p50: float
    p95: float
    p99: float


class TierVerdict(TypedDict):
    """Whether a tier keeps its promise on the test split.

    `quality_ratio` is the tier's accuracy over the reference's, in the same run; `rows_short` is how many
    more rows it would have had to get right. `verdict` is `ok`, `below`, or `not judged`.
    """

    floor: float
    quality_ratio: float | None
    verdict: str
    rows_short: int


class TargetReport(TypedDict):
    """One row of the table.

    `target` is `<kind>:<name>`; `answered_by` maps variants to their share of the good answers (0..1);
    `latency_ms` is what the client saw, `gateway_ms` the queue and inference that the gateway stated;
    `requests` and `failures` count both the load and the pass over the test split; `accuracy` is over
    `accuracy_rows` rows of the test split, `live_accuracy` over `live_rows` answers under load; `client_cpu`
    is the share of one processor that the load generator used, `machine_cpu` of all processors of its machine
    that were busy; `tier` is there for tiers. None means: not
    measured.
    """

    target: str
    kind: str
    name: str
    answered_by: dict[str, float]
    requests: int
    requests_per_s: float
    latency_ms: Quantiles | None
    gateway_ms: Quantiles | None
    failures: int
    failure_reasons: dict[str, int]
    accuracy: float | None
    accuracy_rows: int
    live_accuracy: float | None
    live_rows: int
    client_cpu: float
    machine_cpu: float
    artifact_bytes: int | None
    tier: TierVerdict | None


class Winner(TypedDict):
    """One title: who holds it, with which value, and who is too near to call."""

    title: str
    target: str
    value: float
    unit: str
    tied: list[str]


class Verdict(TypedDict):
    """Whether all is well, and a sentence for each thing that is not."""

    ok: bool
    reasons: list[str]


class Report(TypedDict):
    """`report.json`. `settings` holds `seconds`, `users`, `binary`; `not_measured` maps variants to why."""

    format: int
    model: str
    metric: str
    reference: str
    url: str
    taken: str
    host: dict[str, Any]
    settings: dict[str, Any]
    pacing: str
    targets: list[TargetReport]
    winners: list[Winner]
    not_measured: dict[str, str]
    warnings: list[str]
    verdict: Verdict
