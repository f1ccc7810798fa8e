"""The report as one HTML file that needs no network. Pure."""

from __future__ import annotations

from importlib.resources import files
from typing import Any

from jinja2 import Environment, StrictUndefined, select_autoescape

from loadtests import charts
from loadtests.figures import FIGURES
from loadtests.schema import Interval, Report, TargetReport
from loadtests.shapes import describe
from loadtests.terms import show

_TEMPLATE = "page.html.j2"
_CHANGED = ("p50", "p99")
_SUMMARY = (
    "90.0th percentile latency (ns)", "Completed samples per second", "Samples per second",
    "QPS w/o loadgen overhead",
    "99.00 percentile latency (ns)", "requests answered", "accuracy of the answers", "first failure",
)  # fmt: skip


def render(report: Report) -> str:
    """The page."""
    targets = report["targets"]
    colours = {target["target"]: place for place, target in enumerate(targets)}
    tiers = [target for target in targets if target["kind"] != "variant"]
    variants = [target for target in targets if target["kind"] == "variant"]
    environment = Environment(
        autoescape=select_autoescape(default=True, default_for_string=True),
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.globals |= {
        "show": show,
        "span": _span,
        "charts": charts,
        "colours": colours,
        "figures": FIGURES,
    }
    source = files("loadtests").joinpath(_TEMPLATE).read_text()
    changes = report["baseline"]["changes"] if report["baseline"] else []
    return environment.from_string(source).render(
        report=report,
        gate=_conditions(report),
        load=describe(report["settings"]),
        lead=targets[0] if targets else None,
        targets=targets,
        groups=[(name, group) for name, group in (("Tiers", tiers), ("Variants", variants)) if group],
        changed=[drawn for figure in _CHANGED if (drawn := charts.changes(changes, figure))],
        loadgen=[(entry, _said(entry["summary"])) for entry in report["loadgen"]],
    )


def _conditions(report: Report) -> list[dict[str, Any]]:
    """Each condition once: how many targets it is of, who breached it, and who came nearest."""
    found = []
    for term in dict.fromkeys(entry["term"] for entry in report["gate"]):
        entries = [entry for entry in report["gate"] if entry["term"] == term]
        known = sorted((e for e in entries if e["value"] is not None), key=lambda e: e["value"] or 0.0)
        nearest = (known[-1] if ">" in term else known[0])["text"] if known else "not known"
        found.append(
            {
                "term": term,
                "count": len(entries),
                "breached": [_without(entry["text"]) for entry in entries if entry["breached"]],
                "nearest": _without(nearest),
            }
        )
    return found


def _without(words: str) -> str:
    """A sentence of the gate without the condition that it repeats."""
    return words.partition(" (")[0]


def _span(target: TargetReport | Any, figure: str) -> str:
    """An interval as words; empty where there is none."""
    interval: Interval | None = target["intervals"].get(figure)
    return "" if interval is None else f"{show(figure, interval[0])} to {show(figure, interval[1])}"


def _said(summary: dict[str, str]) -> dict[str, str]:
    """What matters of LoadGen's summary, in milliseconds where it writes nanoseconds."""
    found = {}
    for name in _SUMMARY:
        if (value := summary.get(name)) is not None:
            if name.endswith(" (ns)"):
                name, value = name.removesuffix(" (ns)"), f"{int(value) / 1e6:.2f} ms"
            found[name] = value
    return found
