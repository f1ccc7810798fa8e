"""Prints digests of what Python orders or addresses anew in every process."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import numpy as np
from torch import nn

from compression.code_digest import code_digest


class First:
    """Something of one's own."""


class Second:
    """Something else."""


class Saying:
    """Says what it holds, in whatever order that is."""

    def __init__(self, held: set[str]) -> None:
        self.held = held

    def __repr__(self) -> str:
        return f"Saying({self.held})"


class Holding(nn.Module):
    """Holds what it is given."""

    def __init__(self, given: Any) -> None:
        super().__init__()
        self.given = given


WORDS = {"cat", "dog", "cow", "hen"}
ODD = (
    np.array(["cat", "dog"], dtype=object),
    {First: 1, Second: 2, len: 3},
    {First, Second},
    frozenset({First, Second, "one"}),
    WORDS,
    SimpleNamespace(names=WORDS),
    Saying(WORDS),
    object(),
    lambda x: x in {"cat", "dog"},
)

if __name__ == "__main__":
    for given in ODD:
        print(code_digest(Holding(given)))
