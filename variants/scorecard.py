"""What belongs to an artifact wherever it runs: size, operations, build cost, promises kept."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from compression.figures import Sqnr, Traffic


@dataclass(frozen=True)
class BuildSeconds:
    """Where the time of a build went.

    Attributes:
        training: Epochs of training and fine-tuning, though another recipe may have run them before.
        compress: Passes and export, without training.
        verify: Reloading, parity and loading of data.
    """

    training: float
    compress: float
    verify: float


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
        weights: How many weights are stored in each number format; empty in builds that did not count it.
        seconds: Where the time of the build went.
        traffic: Bytes that one inference moves.
        sqnr: Noise against the reference, layer by layer; None for the reference.
        unmeasured: Why a figure is missing, by its name.
    """

    bytes: int
    sha256: str
    parameters: int
    nonzero_parameters: int
    flops: int
    build_seconds: float
    peak_memory_bytes: int
    invariants: list[dict[str, Any]] = field(default_factory=list)
    weights: dict[str, int] = field(default_factory=dict)
    seconds: BuildSeconds | None = None
    traffic: Traffic | None = None
    sqnr: Sqnr | None = None
    unmeasured: dict[str, str] = field(default_factory=dict)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per row."""
        return self.flops // 2

    @property
    def intensity(self) -> float | None:
        """Arithmetic intensity: operations per byte that is moved; None when the traffic is unknown."""
        moved = self.traffic.bytes if self.traffic else 0
        return self.flops / moved if moved else None
