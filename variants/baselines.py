"""The classical model that a transformer has to beat: words counted, and a straight line between classes."""

from __future__ import annotations

import time
from collections.abc import Sequence

import numpy as np
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from compression.signature import Array
from variants.comparison import Baseline
from variants.metrics import find_metric

_STRENGTHS = (1.0, 10.0, 100.0)  # inverse strengths of the regularization that validation chooses from
_TIMED_TEXTS = 100

# Texts with their labels `(rows,)`.
Labelled = tuple[Sequence[str], Array]


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
