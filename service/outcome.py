"""What came of a request, and who is told of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from compression.signature import Array
from service.errors import ServiceError
from service.loaded import LoadedModel, LoadedVariant
from service.protocol import InferRequest


@dataclass(slots=True)  # frozen, it would take four times as long to make, for every request
class Outcome:
    """How a request that was routed ended. Nobody changes it, but for an id that carries the answer.

    Attributes:
        request_id: The client's id, or one that was made for it; of a rollout, one that a label is joined by.
        model: Which model it was for.
        variant: Which variant was to answer.
        tier: Name of the tier that was asked for.
        arm: Name of its arm in a rollout, or `NO_ARM`.
        request: Its inputs, decoded.
        outputs: Arrays `(rows, ...)` by output name, with those of a transform where they are asked for; None
            when it failed.
        error: Why it failed, or None.
        arrived: When it arrived, on `time.perf_counter`.
        transform_s: Time that a text or picture took to become inputs.
        started: When its batch began, the same for all requests of a batch; 0 when it failed.
        batch_rows: Rows of that batch; 0 when it failed.
        queue_s: Time it waited; 0 when it failed.
        infer_s: Time that its batch ran; 0 when it failed.
        total_s: Time from arrival to the end.
        degraded_from: As `routing.Decision` has it.
    """

    request_id: str
    model: LoadedModel
    variant: LoadedVariant
    tier: str
    arm: str
    request: InferRequest
    outputs: dict[str, Array] | None
    error: ServiceError | None
    arrived: float
    transform_s: float
    started: float
    batch_rows: int
    queue_s: float
    infer_s: float
    total_s: float
    degraded_from: str | None

    @property
    def degraded(self) -> bool:
        """Whether the quality is below what was asked for."""
        return self.degraded_from is not None


class Listener(Protocol):
    """Is told of every routed request."""

    def served(self, outcome: Outcome) -> None:
        """Called on the event loop: cheap, and raises nothing."""
