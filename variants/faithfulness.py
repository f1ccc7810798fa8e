"""Whether a runtime computes what an artifact says: its answers beside the reference engine's.

Compilers of graphs have faults that show in some shapes only, or in outputs that no metric reads: such a
runtime may be the fastest, and its quality the best.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from compression.signature import Array
from variants.runtime import Session

# Of the spread, and of the largest magnitude. Rounding that was seen came to a sixth of the spread; where
# zeros stand in place of values, the largest is farther off than both together.
_MOST_OF_SPREAD, _MOST_OF_LARGEST = 0.5, 0.05


class UnfaithfulRuntimeError(Exception):
    """A runtime's answers are not those of the artifact."""


def check_beside(session: Session, reference: Session, batches: Mapping[int, Mapping[str, Array]]) -> None:
    """Holds a runtime's answers against those of another, every output at every batch size.

    Args:
        session: The artifact on the runtime in question.
        reference: The same artifact on the reference engine.
        batches: Inputs by number of rows.

    Raises:
        UnfaithfulRuntimeError: They differ by more than rounding.
    """
    answers = [(session.run_named(batch), reference.run_named(batch)) for batch in batches.values()]
    for name in reference.output_names:
        if not _is_alike([given[name] for given, _ in answers], [right[name] for _, right in answers]):
            raise UnfaithfulRuntimeError(
                f'output "{name}" is not what {reference.runtime} computes from the same file and rows in '
                f"batches of {', '.join(map(str, batches))}. That is a fault of this runtime; it is left out."
            )


def _is_alike(given: Sequence[Array], expected: Sequence[Array]) -> bool:
    """Whether one output of several batches is the same but for rounding."""
    if [array.shape for array in given] != [array.shape for array in expected]:
        return False
    ours, theirs = (np.concatenate([array.ravel() for array in arrays]) for arrays in (given, expected))
    if theirs.dtype.kind != "f":
        return float((ours != theirs).mean()) <= _MOST_OF_SPREAD
    finite = np.isfinite(theirs)
    if (np.isfinite(ours) != finite).any():
        return False
    ours, theirs = ours[finite].astype(np.float64), theirs[finite].astype(np.float64)
    if not theirs.size:
        return True
    allowed = _MOST_OF_SPREAD * np.std(theirs) + _MOST_OF_LARGEST * np.abs(theirs).max()
    return bool((np.abs(ours - theirs) <= allowed).all())
