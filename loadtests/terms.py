"""Conditions on figures, as `--fail-on` and `--slo` write them: `p99>20ms,fast:errors>0.1%`. Pure."""

from __future__ import annotations

import operator
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from loadtests.figures import FIGURES
from loadtests.schema import Figures, GateTerm, TargetReport

_TERM = re.compile(
    r"(?:(?P<scope>[^<>=,]+):)?(?P<figure>[a-z][a-z0-9.]*)\s*(?P<sign><=|>=|<|>)\s*"
    r"(?P<number>\d+(?:\.\d+)?(?:e-?\d+)?)\s*(?P<unit>[a-zA-Z%]*)"
)
_SIGNS: dict[str, Callable[[float, float], bool]] = {
    "<": operator.lt, "<=": operator.le, ">": operator.gt, ">=": operator.ge,
}  # fmt: skip
# Unit of a figure -> what one may write -> how much that is; an empty unit needs none.
_UNITS: dict[str, dict[str, float]] = {
    "ms": {"us": 0.001, "ms": 1.0, "s": 1000.0},
    "share": {"": 1.0, "%": 0.01},
    "per_s": {"": 1.0},
    "s": {"": 1.0, "s": 1.0, "ms": 0.001},
    "money": {"": 1.0},
    "bytes": {"B": 1.0, "KB": 1e3, "MB": 1e6, "GB": 1e9, "KiB": 2.0**10, "MiB": 2.0**20, "GiB": 2.0**30},
}


class TermError(ValueError):
    """A condition is not one; the message lists what there is."""


@dataclass(frozen=True, slots=True)
class Term:
    """One condition.

    Attributes:
        text: As it was written.
        scope: The tier, variant or target that it is of; empty for every target.
        figure: A name in `FIGURES`.
        sign: `<`, `<=`, `>` or `>=`.
        bound: In the figure's own unit.
    """

    text: str
    scope: str
    figure: str
    sign: str
    bound: float

    def holds(self, value: float) -> bool:
        """Whether the condition is true of a value."""
        return _SIGNS[self.sign](value, self.bound)


def read_terms(text: str) -> tuple[Term, ...]:
    """Reads conditions that commas separate.

    Raises:
        TermError: One is not understood, or its figure or unit is unknown.
    """
    return tuple(_read(part.strip()) for part in text.split(",") if part.strip())


def check_scopes(terms: Sequence[Term], known: Sequence[str]) -> None:
    """Refuses conditions of what is not loaded.

    Raises:
        TermError: Some scope is no tier, variant or target.
    """
    for term in terms:
        if term.scope and term.scope not in known:
            raise TermError(
                f'"{term.text}" is of {term.scope}, which is not loaded. Known: {", ".join(known)}.'
            )


def judge(terms: Sequence[Term], targets: Sequence[TargetReport]) -> list[GateTerm]:
    """Holds the targets against conditions that must not be true.

    A condition without a scope is of every target; one of a tier or variant also of its part of a mix. What
    is not known fails: a gate that cannot tell must not let pass.
    """
    found: list[GateTerm] = []
    for term in terms:
        for name, figures in _meant(term, targets):
            value = figures.get(term.figure)
            breached = value is None or term.holds(value)
            known = value is not None
            text = f"{name}: {term.figure} is {show(term.figure, value) if known else 'not known'}"
            found.append(
                {
                    "term": term.text,
                    "target": name,
                    "value": value,
                    "breached": breached,
                    "text": f"{text} ({term.text})" if breached else text,
                }
            )
        if not any(entry["term"] == term.text for entry in found):
            text = f"nothing answered for {term.scope} ({term.text})"
            found.append(
                {"term": term.text, "target": term.scope, "value": None, "breached": True, "text": text}
            )
    return found


def first_broken(terms: Sequence[Term], figures: Figures) -> str | None:
    """The first condition that must be true and is not, with its figure; None when all hold."""
    for term in terms:
        value = figures[term.figure]
        if value is None:
            return f"{term.figure} is not known"
        if not term.holds(value):
            return f"{term.figure} {show(term.figure, value)}"
    return None


def show(figure: str, value: float | None) -> str:
    """A figure for people, with its unit."""
    if value is None:
        return "-"
    unit = FIGURES[figure].unit
    if unit == "ms":
        return f"{value:.2f} ms" if value < 100 else f"{value:,.0f} ms"
    if unit == "share":
        return f"{value:.4f}" if FIGURES[figure].better == "more" else f"{value:.2%}"
    if unit == "bytes":
        return f"{value / 1e6:,.0f} MB"
    if unit == "money":
        return np.format_float_positional(value, precision=3, fractional=False, trim="-")
    if unit == "s":
        return f"{value:.3g} s"
    return f"{value:,.0f}/s" if unit == "per_s" and value >= 10 else f"{value:.3g}"


def _meant(term: Term, targets: Sequence[TargetReport]) -> list[tuple[str, Figures]]:
    if not term.scope:
        return [(target["target"], target["figures"]) for target in targets]
    found: list[tuple[str, Figures]] = []
    for target in targets:
        if term.scope in (target["target"], target["name"]):
            found.append((target["target"], target["figures"]))
        elif target["kind"] == "mix":
            groups: Mapping[str, Mapping[str, Figures]] = {
                "tier": {part["name"]: part["figures"] for part in target["tiers"]},
                "variant": {part["name"]: part["figures"] for part in target["variants"]},
            }
            found += [
                (f"{target['target']}, {kind}:{name}", figures)
                for kind, named in groups.items()
                for name, figures in named.items()
                if term.scope in (name, f"{kind}:{name}")
            ]
    return found


def _read(text: str) -> Term:
    match = _TERM.fullmatch(text)
    if match is None:
        raise TermError(
            f'"{text}" is no condition. Write FIGURE>VALUE or SCOPE:FIGURE>VALUE, such as "p99>20ms" or '
            f'"fast:errors>0.1%". Figures: {", ".join(FIGURES)}.'
        )
    figure, unit = match["figure"], match["unit"]
    if figure not in FIGURES:
        raise TermError(f'"{figure}" in "{text}" is no figure. Known: {", ".join(FIGURES)}.')
    units = _UNITS[FIGURES[figure].unit]
    if unit not in units:
        wanted = " or ".join(name or "no unit" for name in units)
        raise TermError(f'"{text}" has the unit "{unit}"; {figure} takes {wanted}.')
    return Term(text, match["scope"] or "", figure, match["sign"], float(match["number"]) * units[unit])
