"""What to do with a batch that the runtime fails on: one request's input must not cost the others theirs."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from compression.signature import Array
from service.errors import InferenceError, UncomputableError
from service.queues import Executable, Job

log = logging.getLogger("mipgate.scheduler")

_LONGEST_REASON = 300


@dataclass(frozen=True, slots=True)
class Apart:
    """What came of the requests of a batch that failed, each run alone.

    Attributes:
        outcomes: Outputs or an error, in the order of the requests.
        is_well: Whether the variant answers what it can be expected to answer.
    """

    outcomes: list[list[Array] | InferenceError]
    is_well: bool


def each_alone(variant: Executable, jobs: Sequence[Job[Any]], error: Exception) -> Apart:
    """Runs the requests of a batch that failed one by one, on the device's thread.

    Where one fails alone too, a row that is known to be good decides whether the variant is at fault or the
    request.
    """
    outcomes: list[list[Array] | Exception] = []
    for job in jobs:
        outcome: list[Array] | Exception = error
        if len(jobs) > 1 and not job.future.done():
            outcome = _alone(variant, job)
        outcomes.append(outcome)
    failures = [outcome for outcome in outcomes if isinstance(outcome, Exception)]
    is_well = not failures or variant.is_well()
    if is_well:
        log.warning("%s cannot compute %d of %d requests", variant.key, len(failures), len(jobs))
    else:
        log.error("%s failed on a batch of %d requests", variant.key, len(jobs), exc_info=error)
    return Apart([_told(variant, each, is_well) for each in outcomes], is_well)


def _alone(variant: Executable, job: Job[Any]) -> list[Array] | Exception:
    try:
        outputs = variant.run(job.inputs)
        check_rows(outputs, job.rows)
    except Exception as error:  # the runtime's errors have no common base but this
        return error
    return outputs


def check_rows(outputs: Sequence[Array], rows: int) -> None:
    """Checks that a batch gave as many rows as it had.

    Raises:
        ValueError: It gave others.
    """
    if any([np.shape(output)[:1] != (rows,) for output in outputs]):
        raise ValueError(f"{rows} rows gave outputs of the shapes {[np.shape(output) for output in outputs]}")


def _told(
    variant: Executable, outcome: list[Array] | Exception, is_well: bool
) -> list[Array] | InferenceError:
    if not isinstance(outcome, Exception):
        return outcome
    if is_well:
        reason = " ".join(str(outcome).split())[:_LONGEST_REASON]
        return UncomputableError(
            f"{variant.key} cannot compute this input: {reason}. Check its values and lengths of axes."
        )
    return InferenceError(f"{variant.key} failed on this batch. Try again, or pin another variant.")
