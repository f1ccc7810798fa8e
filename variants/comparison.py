"""A model and a simpler one on the same rows: is the network worth its cost?"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from compression.signature import Array
from variants.metrics import find_metric
from variants.quality import Estimate, estimate


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline's answers to the test rows.

    Attributes:
        name: What it is.
        logits: Log-probabilities `(rows, classes)` for the rows of the test split, in its order.
        labels: Those rows' labels.
        latency_ms: Median time for one row, as users send it.
    """

    name: str
    logits: Array
    labels: Array
    latency_ms: float


@dataclass(frozen=True)
class Comparison:
    """A model and a baseline on the same test rows.

    Attributes:
        name: What the baseline is.
        metric: What they are compared by.
        baseline: The baseline's value of it.
        latency_ms: The baseline's median time for one row.
        model: The model's value, with the paired bootstrap against the baseline.
        accuracy: The same for the share of right answers, with McNemar's test.
    """

    name: str
    metric: str
    baseline: float
    latency_ms: float
    model: Estimate
    accuracy: Estimate

    def sentence(self, model: str, latency_ms: float) -> str:
        """Whether the model is worth its cost, in plain words.

        Args:
            model: What the sentence calls it.
            latency_ms: Its time for one row.
        """
        judged = self.model
        if not judged.significant:
            verdict = f"{model} is not worth its cost here: no significant difference from {self.name}"
        elif judged.ratio > 1:
            verdict = f"{model} is worth its cost where these points matter: better than {self.name}"
        else:
            verdict = f"{model} is not worth its cost: worse than {self.name}"
        chance = "p unknown" if judged.p_value is None else f"p = {judged.p_value:.3f}"
        figures = f"{self.metric} {judged.value:.4f} against {self.baseline:.4f}"
        cost = f"{latency_ms:.2f} ms per row against {self.latency_ms:.2f} ms"
        return f"{verdict}, {figures} ({chance}, {judged.rows} test rows), {cost}."


def compare(baseline: Baseline, outputs: Mapping[str, Array], metric: str) -> Comparison:
    """Holds a model's answers against a baseline's, row by row.

    Args:
        baseline: What is to be beaten.
        outputs: The model's outputs for the same test rows, by name.
        metric: Name of the metric that decides.
    """
    judge, (_, at, output) = find_metric(metric), metric.partition("@")
    theirs = {output or "logits": baseline.logits}
    return Comparison(
        name=baseline.name,
        metric=metric,
        baseline=judge.of(theirs, baseline.labels),
        latency_ms=baseline.latency_ms,
        model=estimate(judge, outputs, theirs, baseline.labels),
        accuracy=estimate(find_metric(f"accuracy{at}{output}"), outputs, theirs, baseline.labels),
    )
