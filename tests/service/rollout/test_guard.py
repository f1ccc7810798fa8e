"""Guards are read from text, or refused with the field and what would do."""

from __future__ import annotations

import pytest

from service.errors import BadRequestError
from service.rollout.guard import STATISTICS, Relation, parse_guard


@pytest.mark.parametrize(
    ("text", "name", "relation", "threshold", "confidence", "samples"),
    [
        ("agreement>=0.99@95%,n=500", "agreement", Relation.VALUE, 0.99, 0.95, 500),
        ("agreement>=99%", "agreement", Relation.VALUE, 0.99, 0.95, 100),
        ("p99<=1.2x", "p99", Relation.RATIO, 1.2, 0.95, 100),
        ("p99.9 <= 25ms @ 99% , n = 7", "p99.9", Relation.VALUE, 0.025, 0.99, 7),
        ("p50<=0.5s", "p50", Relation.VALUE, 0.5, 0.95, 100),
        ("errors<=0.1%", "errors", Relation.VALUE, 0.001, 0.95, 100),
        ("errors<=+0.1pt", "errors", Relation.DIFFERENCE, 0.001, 0.95, 100),
        ("accuracy>=-0.5pt", "accuracy", Relation.DIFFERENCE, -0.005, 0.95, 100),
        ("accuracy>=0.99x", "accuracy", Relation.RATIO, 0.99, 0.95, 100),
        ("misses<=1%", "misses", Relation.VALUE, 0.01, 0.95, 100),
        ("cosine>=.995", "cosine", Relation.VALUE, 0.995, 0.95, 100),
        ("max_abs<=1e-3", "max_abs", Relation.VALUE, 0.001, 0.95, 100),
        ("loss<=1.05x", "loss", Relation.RATIO, 1.05, 0.95, 100),
    ],
)
def test_a_guard_is_read(
    text: str, name: str, relation: Relation, threshold: float, confidence: float, samples: int
) -> None:
    guard = parse_guard(text)
    assert (guard.name, guard.relation, guard.samples) == (name, relation, samples)
    assert guard.threshold == pytest.approx(threshold)
    assert guard.confidence == pytest.approx(confidence)
    assert parse_guard(guard.text) == guard


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("", "is no guard"),
        ("quick", "is no guard"),
        ("speed<=1", 'measures "speed", which nobody does'),
        ("errors>=1%", "wrong way.*low"),
        ("agreement<=0.9", "wrong way.*high"),
        ("p0<=2x", "quantile"),
        ("p99<=3", "needs a time or a ratio"),
        ("p99<=1.02x", "finer than latencies are kept"),
        ("p99<=1pt", "no points"),
        ("errors<=3ms", "is no time"),
        ("errors<=0%", "between 0 and 1"),
        ("agreement>=1", "between 0 and 1"),
        ("agreement>=0.9x", "measured against the primary already"),
        ("accuracy>=1x", "no margin"),
        ("accuracy>=-0pt", "margin of 0"),
        ("accuracy>=-1x", "not above 0"),
        ("max_abs<=-1", "plain number"),
        ("loss<=5%", "plain number"),
        ("errors<=1%@20%", "confidence"),
        ("errors<=1%,n=0", "no samples"),
        ("errors<=1%,n=5,n=6", "is no guard"),
    ],
)
def test_a_guard_that_cannot_be_decided_is_refused(text: str, problem: str) -> None:
    with pytest.raises(BadRequestError, match=problem) as refused:
        parse_guard(text, "guards.3")
    assert str(refused.value).startswith(f'guards.3: "{text}"')


def test_an_unknown_statistic_is_answered_with_those_that_exist() -> None:
    with pytest.raises(BadRequestError) as refused:
        parse_guard("speed<=1")
    assert not [name for name in STATISTICS if name not in str(refused.value)]
