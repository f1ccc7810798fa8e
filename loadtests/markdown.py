"""The report as Markdown for people."""

from __future__ import annotations

from loadtests.schema import GateTerm, Quantiles, Report, TargetReport
from loadtests.shapes import describe
from loadtests.terms import show

_COLUMNS = (
    "target", "answered by", "requests/s", "p50 ms", "p95 ms", "p99 ms", "failures", "accuracy on test",
    "live accuracy", "in gateway p50 ms",
)  # fmt: skip


def markdown(report: Report) -> str:
    """The whole report, with its picture beside it as `report.png`."""
    settings, host = report["settings"], report["host"]
    encoding = "binary tensors" if settings["binary"] else "JSON"
    parts = [
        f"# {report['model']}: tiers and variants under load",
        f"{report['taken']}, {report['url']}, variants of {host['cpu']}. {describe(settings)}, one row "
        f"per request, {encoding}. {report['pacing']}",
        _verdict(report),
        *(f"> **Warning.** {warning}" for warning in report["warnings"]),
        "![latency, throughput and accuracy per target](report.png)",
        _table(_COLUMNS, [_row(target) for target in report["targets"]]),
        "Latencies are the client's, over good answers; in gateway is queue and inference as the gateway "
        "states them. The accuracy on test is of one pass over the whole test split; the live one is of "
        "random rows under load.",
        "## Tiers",
        _tiers(report),
        "## Who wins at what",
        _winners(report),
    ]
    if report["gate"]:
        parts += ["## Conditions", _gate(report)]
    if report["slo"]:
        parts += ["## Throughput at the objective", _capacity(report)]
    if (baseline := report["baseline"]) is not None:
        lines = [f"- {change['text']}" for change in baseline["changes"]]
        parts += [f"## Since {baseline['taken']}", baseline["text"], "\n".join(lines)]
    for entry in report["loadgen"]:
        valid = "valid" if entry["valid"] else "not valid"
        lines = [f"- {name}: {value}" for name, value in entry["summary"].items() if "(ns)" in name]
        parts += [f"## LoadGen {entry['scenario']}, {entry['target']}: {valid}", "\n".join(lines)]
    if report["not_measured"]:
        lines = [f"- {name}: {why}" for name, why in report["not_measured"].items()]
        parts += ["## Not measured", "\n".join(lines)]
    return "\n\n".join(parts) + "\n"


def _verdict(report: Report) -> str:
    if report["verdict"]["ok"] and report["gate"]:
        return "**No condition of `--fail-on` was met.**"
    if report["verdict"]["ok"]:
        return "**Every request was answered as asked, and no tier is below its floor.**"
    return "\n".join(f"- **{reason}**" for reason in report["verdict"]["reasons"])


def _row(target: TargetReport) -> list[str]:
    shares = ", ".join(f"{name} {share:.0%}" for name, share in target["answered_by"].items())
    return [
        target["target"],
        shares or "nobody",
        f"{target['requests_per_s']:.0f}",
        *(milliseconds(target["latency_ms"], key) for key in ("p50", "p95", "p99")),
        str(target["failures"]),
        accuracy(target["accuracy"], target["accuracy_rows"]),
        accuracy(target["live_accuracy"], target["live_rows"]),
        milliseconds(target["gateway_ms"], "p50"),
    ]


def milliseconds(times: Quantiles | None, key: str) -> str:
    """One quantile with three significant digits at least, or a dash."""
    if times is None:
        return "-"
    value = {"p50": times["p50"], "p95": times["p95"], "p99": times["p99"]}[key]
    return f"{value:.2f}" if value < 100 else f"{value:.0f}"


def accuracy(value: float | None, rows: int) -> str:
    """A share of rows, or a dash when nothing was judged."""
    return "-" if value is None else f"{value:.4f} ({rows} rows)"


def _tiers(report: Report) -> str:
    rows = [
        [
            target["name"],
            f"{tier['floor']:g}",
            "-" if tier["quality_ratio"] is None else f"{tier['quality_ratio']:.4f}",
            tier["verdict"],
        ]
        for target in report["targets"]
        if (tier := target["tier"]) is not None
    ]
    if not rows:
        return "No tier was measured."
    table = _table(("tier", "floor", "quality ratio", "verdict"), rows)
    return f"{table}\n\nThe quality ratio is over the test accuracy of {report['reference']} in this run."


def _winners(report: Report) -> str:
    lines = []
    for winner in report["winners"]:
        tied = f"; too near to call: {', '.join(winner['tied'])}" if winner["tied"] else ""
        value = f"{winner['value']:.0f}" if winner["value"] >= 1000 else f"{winner['value']:.4g}"
        measure = f"{value} {winner['unit']}".rstrip()
        lines.append(f"- {winner['title']}: **{winner['target']}** ({measure}){tied}")
    note = "Latencies and throughputs within 10% are ties, broken by accuracy."
    return "\n".join(lines) + f"\n\n{note}" if lines else "Nothing was answered, so nobody wins."


def _gate(report: Report) -> str:
    rows = [
        [entry["term"], entry["target"], _figure(entry), "breached" if entry["breached"] else "kept"]
        for entry in report["gate"]
    ]
    return _table(("fails on", "of", "figure", ""), rows)


def _figure(entry: GateTerm) -> str:
    return entry["text"].partition(" is ")[2].partition(" (")[0] or "-"


def _capacity(report: Report) -> str:
    rows = []
    for target in report["targets"]:
        if (found := target["capacity"]) is not None:
            broken = [probe for probe in found["probes"] if probe["outcome"] != "held"]
            why = f"{broken[-1]['why']} at {broken[-1]['rate']:.0f}/s" if broken else "nothing broke it"
            rows.append([target["target"], show("capacity", found["rate"]), found["limit"], why])
    table = _table(("target", "highest rate", "limited by", "what broke"), rows)
    return f"The highest rate at which {report['slo']} holds, to within a tenth.\n\n{table}"


def _table(columns: tuple[str, ...], rows: list[list[str]]) -> str:
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
