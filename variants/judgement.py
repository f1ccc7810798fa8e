"""Judges one artifact on one runtime: against labels and reference, class by class, disturbed or not."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy as np

from compression.data import Split
from compression.signature import Array
from variants.confusion import Cells, confusion
from variants.metrics import Metric, find_metric, labelled
from variants.profile import Quality
from variants.quality import agreement, estimate, judged_by, max_abs_error, truth
from variants.robustness import DISTURBED_ROWS, Disturbed, Robustness, disturbed_pictures
from variants.samples import read_golden, write_golden

Answers = dict[str, Array]
Predict = Callable[[Split], Answers]

_VALIDATION, _TEST = "validation", "test"


class ReferenceAnswers:
    """The reference's outputs, computed once for all that is judged against them.

    Args:
        folder: Where they are kept.
        predict: Computes them.
    """

    def __init__(self, folder: Path, predict: Predict) -> None:
        self._folder = folder
        self._predict = predict

    def of(self, name: str, split: Split) -> Answers:
        """The outputs for the rows of this name."""
        path = self._folder / f"reference-{name}.npz"
        if path.is_file():
            return read_golden(path)[1]
        outputs = self._predict(split)
        fresh = path.with_suffix(".partial")
        write_golden(fresh, {}, outputs)
        fresh.replace(path)
        return outputs


def judge(
    metric_name: str,
    ours: Predict,
    theirs: ReferenceAnswers,
    validation: Split,
    test: Split,
    disturbed: Sequence[Disturbed] = (),
) -> Quality:
    """Judges answers on both splits.

    Args:
        metric_name: The model's metric, as `find_metric` takes it.
        ours: Answers of what is judged.
        theirs: Answers of the reference.
        validation: Rows that selection reads; some are also disturbed.
        test: Rows that are only reported.
        disturbed: Validation rows that were disturbed before; pictures are disturbed here.

    Raises:
        ValueError: Outputs are not finite, or the metric does not fit them.
    """
    metric = find_metric(metric_name)
    estimates, confusions = {}, {}
    for name, split in ((_VALIDATION, validation), (_TEST, test)):
        outputs, reference = _finite(ours(split)), theirs.of(name, split)
        estimates[name] = estimate(metric, outputs, reference, split.labels)
        if (cells := _confusion(metric, outputs, reference, split.labels)) is not None:
            confusions[name] = cells
    return Quality(
        validation=estimates[_VALIDATION],
        test=estimates[_TEST],
        agreement=agreement(metric, outputs, reference, test.labels),
        max_abs_error=max_abs_error(outputs, reference),
        metric=judged_by(metric, test.labels).name,
        confusion=confusions,
        robustness=_robustness(metric, ours, theirs, validation, disturbed),
    )


def _finite(outputs: Answers) -> Answers:
    for name, array in outputs.items():
        if array.dtype.kind == "f" and not np.isfinite(array).all():
            raise ValueError(f'output "{name}" holds values that are not finite')
    return outputs


def _confusion(metric: Metric, outputs: Answers, reference: Answers, labels: Array | None) -> Cells | None:
    """Answers by label; where nothing is labelled, the reference's answers are the labels."""
    if metric.answers is None:
        return None
    if labels is None:
        labels = metric.answers(reference, None)
    known = labelled(metric, outputs, labels)
    return confusion(metric.answers(outputs, labels.shape)[known], labels[known])


def _robustness(
    metric: Metric,
    ours: Predict,
    theirs: ReferenceAnswers,
    validation: Split,
    disturbed: Sequence[Disturbed],
) -> list[Robustness]:
    rows = validation.spread(DISTURBED_ROWS)
    every = [*disturbed, *disturbed_pictures(rows)]
    if not every:
        return []
    metric = judged_by(metric, rows.labels)

    def value(outputs: Answers, reference: Answers) -> float:
        return metric.of(outputs, truth(metric, reference, rows.labels))

    reference = theirs.of("clean", rows)
    clean, reference_clean = value(ours(rows), reference), value(reference, reference)
    found = []
    for each in every:
        name, severity = each.perturbation, each.severity
        reference = theirs.of(f"{name}-{severity:g}", each.rows)
        kept, reference_kept = value(ours(each.rows), reference), value(reference, reference)
        found.append(Robustness(name, severity, len(rows), clean, kept, reference_clean, reference_kept))
    return found
