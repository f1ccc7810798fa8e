"""Takes the figures of a finished artifact: counts, memory traffic, noise against the reference."""

from __future__ import annotations

import resource
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import onnx
from filelock import FileLock

from compression.data import Split
from compression.export import export
from compression.figures import Sqnr
from compression.inspection import count, weights_by_dtype
from compression.model import Model, OnnxModel
from compression.pipeline import Compressed
from compression.probing import ProbeError
from compression.sqnr import sqnr
from compression.traffic import traffic
from variants.scorecard import BuildSeconds, Scorecard
from variants.store import sha256

_SQNR_ROWS = 32
_REFERENCE = "reference.onnx"

Figure = TypeVar("Figure")


@dataclass(frozen=True)
class Finished:
    """An artifact with what its build established.

    Attributes:
        path: The file.
        compressed: What the recipe made.
        parity: What `variants.parity.verify` found.
        seconds: What the build took so far, loading of data included.
        compress_seconds: What the recipe took of that.
    """

    path: Path
    compressed: Compressed
    parity: Mapping[str, float]
    seconds: float
    compress_seconds: float


def score(finished: Finished, reference: OnnxModel | None, rows: Split) -> Scorecard:
    """All figures of an artifact that no runtime changes.

    Args:
        finished: The artifact.
        reference: The reference's graph; None when this is it.
        rows: Real rows; the first decides the lengths of symbolic axes.
    """
    artifact = finished.compressed.artifact
    row = rows.take(slice(0, 1)).inputs
    counts = count(artifact, row)
    unmeasured: dict[str, str] = {}

    def noise() -> Sqnr | None:
        few = rows.take(slice(0, _SQNR_ROWS)).inputs
        return None if reference is None else sqnr(artifact, reference, few)

    return Scorecard(
        bytes=finished.path.stat().st_size,
        sha256=sha256(finished.path),
        parameters=counts.parameters,
        nonzero_parameters=counts.nonzero_parameters,
        flops=counts.flops,
        build_seconds=round(finished.seconds, 3),
        peak_memory_bytes=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
        invariants=[*finished.compressed.facts, {"check": "parity", **finished.parity}],
        weights=weights_by_dtype(artifact),
        seconds=_split(finished),
        traffic=_try("traffic", lambda: traffic(artifact, row), unmeasured),
        sqnr=_try("sqnr", noise, unmeasured),
        unmeasured=unmeasured,
    )


def reference_graph(reference: Model, folder: Path) -> OnnxModel:
    """The reference as a graph, exported once for all variants of a build.

    Args:
        reference: The reference in either form.
        folder: The build's, where the variants' processes find the graph.
    """
    if isinstance(reference, OnnxModel):
        return reference
    path = folder / _REFERENCE
    with FileLock(path.with_suffix(".lock")):
        if not path.is_file():
            onnx.save_model(export(reference).proto, path)
    return OnnxModel(onnx.load_model(path), reference.signature)


def training_seconds(facts: tuple[dict[str, Any], ...]) -> float:
    """Time of all epochs of all passes, whenever they ran: one that was found again counts what it took."""
    return sum(
        float(epoch["seconds"]) for fact in facts for curve in fact.get("curves", ()) for epoch in curve
    )


def _split(finished: Finished) -> BuildSeconds:
    training = training_seconds(finished.compressed.facts)
    passes = finished.compress_seconds
    return BuildSeconds(
        training=round(training, 3),
        # Where a training was found again, its time is not part of this build's.
        compress=round(passes - training if passes >= training else passes, 3),
        verify=round(finished.seconds - passes, 3),
    )


def _try(name: str, measure: Callable[[], Figure], unmeasured: dict[str, str]) -> Figure | None:
    """A figure, or None with the reason noted: a graph that serves may still refuse to be laid open."""
    try:
        return measure()
    except ProbeError as error:
        unmeasured[name] = str(error)
        return None
