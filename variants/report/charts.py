"""The pictures of the report, as figures for Plotly: plain data, drawn by the page itself."""

from __future__ import annotations

from collections.abc import Sequence
from math import isfinite
from operator import itemgetter
from typing import Any

from variants.assessment import Standing
from variants.confusion import Cells
from variants.frontier import undominated
from variants.labels import class_name
from variants.profile import Profile
from variants.report.labels import named
from variants.scorecard import Scorecard
from variants.variant import Life, Status

Figure = dict[str, Any]

_BLUE, _LIGHT_BLUE, _GREEN = "#3b6fd4", "#8fb0ee", "#2a9d6f"
_AMBER, _GREY, _RED = "#d98c1f", "#9aa3b2", "#c8423b"
_FRONTIER_BATCHES = (1, 8)
_MOST_LAYERS = 40


def measured(standings: Sequence[Standing]) -> list[tuple[Standing, Profile, Scorecard]]:
    """The variants that have a profile here, with it and their scorecard."""
    return [(s, s.profile, s.stored.scorecard) for s in standings if s.profile and s.stored]


def frontier(standings: Sequence[Standing], metric: str) -> Figure:
    """Quality with its interval against latency, or against size: buttons choose."""
    known = measured(standings)
    quality = [profile.quality.validation for _, profile, _ in known]
    axes = {
        f"batch {batch}": [profile.predict_ms(batch) / batch for _, profile, _ in known]
        for batch in _FRONTIER_BATCHES
    } | {"size": [card.bytes / 1e6 for _, _, card in known]}
    names = [standing.entry.id.recipe for standing, _, _ in known]
    values, lows, highs = ([getattr(each, end) for each in quality] for end in ("value", "low", "high"))
    notes = {name: named(names, xs, values, lows, highs) for name, xs in axes.items()}
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": axes["batch 1"],
        "y": values,
        "error_y": {
            "type": "data",
            "symmetric": False,
            "array": [each.high - each.value for each in quality],
            "arrayminus": [each.value - each.low for each in quality],
            "color": "rgba(120,130,150,.45)",
            "thickness": 1,
        },
        "text": names,
        "marker": {"size": 12, "color": [_colour(standing) for standing, _, _ in known]},
        "hovertemplate": "%{text}<br>%{x:.4g}, %{y:.4f}<extra></extra>",
    }
    best = {
        name: undominated(zip(xs, values, strict=True), itemgetter(0), itemgetter(1))
        for name, xs in axes.items()
    }
    lines = {name: ([x for x, _ in points], [y for _, y in points]) for name, points in best.items()}
    line = {
        "type": "scatter",
        "mode": "lines",
        "x": lines["batch 1"][0],
        "y": lines["batch 1"][1],
        "line": {"shape": "hv", "color": _BLUE, "dash": "dot", "width": 1.5},
        "hoverinfo": "skip",
    }
    buttons = [
        {
            "label": name,
            "method": "update",
            "args": [
                {"x": [lines[name][0], xs], "y": [lines[name][1], points["y"]]},
                {"xaxis.title.text": _axis_title(name), "annotations": notes[name]},
            ],
        }
        for name, xs in axes.items()
    ]
    layout = {
        "xaxis": {"title": {"text": _axis_title("batch 1")}, "type": "log"},
        "yaxis": {"title": {"text": f"{metric} on validation"}},
        "annotations": notes["batch 1"],
        "showlegend": False,
        "height": 520,
        "updatemenus": [
            {
                "type": "buttons",
                "direction": "right",
                "x": 0,
                "y": 1.12,
                "yanchor": "bottom",
                "buttons": buttons,
            }
        ],
    }
    return {"data": [line, points], "layout": layout}


def gains(standings: Sequence[Standing], reference: Standing) -> Figure:
    """How many times faster and smaller than the reference each variant is on this host."""
    known = [item for item in measured(standings) if item[0] is not reference]
    base, card = reference.profile, reference.stored
    if base is None or card is None:
        return {"data": [], "layout": {}}
    names = [standing.entry.id.recipe for standing, _, _ in known]
    profiles = [profile for _, profile, _ in known]
    series = {
        "faster, batch 1": (_BLUE, [base.predict_ms(1) / each.predict_ms(1) for each in profiles]),
        "faster, batch 8": (_LIGHT_BLUE, [base.predict_ms(8) / each.predict_ms(8) for each in profiles]),
        "smaller": (_GREEN, [card.scorecard.bytes / own.bytes for _, _, own in known]),
    }
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": name,
            "y": names,
            "x": values,
            "marker": {"color": colour},
            "text": [f"{value:.2f}x" for value in values],
            "textposition": "outside",
            "cliponaxis": False,
        }
        for name, (colour, values) in series.items()
    ]
    layout = {
        "barmode": "group",
        "height": 140 + 62 * len(names),
        "xaxis": {"title": {"text": "times better than the reference"}, "type": "log"},
        "yaxis": {"autorange": "reversed"},
        "shapes": [_upright(1, color=_RED)],
        "legend": {"orientation": "h", "y": 1.08},
    }
    return {"data": bars, "layout": layout}


def kept(standings: Sequence[Standing], reference: Standing, floors: dict[str, float]) -> Figure:
    """The share of the reference's quality that each variant keeps, down to its paired lower bound."""
    known = [item for item in measured(standings) if item[0] is not reference]
    quality = [profile.quality.validation for _, profile, _ in known]
    points = {
        "type": "scatter",
        "mode": "markers",
        "x": [each.ratio for each in quality],
        "y": [standing.entry.id.recipe for standing, _, _ in known],
        "error_x": {
            "type": "data",
            "symmetric": False,
            "array": [0.0 for _ in quality],
            "arrayminus": [max(0.0, each.ratio - each.ratio_low) for each in quality],
        },
        "marker": {
            "size": 11,
            "color": [_AMBER if each.significant and each.ratio < 1 else _GREEN for each in quality],
        },
        "hovertemplate": "%{y}: %{x:.4f}<extra></extra>",
    }
    shapes = [_upright(floor, dash="dot") for floor in floors.values()]
    notes = [
        {"x": floor, "y": 1.02, "yref": "paper", "yanchor": "bottom", "text": name, "showarrow": False}
        for name, floor in floors.items()
    ]
    layout = {
        "height": 160 + 34 * len(known),
        "xaxis": {"title": {"text": "quality over the reference's, on validation"}},
        "yaxis": {"autorange": "reversed"},
        "shapes": shapes,
        "annotations": notes,
        "margin": {"t": 70},
    }
    return {"data": [points], "layout": layout}


def confusions(standings: Sequence[Standing], names: Sequence[str], split: str = "test") -> Figure | None:
    """What each variant answers for which label, as shares of the label's rows; a menu chooses it."""
    known = [
        (standing.entry.id.recipe, profile.quality.confusion[split])
        for standing, profile, _ in measured(standings)
        if profile.quality.confusion.get(split)
    ]
    if not known:
        return None
    classes = sorted({label for _, cells in known for label in cells} | _answers(known))
    if len(classes) > 100:  # a picture of a thousand classes shows nothing
        return None
    titles = [class_name(label, names) for label in classes]
    grids = [_shares(cells, classes) for _, cells in known]
    heat = {
        "type": "heatmap",
        "x": titles,
        "y": titles,
        "z": grids[0],
        "colorscale": [[0, "#ffffff"], [0.5, _LIGHT_BLUE], [1, _BLUE]],
        "zmin": 0,
        "zmax": 0.2,
        "hovertemplate": "%{y} called %{x}: %{z:.1%}<extra></extra>",
    }
    buttons = [
        {"label": recipe, "method": "restyle", "args": [{"z": [grid]}]}
        for (recipe, _), grid in zip(known, grids, strict=True)
    ]
    layout = {
        "height": 560,
        "xaxis": {"title": {"text": "answer"}, "type": "category"},
        "yaxis": {"title": {"text": "label"}, "autorange": "reversed", "type": "category"},
        "updatemenus": [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.12, "yanchor": "bottom"}],
    }
    return {"data": [heat], "layout": layout}


def robustness(standings: Sequence[Standing], metric: str) -> Figure | None:
    """Quality on clean and on disturbed rows."""
    known = [item for item in measured(standings) if item[1].quality.robustness]
    if not known:
        return None
    lines = []
    for standing, profile, _ in known:
        tried = profile.quality.robustness
        lines.append(
            {
                "type": "scatter",
                "mode": "lines+markers",
                "name": standing.entry.id.recipe,
                "x": ["clean", *(f"{each.perturbation} {each.severity:g}" for each in tried)],
                "y": [tried[0].clean, *(each.value for each in tried)],
            }
        )
    return {"data": lines, "layout": {"height": 460, "yaxis": {"title": {"text": metric}}}}


def curves(standings: Sequence[Standing]) -> Figure | None:
    """Validation loss by epoch of every training that a recipe went through."""
    lines = []
    for standing, _, card in measured(standings):
        for fact in card.invariants:
            for number, curve in enumerate(fact.get("curves", [])):
                stage = f" {number + 1}" if number else ""
                lines.append(
                    {
                        "type": "scatter",
                        "mode": "lines",
                        "name": f"{standing.entry.id.recipe}: {fact.get('pass', 'training')}{stage}",
                        "x": list(range(1, len(curve) + 1)),
                        "y": [epoch["validation_loss"] for epoch in curve],
                        "hovertemplate": "epoch %{x}: %{y:.4f}<extra>%{fullData.name}</extra>",
                    }
                )
    if not lines:
        return None
    across, up = {"title": {"text": "epoch"}}, {"title": {"text": "validation loss"}, "type": "log"}
    return {"data": lines, "layout": {"height": 460, "xaxis": across, "yaxis": up}}


def _upright(at: float, **line: str) -> Figure:
    return {"type": "line", "x0": at, "x1": at, "yref": "paper", "y0": 0, "y1": 1, "line": line}


def sensitivity(standings: Sequence[Standing]) -> Figure | None:
    """Signal to noise of each layer's weights or results, whichever is worse; a menu chooses the variant."""
    series = []
    for standing, _, card in measured(standings):
        layers = [layer for layer in (card.sqnr.layers if card.sqnr else []) if isfinite(layer.worst_db)]
        if layers:
            worst = sorted(layers, key=lambda layer: layer.worst_db)[:_MOST_LAYERS]
            series.append((standing.entry.id.recipe, worst))
    if not series:
        return None
    bars = [
        {
            "type": "bar",
            "orientation": "h",
            "name": recipe,
            "y": [layer.label for layer in layers],
            "x": [layer.worst_db for layer in layers],
            "marker": {"color": _BLUE},
            "visible": index == 0,
            "hovertemplate": "%{y}: %{x:.1f} dB<extra></extra>",
        }
        for index, (recipe, layers) in enumerate(series)
    ]
    buttons = [
        {
            "label": recipe,
            "method": "restyle",
            "args": [{"visible": [i == index for i in range(len(series))]}],
        }
        for index, (recipe, _) in enumerate(series)
    ]
    layout = {
        "height": 180 + 26 * max(len(layers) for _, layers in series),
        "showlegend": False,
        "xaxis": {"title": {"text": "decibels: more is closer to the reference"}},
        "yaxis": {"autorange": "reversed"},
        "updatemenus": [{"buttons": buttons, "x": 0, "xanchor": "left", "y": 1.05, "yanchor": "bottom"}],
    }
    return {"data": bars, "layout": layout}


def _colour(standing: Standing) -> str:
    if standing.entry.life is Life.CANDIDATE:
        return _AMBER
    return _BLUE if standing.status is Status.SERVING else _GREY


def _axis_title(name: str) -> str:
    return "megabytes on disk" if name == "size" else f"milliseconds per row at {name}"


def _answers(known: Sequence[tuple[str, Cells]]) -> set[int]:
    return {answer for _, cells in known for row in cells.values() for answer in row}


def _shares(cells: Cells, classes: Sequence[int]) -> list[list[float]]:
    grid = []
    for label in classes:
        row = cells.get(label, {})
        total = max(sum(row.values()), 1)
        grid.append([round(row.get(answer, 0) / total, 4) for answer in classes])
    return grid
