"""The baseline learns words, and the sentence about a model says what the figures do."""

from dataclasses import replace

import numpy as np
import pytest

from variants.baselines import Labelled, fit_word_counts
from variants.comparison import Baseline, compare

WORDS = (("see you at noon", "the kernel patch", "re: the meeting"), ("buy now", "free money", "act now"))


def texts(seed: int, rows: int = 40) -> Labelled:
    generator = np.random.default_rng(seed)
    labels = generator.integers(0, 2, rows)
    return [" ".join(generator.choice(WORDS[label], 3)) for label in labels], labels


def answers(labels: np.ndarray, wrong: int) -> np.ndarray:
    """Logits that are wrong in the first rows."""
    chosen = labels.copy()
    chosen[:wrong] = 1 - chosen[:wrong]
    return np.eye(2)[chosen]


@pytest.fixture
def weak() -> Baseline:
    labels = np.arange(400) % 2
    return Baseline("counting", answers(labels, 60), labels, 0.5)


def test_it_learns_what_spam_says() -> None:
    fitted = fit_word_counts(texts(0), texts(1), texts(2), "macro-f1")
    assert fitted.logits.shape == (40, 2)
    assert (fitted.logits.argmax(1) == fitted.labels).all()
    assert fitted.latency_ms > 0


def test_a_better_model_is_worth_its_cost(weak: Baseline) -> None:
    found = compare(weak, {"logits": answers(weak.labels, 5)}, "macro-f1")
    assert found.model.value > found.baseline
    assert found.accuracy.p_value is not None
    assert found.accuracy.p_value < 0.001
    sentence = found.sentence("the transformer", 12.0)
    assert sentence.startswith("the transformer is worth its cost where these points matter")
    assert "0.9875 against 0.8500" in sentence
    assert "12.00 ms per row against 0.50 ms" in sentence


def test_a_difference_by_chance_or_for_the_worse_is_not(weak: Baseline) -> None:
    same = compare(weak, {"logits": answers(weak.labels, 59)}, "macro-f1")
    assert "not worth its cost here: no significant difference from counting" in same.sentence("it", 12.0)
    good = replace(weak, logits=answers(weak.labels, 5))
    worse = compare(good, {"logits": answers(weak.labels, 60)}, "macro-f1")
    assert "not worth its cost: worse than counting" in worse.sentence("it", 12.0)
