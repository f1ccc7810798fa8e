"""The classical model that a transformer has to beat: words counted, and a straight line between classes."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from compression.signature import Array
from variants.metrics import find_metric
from variants.quality import Estimate, estimate

_STRENGTHS = (1.0, 10.0, 100.0)  # inverse strengths of the regularization that validation chooses from
_TIMED_TEXTS = 100

# Texts with their labels `(rows,)`.
Labelled = tuple[Sequence[str], Array]


@dataclass(frozen=True)
class Baseline:
    """A fitted baseline's answers to the test rows.

    Attributes:
        name: What it is.
        logits: Log-probabilities `(rows, classes)` for the rows of the test split, in its order.
        labels: Those rows' labels.
        latency_ms: Median time for one text, from text to classes.
    """

    name: str
    logits: Array
    labels: Array
    latency_ms: float


@dataclass(frozen=True)
class Comparison:
    """A model and a baseline on the same test rows.

    Attributes:
        metric: What they are compared by.
        baseline: The baseline's value of it.
        model: The model's, with the paired bootstrap against the baseline.
        accuracy: The same for the share of right answers, with McNemar's test.
        sentence: Whether the model is worth its cost, in plain words.
    """

    metric: str
    baseline: float
    model: Estimate
    accuracy: Estimate
    sentence: str


def fit_word_counts(train: Labelled, validation: Labelled, test: Labelled, metric: str) -> Baseline:
    """TF-IDF of words and pairs of words (Sparck Jones 1972) with logistic regression.

    It reads whole texts, however long. The strength of its regularization is chosen on validation.

    Args:
        train: What it learns from.
        validation: What chooses.
        test: What it answers.
        metric: Name of the metric that chooses.
    """
    judge = find_metric(metric)

    def quality(fitted: Pipeline) -> float:
        return judge.of({"logits": fitted.predict_log_proba(validation[0])}, validation[1])

    fitted = max((_fit(train, strength) for strength in _STRENGTHS), key=quality)
    return Baseline(
        name="TF-IDF + logistic regression",
        logits=fitted.predict_log_proba(test[0]),
        labels=test[1],
        latency_ms=_latency_ms(fitted, test[0][:_TIMED_TEXTS]),
    )


def compare(
    baseline: Baseline, outputs: Mapping[str, Array], model: str, latency_ms: float, metric: str
) -> Comparison:
    """Holds a model's answers against a baseline's, row by row.

    Args:
        baseline: What is to be beaten.
        outputs: The model's outputs for the same test rows, by name.
        model: What the sentence calls it.
        latency_ms: Its time for one row.
        metric: Name of the metric that decides.
    """
    theirs = {"logits": baseline.logits}
    judged = estimate(find_metric(metric), outputs, theirs, baseline.labels)
    base = find_metric(metric).of(theirs, baseline.labels)
    return Comparison(
        metric=metric,
        baseline=base,
        model=judged,
        accuracy=estimate(find_metric("accuracy"), outputs, theirs, baseline.labels),
        sentence=_sentence(baseline, base, judged, model, latency_ms, metric),
    )


def _sentence(
    baseline: Baseline, base: float, judged: Estimate, model: str, latency_ms: float, metric: str
) -> str:
    chance = "p unknown" if judged.p_value is None else f"p = {judged.p_value:.3f}"
    figures = f"{metric} {judged.value:.4f} against {base:.4f} ({chance}, {judged.rows} test rows)"
    cost = f"{latency_ms:.2f} ms per text against {baseline.latency_ms:.2f} ms"
    if not judged.significant:
        verdict = f"{model} is not worth its cost here: no significant difference from {baseline.name}"
    elif judged.ratio > 1:
        verdict = f"{model} is worth its cost where these points matter: better than {baseline.name}"
    else:
        verdict = f"{model} is not worth its cost: worse than {baseline.name}"
    return f"{verdict}, {figures}, {cost}."


def _fit(train: Labelled, strength: float) -> Pipeline:
    words = TfidfVectorizer(sublinear_tf=True, ngram_range=(1, 2), min_df=2, strip_accents="unicode")
    return make_pipeline(words, LogisticRegression(C=strength, max_iter=1000)).fit(*train)


def _latency_ms(fitted: Pipeline, texts: Sequence[str]) -> float:
    times = []
    for text in texts:
        started = time.perf_counter()
        fitted.predict_log_proba([text])
        times.append((time.perf_counter() - started) * 1e3)
    return float(np.median(times))
