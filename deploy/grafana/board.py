"""What a dashboard is made of: boards, panels, queries, and PromQL that many of them share."""

from __future__ import annotations

from dataclasses import dataclass

M = 'model=~"$model"'
_SPAN = "[$__rate_interval]"


@dataclass(frozen=True)
class Query:
    """One query of a panel, how its series are called, and their unit where it is not the panel's."""

    expression: str
    legend: str
    unit: str | None = None


@dataclass(frozen=True)
class Limits:
    """From where a value is a warning, and from where it is bad; below, when less is worse."""

    warning: float | None = None
    bad: float | None = None
    less_is_worse: bool = False


@dataclass(frozen=True)
class Panel:
    """One panel.

    Attributes:
        kind: `lines`, `stack`, `number`, `names` (of the series), `bars`, `table` or `points` (of the second
            query over the first).
        title: A few words.
        about: What the figure is, and what to make of it.
        unit: Grafana's name of it.
        queries: What it shows.
        limits: Where colours change.
        width: Of 24 columns.
        scripted: Whether its series come from rollouts, feedback, builds or drift alone.
    """

    kind: str
    title: str
    about: str
    unit: str
    queries: tuple[Query, ...]
    limits: Limits = Limits()
    width: int = 8
    scripted: bool = False

    def unit_of(self, query: Query) -> str:
        """The unit of one of its queries."""
        return query.unit or self.unit


@dataclass(frozen=True)
class Board:
    """One dashboard."""

    uid: str
    title: str
    about: str
    panels: tuple[Panel, ...]


def rate(series: str, by: str = "") -> str:
    """Per second, summed over all labels but some."""
    return f"sum{f' by ({by}) ' if by else ' '}(rate({series}{_SPAN}))"


def share(part: str, whole: str, by: str = "") -> str:
    """One rate over another; 0 where nothing of the part was ever counted."""
    return f"({rate(part, by)} or 0 * {rate(whole, by)}) / ({rate(whole, by)} > 0)"


def quantile(q: float, histogram: str, by: str, labels: str = M) -> str:
    """A quantile of a histogram over the last minutes, by some labels."""
    return f"histogram_quantile({q}, {rate(f'{histogram}_bucket{{{labels}}}', f'{by}, le')})"


def per_variant(series: str) -> str:
    """One row per variant, whose name tells the model too: tables are joined by it."""
    return f'label_join(max by (model, variant) ({series}), "name", "/", "model", "variant")'
