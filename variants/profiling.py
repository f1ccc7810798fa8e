"""Measures one variant on one runtime, in a process of its own.

A fresh process makes the memory figure mean something, and a runtime that crashes on an artifact costs
this one profile. Run as `python -m variants.profiling JOB.json RESULT.json`.
"""

from __future__ import annotations

import sys
import time
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from functools import partial
from pathlib import Path

import numpy as np
import psutil

from compression.data import Split
from compression.signature import Array
from variants import document
from variants.faithfulness import check_beside
from variants.golden import deviation
from variants.judgement import Predict, ReferenceAnswers, judge
from variants.profile import BATCH_SIZES, Latency, Profile
from variants.runtime import Runtime, Session, open_session
from variants.samples import read_disturbed, read_golden, read_split

# Batch sizes are timed in turn, several times over, so that a machine's drift touches all of them alike.
_ROUNDS = 3
_SECONDS_PER_ROUND = 0.1
_FEWEST_CALLS = 8
_MOST_CALLS = 200
_WARM_UP_SECONDS = 0.1
_QUALITY_BATCH = 32


@dataclass(frozen=True)
class ProfilingJob:
    """What to measure; all paths are of files that are already there.

    Attributes:
        artifact: The variant's ONNX file.
        runtime: Where it runs.
        metric: Name of the quality metric.
        reference: The reference's ONNX file.
        reference_runtime: Where the reference's outputs are defined.
        validation: Labelled rows that selection reads.
        test: Labelled rows that are only reported.
        golden: Rows with the outputs that the artifact gave where it was built.
        folder: Where the reference's answers are kept from one job to the next.
    """

    artifact: Path
    runtime: Runtime
    metric: str
    reference: Path
    reference_runtime: Runtime
    validation: Path
    test: Path
    golden: Path
    folder: Path


def measure(job: ProfilingJob) -> Profile:
    """Opens the artifact, times it and judges its answers.

    Raises:
        RuntimeUnavailableError: The runtime refuses the artifact.
        UnfaithfulRuntimeError: It computes something else than the file says.
        ValueError: The outputs are not finite, or the metric does not fit them.
    """
    process = psutil.Process()
    validation, test = read_split(job.validation), read_split(job.test)
    first_row = validation.take(slice(0, 1)).inputs
    before = process.memory_info().rss
    started = time.perf_counter()
    session = open_session(job.artifact, job.runtime)
    load_s = time.perf_counter() - started
    session.run(first_row)
    memory = max(0, process.memory_info().rss - before)
    batches = {size: repeat_rows(validation, size) for size in BATCH_SIZES}
    if job.runtime.engine != job.reference_runtime.engine:
        check_beside(session, open_session(job.artifact, job.reference_runtime), batches)
    latency = time_batches(session, batches)
    answers = ReferenceAnswers(job.folder, _reference(job))
    return Profile(
        runtime=job.runtime.engine,
        precision=job.runtime.precision,
        threads=job.runtime.threads,
        load_s=load_s,
        memory_bytes=memory,
        latency_ms=latency,
        quality=judge(
            job.metric, partial(predict, session), answers, validation, test, read_disturbed(job.validation)
        ),
        taken=datetime.now(UTC).isoformat(timespec="seconds"),
        golden_deviation=_golden_deviation(session, job.golden),
    )


def time_batches(session: Session, batches: Mapping[int, Mapping[str, Array]]) -> dict[int, Latency]:
    """Percentiles of the time of one call by batch size, in milliseconds."""
    times: dict[int, list[float]] = {size: [] for size in batches}
    _warm_up(session, batches)
    for _ in range(_ROUNDS):
        for size, batch in batches.items():
            times[size] += _time_calls(session, batch)
    return {size: _percentiles(calls) for size, calls in times.items()}


def _warm_up(session: Session, batches: Mapping[int, Mapping[str, Array]]) -> None:
    end = time.perf_counter() + _WARM_UP_SECONDS
    for batch in batches.values():
        session.run(batch)
    while time.perf_counter() < end:
        session.run(next(iter(batches.values())))


def _time_calls(session: Session, batch: Mapping[str, Array]) -> list[float]:
    times: list[float] = []
    session.run(batch)  # the first call after another batch size allocates anew
    end = time.perf_counter() + _SECONDS_PER_ROUND
    while len(times) < _FEWEST_CALLS or (time.perf_counter() < end and len(times) < _MOST_CALLS):
        started = time.perf_counter()
        session.run(batch)
        times.append((time.perf_counter() - started) * 1e3)
    return times


def _percentiles(times: list[float]) -> Latency:
    p50, p95, p99 = (round(float(value), 5) for value in np.percentile(times, [50, 95, 99]))
    return Latency(p50, p95, p99)


def repeat_rows(split: Split, size: int) -> dict[str, Array]:
    """A batch of exactly `size` rows, real ones, repeated when the split is shorter."""
    rows = np.arange(size) % len(split)
    return dict(split.take(rows).inputs)


def predict(session: Session, split: Split) -> dict[str, Array]:
    """Outputs for every row of a split, by name."""
    parts = [session.run(batch) for batch in split.batches(_QUALITY_BATCH)]
    columns = zip(*parts, strict=True)
    return {name: np.concatenate(column) for name, column in zip(session.output_names, columns, strict=True)}


def _reference(job: ProfilingJob) -> Predict:
    """Answers of the reference, opened when it is first asked."""

    def answer(split: Split) -> dict[str, Array]:
        return predict(open_session(job.reference, job.reference_runtime), split)

    return answer


def _golden_deviation(session: Session, golden: Path) -> float:
    inputs, outputs = read_golden(golden)
    return deviation(session.run_named(inputs), outputs)


def main() -> None:
    """Reads the job, writes the profile."""
    job_path, result_path = map(Path, sys.argv[1:])
    document.write(result_path, measure(document.read(ProfilingJob, job_path)))


if __name__ == "__main__":
    main()
