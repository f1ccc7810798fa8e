"""Names beside the dots of a picture, so that none covers another."""

from __future__ import annotations

from collections.abc import Sequence
from math import log10
from typing import Any, NamedTuple

# Pixels: about what the page gives the picture, and a character of its font.
_WIDTH, _HEIGHT = 1050.0, 370.0
_CHARACTER, _LINE, _BREATH, _DOT = 6.6, 14.0, 6.0, 7.0
_FARTHEST = 8  # lines from the dot
_MARGIN = 0.05  # of the range, which the axes leave at each side


class _Box(NamedTuple):
    """A rectangle in pixels, y growing downwards."""

    left: float
    top: float
    right: float
    bottom: float

    def touches(self, other: _Box) -> bool:
        return (
            self.left < other.right
            and other.left < self.right
            and self.top < other.bottom
            and other.top < self.bottom
        )


def named(
    names: Sequence[str],
    xs: Sequence[float],
    ys: Sequence[float],
    lows: Sequence[float],
    highs: Sequence[float],
) -> list[dict[str, Any]]:
    """Annotations that name each dot, with a leader where the name stands off; one without room has none.

    Args:
        names: One for each dot.
        xs: Positions on a logarithmic axis.
        ys: Positions on a linear one.
        lows: Lower ends of what is drawn at each dot, such as its interval.
        highs: Upper ends.
    """
    across = [log10(x) for x in xs]
    columns = _pixels(across, min(across), max(across), _WIDTH)
    rows = [_HEIGHT - row for row in _pixels(ys, min(lows), max(highs), _HEIGHT)]
    taken = [_Box(x - _DOT, y - _DOT, x + _DOT, y + _DOT) for x, y in zip(columns, rows, strict=True)]
    notes = []
    for dot in sorted(range(len(names)), key=lambda dot: columns[dot]):
        wide = len(names[dot]) * _CHARACTER + _BREATH
        for off in _offsets():
            x, y = columns[dot], rows[dot] + off
            box = _Box(x - wide / 2, y - _LINE / 2, x + wide / 2, y + _LINE / 2)
            if any(box.touches(other) for other in taken):
                continue
            taken.append(box)
            notes.append(_note(names[dot], across[dot], ys[dot], off))
            break
    return notes


def _pixels(values: Sequence[float], low: float, high: float, length: float) -> list[float]:
    span = (high - low) * (1 + 2 * _MARGIN) or 1.0
    return [((value - low) / span + _MARGIN) * length for value in values]


def _offsets() -> list[float]:
    """From a line above the dot to the farthest below."""
    return [side * (_DOT + _LINE * lines) for lines in range(1, _FARTHEST + 1) for side in (-1, 1)]


def _note(name: str, x: float, y: float, off: float) -> dict[str, Any]:
    return {
        "x": x,
        "y": y,
        "text": name,
        "font": {"size": 11},
        "ax": 0,
        "ay": off,
        "arrowhead": 0,
        "arrowwidth": 0.7,
        "arrowcolor": "rgba(120,130,150,.8)",
        "standoff": _DOT,
    }
