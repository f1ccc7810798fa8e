"""The pictures of the report. Pure: from `loadtests.schema.Report` to SVG."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace

from markupsafe import Markup

from loadtests.drawing import (
    GLYPH,
    WIDTH,
    Labels,
    Scale,
    axis_below,
    axis_left,
    bar,
    dot,
    line,
    linear_scale,
    log_scale,
    path,
    picture,
    text,
)
from loadtests.schema import Change, Moment, TargetReport
from loadtests.terms import show

_LEFT, _RIGHT, _TOP = 46.0, 14.0, 28.0
_HEIGHT = 250.0
_ROW = 27.0
_BELOW = 44.0
_TICKS = (0.0, 0.5, 0.9, 0.99, 0.999, 0.9999)
_OUTCOMES = (
    ("rejected", "rejected"),
    ("late", "late"),
    ("failed", "other failures"),
    ("degraded", "degraded"),
)
Colours = Mapping[str, int]


def requests_over_time(moments: Sequence[Moment]) -> Markup:
    """What was sent, and what was answered well."""
    across = Scale(0, moments[-1]["at_s"] + moments[0]["at_s"], _LEFT, WIDTH - _RIGHT)
    up = linear_scale([m["offered"] for m in moments], _HEIGHT - _BELOW, _TOP)
    sent = [(across(m["at_s"]), up(m["offered"])) for m in moments]
    good = [(across(m["at_s"]), up(m["good"])) for m in moments]
    area = [(sent[0][0], up(0)), *sent, (sent[-1][0], up(0))]
    return picture(
        _HEIGHT,
        "Requests per second over the run: sent, and answered well",
        axis_left(up, _LEFT, WIDTH - _RIGHT, "requests/s"),
        axis_below(across, _HEIGHT - _BELOW, _TOP, "seconds from the start"),
        path(area, "area", 0, "sent"),
        path(good, "curve", 2, "answered well"),
    )


def latency_over_time(moments: Sequence[Moment]) -> Markup:
    """p50 and p99 of each moment."""
    known = [
        (m["at_s"], m["p50"], m["p99"]) for m in moments if m["p50"] is not None and m["p99"] is not None
    ]
    if not known:
        return Markup("")
    across = Scale(0, moments[-1]["at_s"] + moments[0]["at_s"], _LEFT, WIDTH - _RIGHT)
    up = log_scale([value for _, *both in known for value in both], _HEIGHT - _BELOW, _TOP)
    return picture(
        _HEIGHT,
        "Latency over the run: the median and the 99th percentile",
        axis_left(up, _LEFT, WIDTH - _RIGHT, "milliseconds"),
        axis_below(across, _HEIGHT - _BELOW, _TOP, "seconds from the start"),
        path([(across(at), up(p99)) for at, _, p99 in known], "curve", 1, "p99"),
        path([(across(at), up(p50)) for at, p50, _ in known], "curve", 0, "p50"),
    )


def percentiles(targets: Sequence[TargetReport], colours: Colours) -> Markup:
    """Latency by percentile, the tail stretched: one line per target."""
    curves = {t["target"]: t["curve"] for t in targets if len(t["curve"]) > 1}
    if not curves:
        return Markup("")
    furthest = max(-math.log10(1 - curve[-1][0]) for curve in curves.values())
    across = Scale(0, max(furthest, 1.0), _LEFT, WIDTH - _RIGHT)
    up = log_scale([ms for curve in curves.values() for _, ms in curve], _HEIGHT - _BELOW, _TOP)
    ticks = [share for share in _TICKS if -math.log10(1 - share) <= across.high + 1e-9]
    places = [
        (across(-math.log10(1 - share)), f"{share:.4%}".rstrip("0%").rstrip(".") or "0") for share in ticks
    ]
    below = [line(x, _TOP, x, _HEIGHT - _BELOW, "grid") for x, _ in places]
    below += [text(x, _HEIGHT - _BELOW + 15, f"{words}%", "middle", "tick") for x, words in places]
    below.append(text(WIDTH / 2, _HEIGHT - 11, "of the requests took at most", "middle", "tick"))
    drawn = [
        path([(across(-math.log10(1 - share)), up(ms)) for share, ms in curve], "curve", colours[name], name)
        for name, curve in curves.items()
    ]
    return picture(
        _HEIGHT,
        "Latency by percentile, one line per target",
        axis_left(up, _LEFT, WIDTH - _RIGHT, "milliseconds"),
        *below,
        *drawn,
    )


def latencies(targets: Sequence[TargetReport], colours: Colours) -> Markup:
    """p50 and p99 of each target with their intervals."""
    known = [t for t in targets if t["figures"]["p50"] is not None and t["figures"]["p99"] is not None]
    if not known:
        return Markup("")
    left, bottom = _names_width(known), _TOP + _ROW * len(known)
    ends = [value for t in known for name in ("p50", "p99") for value in _bounds(t, name)]
    across = log_scale(ends, left, WIDTH - _RIGHT)
    parts = [axis_below(across, bottom, _TOP - 8, "milliseconds: p50 (filled) and p99, 95% intervals")]
    for place, target in enumerate(known):
        y = _TOP + _ROW * (place + 0.5)
        colour = colours[target["target"]]
        parts.append(text(left - 10, y + 4, target["target"], "end"))
        p50, p99 = _bounds(target, "p50")[1], _bounds(target, "p99")[1]
        parts.append(line(across(p50), y, across(p99), y, "thread"))
        for name, kind in (("p99", "hollow"), ("p50", "point")):
            low, value, high = _bounds(target, name)
            title = f"{target['target']} {name}: {value:.2f} ms ({low:.2f} to {high:.2f})"
            parts.append(path([(across(low), y), (across(high) + 0.1, y)], "whisker", colour, title))
            parts.append(dot(across(value), y, kind, colour, title))
    return picture(bottom + _BELOW, "p50 and p99 of each target with 95% intervals", *parts)


def trade(targets: Sequence[TargetReport], colours: Colours) -> Markup:
    """Live accuracy against p99: up and to the left is better."""
    known = [t for t in targets if t["figures"]["accuracy"] is not None and t["figures"]["p99"] is not None]
    if not known:
        return Markup("")
    height = 330.0
    spans = {t["target"]: t["intervals"].get("accuracy") for t in known}
    values = [100 * (t["figures"]["accuracy"] or 0.0) for t in known]
    across = log_scale([t["figures"]["p99"] or 0.0 for t in known], _LEFT + 10, WIDTH - 70)
    reached = [100 * end for span in spans.values() if span is not None for end in span]
    up = linear_scale([*values, *reached], height - _BELOW, _TOP, zero=False)
    up = replace(up, high=min(up.high, 100.0))
    places = [(across(t["figures"]["p99"] or 0.0), up(value)) for t, value in zip(known, values, strict=True)]
    labels = Labels(places)
    parts = [
        axis_left(up, _LEFT, WIDTH - _RIGHT, "% right, of labelled rows under load"),
        axis_below(across, height - _BELOW, _TOP, "p99, milliseconds"),
    ]
    for target, (x, y) in zip(known, places, strict=True):
        colour, title = colours[target["target"]], _trade_title(target)
        if (span := spans[target["target"]]) is not None:
            parts.append(path([(x, up(100 * span[0])), (x, up(100 * span[1]))], "reach", colour))
        parts.append(dot(x, y, "point", colour, title, square=target["kind"] != "variant"))
    for target, (x, y) in sorted(zip(known, places, strict=True), key=lambda pair: pair[1][1]):
        parts.append(
            labels.place(x, y, target["target"].partition(":")[2] or target["target"], _TOP, height - _BELOW)
        )
    return picture(height, "Accuracy under load against p99", *parts)


def bars(targets: Sequence[TargetReport], figure: str, title: str, colours: Colours) -> Markup:
    """One figure of each target as a bar."""
    known = [(t, value) for t in targets if (value := t["figures"][figure]) is not None]
    if not known:
        return Markup("")
    left, bottom = _names_width([t for t, _ in known]), _TOP + _ROW * len(known)
    across = linear_scale([value for _, value in known], left, WIDTH - 64)
    parts = [axis_below(across, bottom, _TOP - 8, title)]
    for place, (target, value) in enumerate(known):
        y = _TOP + _ROW * place
        words = show(figure, value)
        parts += [
            text(left - 10, y + _ROW / 2 + 4, target["target"], "end"),
            bar(
                left,
                y + 5,
                across(value) - left,
                _ROW - 10,
                "fill",
                f"{target['target']}: {words}",
                colours[target["target"]],
            ),
            text(across(value) + 6, y + _ROW / 2 + 4, words),
        ]
    return picture(bottom + _BELOW, title, *parts)


def misses(targets: Sequence[TargetReport]) -> Markup:
    """Requests that were rejected, late, failed or degraded, as shares."""
    shares = {t["target"]: _shares(t) for t in targets}
    shown = {name: parts for name, parts in shares.items() if sum(parts.values())}
    if not shown:
        return Markup("")
    left = max(len(name) for name in shown) * GLYPH + 16
    bottom = _TOP + _ROW * len(shown)
    across = linear_scale([100 * sum(parts.values()) for parts in shown.values()], left, WIDTH - 50)
    drawn = [axis_below(across, bottom, _TOP - 8, "% of the requests")]
    for place, (name, parts) in enumerate(shown.items()):
        y, x = _TOP + _ROW * place, left
        drawn.append(text(left - 10, y + _ROW / 2 + 4, name, "end"))
        for kind, words in _OUTCOMES:
            wide = across(100 * parts[kind]) - left
            drawn.append(bar(x, y + 5, wide, _ROW - 10, f"fill {kind}", f"{name}: {parts[kind]:.2%} {words}"))
            x += wide
        drawn.append(text(x + 6, y + _ROW / 2 + 4, f"{sum(parts.values()):.2%}"))
    return picture(bottom + _BELOW, "Requests that were rejected, late, failed or degraded", *drawn)


def changes(compared: Sequence[Change], figure: str) -> Markup:
    """The change of one percentile since the earlier run, with its interval."""
    known = [c for c in compared if c["figure"] == figure and c["low"] is not None and c["high"] is not None]
    if not known:
        return Markup("")
    left = max(len(c["target"]) for c in known) * GLYPH + 16
    bottom = _TOP + _ROW * len(known)
    ends = [100 * value for c in known for value in (c["low"] or 0.0, c["high"] or 0.0, c["change"])]
    reach = max(5.0, max(abs(end) for end in ends)) * 1.1
    across = Scale(max(-100.0, -reach), reach, left, WIDTH - _RIGHT)
    parts = [
        axis_below(across, bottom, _TOP - 8, f"change of {figure} since the earlier run, %"),
        line(across(0), _TOP - 8, across(0), bottom, "zero"),
    ]
    for place, change in enumerate(known):
        y = _TOP + _ROW * (place + 0.5)
        low, high = across(100 * (change["low"] or 0.0)), across(100 * (change["high"] or 0.0))
        kind = change["verdict"].replace(" ", "-")
        parts += [
            text(left - 10, y + 4, change["target"], "end"),
            path([(low, y), (high + 0.1, y)], f"whisker {kind}"),
            dot(across(100 * change["change"]), y, f"point {kind}", None, change["text"]),
        ]
    return picture(bottom + _BELOW, f"Change of {figure} since the earlier run", *parts)


def _bounds(target: TargetReport, name: str) -> tuple[float, float, float]:
    value = target["figures"][name] or 0.0
    low, high = target["intervals"].get(name) or (value, value)
    return low, value, high


def _shares(target: TargetReport) -> dict[str, float]:
    known = {name: target["figures"][name] or 0.0 for name in ("errors", "rejected", "late", "degraded")}
    known["failed"] = max(0.0, known["errors"] - known["rejected"] - known["late"])
    known["degraded"] *= 1 - known["errors"]
    return {kind: known[kind] for kind, _ in _OUTCOMES}


def _names_width(targets: Sequence[TargetReport]) -> float:
    return max(len(target["target"]) for target in targets) * GLYPH + 16


def _trade_title(target: TargetReport) -> str:
    accuracy, p99 = (show(name, target["figures"][name]) for name in ("accuracy", "p99"))
    return f"{target['target']}: accuracy {accuracy}, p99 {p99}"
