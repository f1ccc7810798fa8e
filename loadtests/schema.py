"""The shape of `report.json`. Fields are added, never renamed."""

from __future__ import annotations

from typing import Any, TypedDict

FORMAT = 1

Figures = dict[str, float | None]
Interval = list[float]


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


class Block(TypedDict):
    """A twentieth of the run: `counts` good answers by latency bin (`loadtests.figures.bin_ms`)."""

    requests: int
    good: int
    bins: list[int]
    counts: list[int]


class Moment(TypedDict):
    """A moment of the run: requests and good answers per second, and the latter's milliseconds."""

    at_s: float
    offered: float
    good: float
    p50: float | None
    p99: float | None


class Part(TypedDict):
    """The requests of one tier, or the answers of one variant, within a load; `share` of its requests."""

    name: str
    share: float
    figures: Figures
    intervals: dict[str, Interval]


class Tried(TypedDict):
    """One rate of a search: `held`, `broken`, or `client` where the load generator could not keep up."""

    rate: float
    outcome: str
    why: str


class Found(TypedDict):
    """The highest rate at which `--slo` holds, what limits it (gateway, client, most), and what was tried."""

    rate: float
    limit: str
    probes: list[Tried]


class TargetReport(TypedDict):
    """One row of the table.

    `target` is `<kind>:<name>`; `answered_by` maps variants to their share of the good answers (0..1);
    `latency_ms` is what the client saw, `gateway_ms` the queue and inference that the gateway stated;
    `requests` and `failures` count both the load and the pass over the test split; `accuracy` is over
    `accuracy_rows` rows of the test split, `live_accuracy` over `live_rows` answers under load; `client_cpu`
    is the share of one processor that the load generator used, `machine_cpu` of all processors of its machine
    that were busy; `tier` is there for tiers. `figures` (`loadtests.figures.FIGURES`) and their 95%
    `intervals` are of the load alone, over all of it; `tiers` and `variants` are its parts; `answers_by_row`
    has one character per row of the samples (`1` right, `0` wrong at least once, `-` not asked); `curve`
    pairs shares with milliseconds; `late_ms` is how late the load generator sent at most, 99 times in 100;
    `digest` tells schedules apart. None means: not measured.
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
    figures: Figures
    intervals: dict[str, Interval]
    tiers: list[Part]
    variants: list[Part]
    blocks: list[Block]
    timeline: list[Moment]
    curve: list[list[float]]
    answers_by_row: str
    late_ms: float | None
    processes: int | None
    digest: str | None
    capacity: Found | None


class GateTerm(TypedDict):
    """One condition of `--fail-on` on one target, with its figure; None when it is not known."""

    term: str
    target: str
    value: float | None
    breached: bool
    text: str


class Change(TypedDict):
    """One figure of one target, now and in an earlier run.

    `change` is relative for times and a difference for shares, `low` and `high` its 95% interval; `p` is the
    chance of such a change where nothing changed, corrected for how many figures were compared. `verdict` is
    `better`, `worse` or `cannot tell`.
    """

    target: str
    figure: str
    before: float
    now: float
    change: float
    low: float | None
    high: float | None
    p: float | None
    verdict: str
    text: str


class Baseline(TypedDict):
    """A comparison with an earlier run; `unlike` says what else differs, which forbids verdicts."""

    taken: str
    url: str
    paired: bool
    unlike: list[str]
    changes: list[Change]
    text: str


class LoadGen(TypedDict):
    """One scenario of MLPerf's LoadGen: what its summary says, and where its logs lie."""

    scenario: str
    target: str
    valid: bool
    summary: dict[str, str]
    logs: str


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
    """`report.json`. `settings` holds how it was loaded; `not_measured` maps variants to why."""

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
    gate: list[GateTerm]
    slo: str | None
    baseline: Baseline | None
    loadgen: list[LoadGen]
