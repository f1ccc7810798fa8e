"""Confusion: counts by hand, and the classes that lost most first."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from sklearn.metrics import f1_score, recall_score

from variants.confusion import class_changes, confusion

PAIRS = st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.integers(0, 4)), min_size=1, max_size=80)


def test_what_never_happened_takes_no_room() -> None:
    labels, answers = np.array([0, 0, 999, 999]), np.array([0, 7, 999, 999])
    assert confusion(answers, labels) == {0: {0: 1, 7: 1}, 999: {999: 2}}


def test_the_class_that_lost_most_comes_first() -> None:
    labels = np.repeat([0, 1, 2], 10)
    ours = labels.copy()
    ours[10:14] = 0
    ours[20:21] = 0
    changes = class_changes(confusion(ours, labels), confusion(labels, labels))
    assert [change.label for change in changes] == [1, 2, 0]
    assert changes[0].recall_change == pytest.approx(-0.4)
    assert changes[2].recall_change == 0.0
    assert changes[2].f1_change < 0  # it was answered where it was wrong


@given(PAIRS)
def test_recall_and_f1_are_scikit_learns(rows: list[tuple[int, int, int]]) -> None:
    labels, ours, theirs = np.array(rows).T
    for change in class_changes(confusion(ours, labels), confusion(theirs, labels)):
        (recall,) = recall_score(labels, ours, labels=[change.label], average=None)
        (f1,) = f1_score(labels, ours, labels=[change.label], average=None)
        assert change.recall == pytest.approx(recall)
        assert change.f1 == pytest.approx(f1)
        assert change.rows == (labels == change.label).sum()
