"""The report as a picture: latency and throughput per target, and accuracy against throughput."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from loadtests.schema import Report, TargetReport
from loadtests.shapes import describe

_COLOURS = {"mix": "#55a868", "tier": "#c44e52", "variant": "#4c72b0"}
_P99 = "#b9c7dd"
_DPI = 120


def draw(report: Report, path: Path) -> None:
    """Writes the picture as PNG."""
    targets = [target for target in report["targets"] if target["latency_ms"] is not None]
    figure = Figure(figsize=(15, 2.6 + 0.42 * max(6, len(targets))), layout="constrained")
    FigureCanvasAgg(figure)
    latency, throughput, trade = figure.subplots(1, 3, width_ratios=(1.25, 1, 1.35))
    settings = report["settings"]
    loop = "open loop" if settings.get("shape") else "closed loop"
    figure.suptitle(f"{report['model']} on {report['host']['cpu']}: {describe(settings)}, {loop}")
    _draw_latency(latency, targets)
    _draw_throughput(throughput, targets)
    _draw_trade(trade, targets, by_latency=bool(settings.get("shape")))
    figure.savefig(path, dpi=_DPI)


def _draw_latency(axes: Axes, targets: Sequence[TargetReport]) -> None:
    for place, target in enumerate(targets):
        latency = target["latency_ms"]
        if latency is None:
            continue
        axes.barh(place, latency["p99"], color=_P99, height=0.7)
        axes.barh(place, latency["p50"], color=_COLOURS[target["kind"]], height=0.7)
        label = f" {latency['p50']:.3g} / {latency['p99']:.3g}"
        axes.text(latency["p99"], place, label, va="center", fontsize=8)
    _name_rows(axes, targets)
    axes.set_title("Latency at the client: p50 (dark) and p99 (light)", fontsize=10)
    axes.set_xlabel("milliseconds (less is better)")
    axes.margins(x=0.25)


def _draw_throughput(axes: Axes, targets: Sequence[TargetReport]) -> None:
    for place, target in enumerate(targets):
        rate = target["requests_per_s"]
        axes.barh(place, rate, color=_COLOURS[target["kind"]], height=0.7)
        axes.text(rate, place, f" {rate:.0f}", va="center", fontsize=8)
    _name_rows(axes, targets)
    axes.set_yticklabels([])
    axes.set_title("Throughput", fontsize=10)
    axes.set_xlabel("good answers per second (more is better)")
    axes.margins(x=0.18)


def _draw_trade(axes: Axes, targets: Sequence[TargetReport], *, by_latency: bool) -> None:
    """Against p99 in an open loop: there the throughput is what was sent."""
    judged = [target for target in targets if target["accuracy"] is not None]
    labels: dict[float, int] = {}

    def place_of(target: TargetReport) -> float:
        latency = target["latency_ms"]
        return latency["p99"] if by_latency and latency is not None else target["requests_per_s"]

    for target in sorted(judged, key=place_of):
        across, accuracy = place_of(target), 100 * (target["accuracy"] or 0.0)
        marker = "D" if target["kind"] == "tier" else "o"
        axes.plot(across, accuracy, marker, color=_COLOURS[target["kind"]], markersize=7)
        # Equal accuracies are common on small splits: labels of one line go above and below it in turn.
        place = labels[accuracy] = labels.get(accuracy, -1) + 1
        height = (8, -14, 20, -26, 32, -38, 44, -50)[place % 8]
        axes.annotate(
            target["target"],
            (across, accuracy),
            (0, height),
            textcoords="offset points",
            ha="center",
            fontsize=8,
        )
    if not judged:
        axes.text(0.5, 0.5, "no labelled rows", ha="center", transform=axes.transAxes)
    against = "p99" if by_latency else "throughput"
    axes.set_title(f"Accuracy against {against} (diamonds: tiers)", fontsize=10)
    axes.set_xlabel("p99, milliseconds" if by_latency else "good answers per second")
    axes.set_ylabel("accuracy on the test split, %")
    axes.margins(x=0.3, y=0.35)
    axes.grid(alpha=0.3)


def _name_rows(axes: Axes, targets: Sequence[TargetReport]) -> None:
    axes.set_yticks(range(len(targets)), [target["target"] for target in targets])
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
