"""The report as CSV: one line per target, and per tier and variant within it."""

from __future__ import annotations

import csv
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from loadtests.figures import FIGURES
from loadtests.schema import Figures, Interval, Report

_BOUNDED = ("p50", "p99", "accuracy", "errors")
COLUMNS = (
    "target", "part", "share", *FIGURES, *(f"{name}_{end}" for name in _BOUNDED for end in ("low", "high")),
    "test_accuracy", "answered_by",
)  # fmt: skip


def write_csv(report: Report, path: Path) -> None:
    """Writes the table; empty cells are unknown, units are those of `loadtests.figures.FIGURES`."""
    with path.open("w", newline="") as stream:
        writer = csv.DictWriter(stream, COLUMNS)
        writer.writeheader()
        writer.writerows(_lines(report))


def _lines(report: Report) -> Iterator[dict[str, Any]]:
    for target in report["targets"]:
        shares = " ".join(f"{name}={share:.4f}" for name, share in target["answered_by"].items())
        yield {
            "target": target["target"],
            "part": "all",
            "share": 1.0,
            "test_accuracy": target["accuracy"],
            "answered_by": shares,
            **_figures(target["figures"], target["intervals"]),
        }
        for kind, parts in (("tier", target["tiers"]), ("variant", target["variants"])):
            for part in parts:
                yield {
                    "target": target["target"],
                    "part": f"{kind}:{part['name']}",
                    "share": part["share"],
                    **_figures(part["figures"], part["intervals"]),
                }


def _figures(figures: Figures, intervals: Mapping[str, Interval]) -> dict[str, float | None]:
    bounds: dict[str, float | None] = {}
    for name in _BOUNDED:
        low, high = intervals.get(name) or (None, None)
        bounds |= {f"{name}_low": low, f"{name}_high": high}
    return {name: figures[name] for name in FIGURES} | bounds
