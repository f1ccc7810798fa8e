"""Scales, axes and labels of pictures, as SVG that takes its colours from the page. Pure."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

WIDTH = 460
# Of one character at the size of labels, about.
GLYPH = 6.1
COLOURS = 10
_NICE = (1.0, 2.0, 2.5, 5.0, 10.0)
_HALF_LINE = 6.0


@dataclass(frozen=True, slots=True)
class Scale:
    """Maps values to places.

    Attributes:
        low: The lowest value.
        high: The highest value.
        start: Where the lowest goes.
        end: Where the highest goes.
        log: Whether equal ratios are equally far apart.
    """

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: float) -> float:
        """The place of a value, within the ends."""
        low, high = self.low, self.high
        if self.log:
            low, high, value = math.log(low), math.log(high), math.log(max(value, 1e-12))
        share = (value - low) / (high - low) if high > low else 0.5
        return self.start + (self.end - self.start) * min(1.0, max(0.0, share))

    def ticks(self, count: int = 5) -> list[float]:
        """Round values between the ends."""
        if self.log:
            powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
            for steps in ((1,), (1, 3), (1, 2, 5), (1, 1.5, 2, 3, 4, 5, 6, 8)):
                found = [s * 10.0**p for p in powers for s in steps if self.low <= s * 10.0**p <= self.high]
                if len(found) >= 3:
                    break
            return found[:: max(1, math.ceil(len(found) / (count + 2)))]
        raw = (self.high - self.low) / count or 1.0
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(nice * power for nice in _NICE if nice * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        return [place * step for place in range(first, math.floor(self.high / step + 1e-9) + 1)]


def log_scale(values: Sequence[float], start: float, end: float) -> Scale:
    """A logarithmic scale with room around the values."""
    low, high = min(values), max(values)
    return Scale(low / 1.25, max(high, low * 1.5) * 1.25, start, end, log=True)


def linear_scale(values: Sequence[float], start: float, end: float, *, zero: bool = True) -> Scale:
    """A linear scale with room above the values, from zero or from a little below the lowest."""
    low, high = (0.0 if zero else min(values)), max(values)
    room = (high - low) * 0.1 or abs(high) * 0.01 or 1.0
    return Scale(low if zero else low - room, high + room, start, end)


def number(value: float) -> str:
    """A tick's text."""
    if value and abs(value) < 0.01:
        return f"{value:.1g}"
    return f"{value:,.0f}" if abs(value) >= 1000 else f"{value:g}"


def text(x: float, y: float, words: str, anchor: str = "start", kind: str = "label") -> Markup:
    """Words at a place."""
    return Markup('<text x="{:.1f}" y="{:.1f}" text-anchor="{}" class="{}">{}</text>').format(
        x, y, anchor, kind, words
    )


def line(x1: float, y1: float, x2: float, y2: float, kind: str) -> Markup:
    """A straight line."""
    return Markup('<line x1="{:.1f}" y1="{:.1f}" x2="{:.1f}" y2="{:.1f}" class="{}"/>').format(
        x1, y1, x2, y2, kind
    )


def path(
    points: Sequence[tuple[float, float]], kind: str, colour: int | None = None, title: str = ""
) -> Markup:
    """A line through points; of fewer than two there is none."""
    if len(points) < 2:
        return Markup("")
    drawn = "M" + "L".join(f"{x:.1f},{y:.1f}" for x, y in points)
    return Markup('<path d="{}" class="{}"{}>{}</path>').format(drawn, kind, style(colour), _title(title))


def bar(
    x: float, y: float, width: float, height: float, kind: str, title: str = "", colour: int | None = None
) -> Markup:
    """A filled rectangle."""
    return Markup(
        '<rect x="{:.1f}" y="{:.1f}" width="{:.1f}" height="{:.1f}" rx="2" class="{}"{}>{}</rect>'
    ).format(x, y, max(0.0, width), height, kind, style(colour), _title(title))


def dot(
    x: float, y: float, kind: str, colour: int | None, title: str = "", *, square: bool = False
) -> Markup:
    """A point: a circle, or a diamond."""
    if square:
        shape = Markup('<path d="M0,-7L7,0L0,7L-7,0Z" class="{}"{} transform="translate({:.1f} {:.1f})">')
        return shape.format(kind, style(colour), x, y) + _title(title) + Markup("</path>")
    shape = Markup('<circle cx="{:.1f}" cy="{:.1f}" r="5" class="{}"{}>')
    return shape.format(x, y, kind, style(colour)) + _title(title) + Markup("</circle>")


def style(colour: int | None) -> Markup:
    """The attribute that gives an element its colour."""
    return Markup("") if colour is None else Markup(' style="--c:var(--c{})"').format(colour % COLOURS)


def axis_below(scale: Scale, y: float, top: float, title: str) -> Markup:
    """Ticks, grid lines and the title of a horizontal axis."""
    parts = [line(scale(tick), top, scale(tick), y, "grid") for tick in scale.ticks()]
    parts += [text(scale(tick), y + 15, number(tick), "middle", "tick") for tick in scale.ticks()]
    parts.append(text((scale.start + scale.end) / 2, y + 33, title, "middle", "tick"))
    return Markup("").join(parts)


def axis_left(scale: Scale, x: float, right: float, title: str) -> Markup:
    """Ticks, grid lines and the title of a vertical axis; the title stands above it."""
    ticks = scale.ticks(4)
    parts = [line(x, scale(tick), right, scale(tick), "grid") for tick in ticks]
    parts += [text(x - 7, scale(tick) + 4, number(tick), "end", "tick") for tick in ticks]
    parts.append(text(2, min(scale.start, scale.end) - 14, title, "start", "tick"))
    return Markup("").join(parts)


def picture(height: float, alt: str, *parts: Markup) -> Markup:
    """The whole picture; it grows and shrinks with the page."""
    opening = Markup('<svg viewBox="0 0 {} {:.0f}" role="img" aria-label="{}">').format(WIDTH, height, alt)
    return opening + Markup("").join(parts) + Markup("</svg>")


class Labels:
    """Places labels beside points so that they cover neither points nor each other."""

    def __init__(self, points: Sequence[tuple[float, float]]) -> None:
        self._taken = [(x - 6, y - 6, x + 6, y + 6) for x, y in points]

    def place(self, x: float, y: float, words: str, top: float, bottom: float) -> Markup:
        """The label at the nearest free place of the picture, with a line to its point when it is far."""
        wide = len(words) * GLYPH
        for away in range(24):
            for side in (1, -1):
                for left in (x + 9, x - 9 - wide):
                    middle = y + side * away * _HALF_LINE
                    box = (left, middle - _HALF_LINE, left + wide, middle + _HALF_LINE)
                    inside = left >= 2 and left + wide <= WIDTH - 2 and top <= middle <= bottom
                    if inside and not any(_overlap(box, other) for other in self._taken):
                        self._taken.append(box)
                        near = left - 2 if left > x else left + wide + 2
                        thread = line(x, y, near, middle, "thread") if away > 1 else Markup("")
                        return thread + text(left, middle + 4, words)
        return text(x + 9, y + 4, words)


def _overlap(one: tuple[float, float, float, float], two: tuple[float, float, float, float]) -> bool:
    return one[0] < two[2] and two[0] < one[2] and one[1] < two[3] and two[1] < one[3]


def _title(words: str) -> Markup:
    return Markup("<title>{}</title>").format(escape(words)) if words else Markup("")
