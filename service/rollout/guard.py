"""Guards: what must hold of a candidate, written as `agreement>=0.99@95%,n=500`."""

from __future__ import annotations

import re
from dataclasses import dataclass
from enum import StrEnum

from service.errors import BadRequestError
from service.rollout.evidence import BUCKETS_PER_OCTAVE

DEFAULT_CONFIDENCE = 0.95
DEFAULT_SAMPLES = 100
# Two buckets: a ratio of latencies closer to 1 than this can never be decided.
FINEST_RATIO = 2.0 ** (2 / BUCKETS_PER_OCTAVE)


class Source(StrEnum):
    """Where a statistic comes from."""

    REQUESTS = "requests"
    COMPARISONS = "comparisons"
    FEEDBACK = "feedback"


class Relation(StrEnum):
    """What a threshold is measured against: itself, or the primary's figure times or plus it."""

    VALUE = "value"
    RATIO = "ratio"
    DIFFERENCE = "difference"


class Scale(StrEnum):
    """What kind of number a statistic is."""

    SHARE = "share"
    TIME = "time"
    NUMBER = "number"


@dataclass(frozen=True, slots=True)
class Statistic:
    """Something that is measured of an arm.

    Attributes:
        name: As guards write it.
        source: Where it comes from.
        scale: What kind of number it is.
        higher_is_better: Direction.
        usual: About where it lies, where it is a share; intervals are tightest there.
        relations: What its threshold may be measured against.
        meaning: One phrase for people.
    """

    name: str
    source: Source
    scale: Scale
    higher_is_better: bool
    usual: float
    relations: frozenset[Relation]
    meaning: str


_OWN = frozenset({Relation.VALUE})
_ANY = frozenset(Relation)
_OWN_OR_RATIO = frozenset({Relation.VALUE, Relation.RATIO})

STATISTICS: dict[str, Statistic] = {
    statistic.name: statistic
    for statistic in (
        Statistic("errors", Source.REQUESTS, Scale.SHARE, False, 0.01, _ANY,
                  "share of requests that failed, timed out or were answered with NaN"),
        Statistic("misses", Source.REQUESTS, Scale.SHARE, False, 0.01, _ANY,
                  "share of requests that missed their deadline"),
        Statistic("pNN", Source.REQUESTS, Scale.TIME, False, 0.5, _OWN_OR_RATIO,
                  "quantile of the latency, as in p50, p99 or p99.9"),
        Statistic("agreement", Source.COMPARISONS, Scale.SHARE, True, 0.99, _OWN,
                  "share of copies with the primary's class"),
        Statistic("cosine", Source.COMPARISONS, Scale.SHARE, True, 0.99, _OWN,
                  "mean cosine similarity to the primary's answer"),
        Statistic("max_abs", Source.COMPARISONS, Scale.NUMBER, False, 0.0, _OWN,
                  "largest difference from the primary's numbers"),
        Statistic("accuracy", Source.FEEDBACK, Scale.SHARE, True, 0.9, _ANY,
                  "share of labelled requests that were right"),
        Statistic("loss", Source.FEEDBACK, Scale.NUMBER, False, 0.0, _OWN_OR_RATIO,
                  "mean loss of labelled requests, for metrics of numbers"),
    )
}  # fmt: skip

_GRAMMAR = re.compile(
    r"(?P<name>[a-z_]+|p\d{1,2}(\.\d+)?)\s*(?P<direction><=|>=)\s*"
    r"(?P<threshold>[+-]?(\d+(\.\d*)?|\.\d+)(e-?\d+)?)(?P<unit>x|%|pt|ms|s)?"
    r"(\s*@\s*(?P<confidence>\d+(\.\d+)?)%)?(\s*,\s*n\s*=\s*(?P<samples>\d{1,9}))?"
)
_EXAMPLE = 'Write it as "agreement>=0.99@95%,n=500" or "p99<=1.2x"'


class GuardError(BadRequestError):
    """A guard that cannot be read or never decided; the message says which and what would do."""


@dataclass(frozen=True, slots=True)
class Guard:
    """Something that must hold of a candidate.

    Attributes:
        text: As it was written.
        statistic: What is measured.
        quantile: Which share of latencies, 0..1; only of `pNN`.
        relation: What the threshold is measured against.
        threshold: A share, seconds, a number, a ratio, or a difference of shares.
        confidence: Of its decision, 0..1.
        samples: Fewer decide nothing.
    """

    text: str
    statistic: Statistic
    quantile: float
    relation: Relation
    threshold: float
    confidence: float = DEFAULT_CONFIDENCE
    samples: int = DEFAULT_SAMPLES

    @property
    def name(self) -> str:
        """The statistic as the guard writes it, `p99` for one."""
        return f"p{self.quantile * 100:g}" if self.statistic.name == "pNN" else self.statistic.name

    def holds(self, figure: float) -> bool:
        """Whether a figure keeps the threshold."""
        return figure >= self.threshold if self.statistic.higher_is_better else figure <= self.threshold


def parse_guard(text: str, field: str = "guards") -> Guard:
    """Reads `STATISTIC<=THRESHOLD[@CONFIDENCE%][,n=SAMPLES]`, or `>=`.

    Args:
        text: The guard.
        field: Names where it came from, in errors.

    Raises:
        GuardError: It cannot be read, or no evidence could ever decide it.
    """
    match = _GRAMMAR.fullmatch(text.strip())
    if match is None:
        raise _error(field, text, f"is no guard. {_EXAMPLE}; statistics are {_listed()}")
    name = match["name"]
    is_quantile = re.fullmatch(r"p\d.*", name) is not None
    statistic = STATISTICS.get("pNN" if is_quantile else name)
    if statistic is None or name == "pNN":
        raise _error(field, text, f'measures "{name}", which nobody does. Statistics are {_listed()}')
    quantile = float(name[1:]) / 100 if is_quantile else 0.0
    if is_quantile and not 0 < quantile < 1:
        raise _error(field, text, "names a quantile outside 0 to 100. Write p50 or p99")
    if (match["direction"] == ">=") != statistic.higher_is_better:
        wanted = "high: write >=" if statistic.higher_is_better else "low: write <="
        raise _error(field, text, f"points the wrong way. {name} should stay {wanted}")
    relation, threshold = _threshold(field, text, statistic, float(match["threshold"]), match["unit"])
    confidence = float(match["confidence"]) / 100 if match["confidence"] else DEFAULT_CONFIDENCE
    if not 0.5 <= confidence <= 0.9999:
        raise _error(field, text, "has a confidence outside 50% to 99.99%. 95% is usual")
    samples = int(match["samples"]) if match["samples"] else DEFAULT_SAMPLES
    if samples < 1:
        raise _error(field, text, "asks for no samples. Give n=1 or more")
    return Guard(text.strip(), statistic, quantile, relation, threshold, confidence, samples)


def _threshold(
    field: str, text: str, statistic: Statistic, number: float, unit: str | None
) -> tuple[Relation, float]:
    relation = {"x": Relation.RATIO, "pt": Relation.DIFFERENCE}.get(unit or "", Relation.VALUE)
    if relation not in statistic.relations:
        against = (
            "is measured against the primary already" if statistic.relations == _OWN else "has no points"
        )
        raise _error(
            field, text, f'has the unit "{unit}", but {statistic.name} {against}. Give a plain threshold'
        )
    if relation is Relation.VALUE:
        return relation, _own_threshold(field, text, statistic, number, unit)
    if relation is Relation.DIFFERENCE:
        if not 0 < abs(number) < 100:
            raise _error(field, text, "has a margin of 0 or of 100 points. Give one between, such as 0.5pt")
        return relation, number / 100
    if number <= 0:
        raise _error(field, text, "has a ratio that is not above 0. 1.2x means 20% more than the primary")
    if statistic.scale is Scale.TIME and 1 / FINEST_RATIO < number < FINEST_RATIO:
        raise _error(
            field, text, f"is finer than latencies are kept. Give at least {FINEST_RATIO + 0.005:.2f}x"
        )
    if statistic.scale is not Scale.TIME and number == 1:
        raise _error(field, text, "leaves no margin, so equals never pass. Give some, such as 0.99x or 1.1x")
    return relation, number


def _own_threshold(field: str, text: str, statistic: Statistic, number: float, unit: str | None) -> float:
    if statistic.scale is Scale.TIME:
        if unit not in ("ms", "s") or number <= 0:
            raise _error(field, text, "needs a time or a ratio. Write 25ms, 0.5s or 1.2x")
        return number / 1e3 if unit == "ms" else number
    if unit in ("ms", "s"):
        raise _error(field, text, f'has the unit "{unit}", but {statistic.name} is no time. Leave it out')
    if statistic.scale is Scale.SHARE:
        share = number / 100 if unit == "%" else number
        if not 0 < share < 1:
            raise _error(
                field, text, "needs a share between 0 and 1, which samples can show. Write 0.99 or 99%"
            )
        return share
    if unit is not None or number < 0:
        raise _error(field, text, "needs a plain number, not below 0. Leave the unit out")
    return number


def _error(field: str, text: str, problem: str) -> GuardError:
    return GuardError(f'{field}: "{text[:80]}" {problem}.')


def _listed() -> str:
    return ", ".join(f"{s.name} ({s.meaning})" for s in STATISTICS.values())
