"""The four data splits that a build works with, provably disjoint."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from compression.signature import Array

# How `divided` deals out rows: shares of the whole, the rest is for training.
_CALIBRATION, _VALIDATION, _TEST = 0.2, 0.3, 0.3
_MOST_CALIBRATION = 512
FEWEST_ROWS = 40


class SplitError(ValueError):
    """Splits overlap, are empty, or their arrays disagree in length."""


@dataclass(frozen=True)
class Split:
    """Rows of one split.

    Attributes:
        inputs: Arrays of shape `(rows, ...)` by input name.
        labels: Array of shape `(rows, ...)`, or None when nothing is labelled.
    """

    inputs: Mapping[str, Array]
    labels: Array | None = None

    def __post_init__(self) -> None:
        lengths = {name: len(array) for name, array in self.inputs.items()}
        if self.labels is not None:
            lengths["labels"] = len(self.labels)
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise SplitError(
                f"arrays of a split have lengths {lengths}. Give each one or more rows, as many."
            )

    def __len__(self) -> int:
        return len(next(iter(self.inputs.values())))

    def take(self, rows: slice | Array) -> Split:
        """The given rows as a split of their own."""
        labels = None if self.labels is None else self.labels[rows]
        return Split({name: array[rows] for name, array in self.inputs.items()}, labels)

    def spread(self, count: int) -> Split:
        """So many rows, or all, taken evenly from the whole: the first alone may be of one kind."""
        return self.take(np.unique(np.linspace(0, len(self) - 1, min(count, len(self))).astype(int)))

    def batches(self, size: int) -> Iterator[dict[str, Array]]:
        """The inputs in consecutive batches of at most `size` rows."""
        for start in range(0, len(self), size):
            yield {name: array[start : start + size] for name, array in self.inputs.items()}

    def row_hashes(self) -> list[bytes]:
        """One digest per row over all inputs, labels left out."""
        contiguous = [np.ascontiguousarray(self.inputs[name]) for name in sorted(self.inputs)]
        return [
            hashlib.blake2b(b"".join(array[row].tobytes() for array in contiguous), digest_size=16).digest()
            for row in range(len(self))
        ]


@dataclass(frozen=True)
class Splits:
    """Train fits, calibration sets ranges, validation selects, test only reports.

    Raises:
        SplitError: The same row stands in two splits.
    """

    train: Split
    calibration: Split
    validation: Split
    test: Split

    def __post_init__(self) -> None:
        owner: dict[bytes, str] = {}
        for name, split in self.items():
            for row, digest in enumerate(split.row_hashes()):
                first = owner.setdefault(digest, name)
                if first != name:
                    raise SplitError(
                        f"row {row} of {name} also stands in {first}. Remove duplicates before splitting."
                    )

    def items(self) -> tuple[tuple[str, Split], ...]:
        """The splits with their names."""
        return (
            ("train", self.train),
            ("calibration", self.calibration),
            ("validation", self.validation),
            ("test", self.test),
        )

    @cached_property
    def digest(self) -> str:
        """Sha256 over every row and label of every split, in order."""
        digest = hashlib.sha256()
        for name, split in self.items():
            digest.update(name.encode())
            for row_hash in split.row_hashes():
                digest.update(row_hash)
            if split.labels is not None:
                digest.update(np.ascontiguousarray(split.labels).tobytes())
        return digest.hexdigest()


def distinct(rows: Split) -> Split:
    """The rows without those that repeat an earlier one's inputs, in their order."""
    first = {digest: row for row, digest in reversed(list(enumerate(rows.row_hashes())))}
    return rows.take(np.array(sorted(first.values())))


def divided(rows: Split, seed: int = 0) -> Splits:
    """Deals distinct rows out to the four splits, the same way every time.

    Args:
        rows: Distinct rows, at least `FEWEST_ROWS`.
        seed: Decides which row goes where.

    Raises:
        SplitError: There are too few rows.
    """
    count = len(rows)
    if count < FEWEST_ROWS:
        raise SplitError(
            f"there are {count} different rows; {FEWEST_ROWS} are the fewest that can be divided into "
            "calibration, validation and test. Give more rows."
        )
    order = np.random.default_rng(seed).permutation(count)
    sizes = (min(int(count * _CALIBRATION), _MOST_CALIBRATION), int(count * _VALIDATION), int(count * _TEST))
    calibration, validation, test, train = np.split(order, np.cumsum(sizes))
    return Splits(*(rows.take(np.sort(part)) for part in (train, calibration, validation, test)))
