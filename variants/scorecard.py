"""What belongs to an artifact wherever it runs: size, operations, build cost, promises kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Scorecard:
    """Figures of an artifact.

    Attributes:
        bytes: Size of the model file on disk.
        sha256: Digest of the model file.
        parameters: Weights, however stored.
        nonzero_parameters: Weights that are not zero.
        flops: Floating or integer operations per row, two per multiply-accumulate.
        build_seconds: Time of compression and export.
        peak_memory_bytes: Largest resident memory of the building process.
        invariants: What each pass established, in the recipe's order.
    """

    bytes: int
    sha256: str
    parameters: int
    nonzero_parameters: int
    flops: int
    build_seconds: float
    peak_memory_bytes: int
    invariants: list[dict[str, Any]] = field(default_factory=list)
