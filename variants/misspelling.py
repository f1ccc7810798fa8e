"""Texts as hurried people and broken programs send them: misspelled, shouted, run together, cut off.

After the character and word perturbations of Belinkov and Bisk 2018, "Synthetic and Natural Noise Both Break
Neural Machine Translation". Torch-free.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence

import numpy as np

from compression.data import Split
from compression.signature import Array
from variants.robustness import DISTURBED_ROWS, Disturbed
from variants.text import Tokenize

_SEED = 0
# Of a text, a severity 0..1 and random numbers: the text disturbed.
Misspelling = Callable[[str, float, np.random.Generator], str]


def _typos(text: str, share: float, random: np.random.Generator) -> str:
    """So many of the letters change places with the next, vanish, or stand twice."""
    letters = list(text)
    for at in _chosen([at for at, letter in enumerate(letters) if letter.isalpha()], share, random):
        kind = random.integers(3)
        if kind == 0 and at + 1 < len(letters):
            letters[at], letters[at + 1] = letters[at + 1], letters[at]
        else:
            letters[at] = "" if kind == 1 else letters[at] * 2
    return "".join(letters)


def _case(text: str, share: float, random: np.random.Generator) -> str:
    """So many of the words are in capitals."""
    words = text.split(" ")
    for at in _chosen(range(len(words)), share, random):
        words[at] = words[at].upper()
    return " ".join(words)


def _whitespace(text: str, share: float, random: np.random.Generator) -> str:
    """So many of the spaces are lost."""
    letters = list(text)
    for at in _chosen([at for at, letter in enumerate(letters) if letter == " "], share, random):
        letters[at] = ""
    return "".join(letters)


def _cut(text: str, share: float, random: np.random.Generator) -> str:
    """So much of the end is missing."""
    return text[: max(1, round(len(text) * (1 - share)))]


MISSPELLINGS: dict[str, tuple[Misspelling, tuple[float, float]]] = {
    "typos": (_typos, (0.02, 0.1)),
    "case": (_case, (0.2, 1.0)),
    "whitespace": (_whitespace, (0.1, 0.5)),
    "cut": (_cut, (0.5, 0.9)),
}


def misspelled(validation: Split, tokenize: Tokenize) -> Iterator[Disturbed]:
    """Validation rows, disturbed in every way and severity, as the model reads them.

    Args:
        validation: Rows of tokens.
        tokenize: Gives their texts back, and tokens of disturbed texts.
    """
    rows = validation.spread(DISTURBED_ROWS)
    texts = tokenize.texts(rows.inputs)
    for name, (disturb, severities) in MISSPELLINGS.items():
        for severity in severities:
            random = np.random.default_rng(_SEED)
            changed = [disturb(text, severity, random).encode() for text in texts]
            tokens: dict[str, Array] = tokenize.run(np.array(changed, dtype=object))
            yield Disturbed(name, severity, Split(tokens, rows.labels))


def _chosen(places: Sequence[int], share: float, random: np.random.Generator) -> Array:
    return random.permutation(np.array(places, dtype=int))[: round(len(places) * share)]
