"""Which classes a classifier mistakes for which, and which classes a variant lost against its reference."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from compression.signature import Array

# Label -> answer -> how often; what never happened is left out, so that it stays small with many classes.
Cells = dict[int, dict[int, int]]


@dataclass(frozen=True)
class ClassChange:
    """What became of one class.

    Attributes:
        label: The class.
        rows: How often it is the label.
        recall: Share of it that the variant recognizes.
        recall_change: That less the reference's.
        f1: Harmonic mean of recall and precision.
        f1_change: That less the reference's.
    """

    label: int
    rows: int
    recall: float
    recall_change: float
    f1: float
    f1_change: float


def confusion(answers: Array, labels: Array) -> Cells:
    """Counts answers by label, both `(answers,)`."""
    pairs = np.stack([labels, answers], axis=1).astype(np.int64)
    cells: Cells = {}
    for (label, answer), count in zip(*np.unique(pairs, axis=0, return_counts=True), strict=True):
        cells.setdefault(int(label), {})[int(answer)] = int(count)
    return cells


def class_changes(ours: Cells, theirs: Cells) -> list[ClassChange]:
    """Recall and F1 of every labelled class against the reference's, the greatest losses first."""
    changes = []
    for label in sorted(ours.keys() & theirs.keys()):
        (recall, f1), (their_recall, their_f1) = _scores(ours, label), _scores(theirs, label)
        rows = sum(ours[label].values())
        changes.append(ClassChange(label, rows, recall, recall - their_recall, f1, f1 - their_f1))
    return sorted(changes, key=lambda change: (change.recall_change, change.f1_change))


def _scores(cells: Cells, label: int) -> tuple[float, float]:
    right, labelled = cells[label].get(label, 0), sum(cells[label].values())
    answered = sum(row.get(label, 0) for row in cells.values())
    return right / labelled, 2 * right / (labelled + answered)
