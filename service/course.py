"""A request on its way: what it asks for, how far it came, how it ended, and who is told of it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from compression.signature import Array
from service.errors import ServiceError, UncomputableError
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import NO_ARM
from service.protocol import InferRequest
from service.rollout.evidence import ArmTally
from service.rollout.rollout import Arm, Rollout
from service.router import Route
from service.routing import Slo
from service.scheduler import Completed

Watch = Callable[[], None]

# Of the caller's time, what takes over for an arm's variant keeps so many of its times, within these shares.
_RESERVE, _LEAST, _MOST = 2.0, 0.2, 0.5


@dataclass(frozen=True, slots=True)
class Part:
    """A request's part in a rollout: the same for all requests of an arm.

    Attributes:
        rollout: Which one.
        arm: Its arm.
        route: To what answers for that arm.
        tally: Where the arm's evidence is counted.
        behind: To what takes over when that fails: the router's choice, or for a candidate that is the
            router's choice the primary. None where that is the primary: then all is as without a rollout.
        slower: Of the router's choice and the primary, whose time all arms leave.
    """

    rollout: Rollout
    arm: Arm
    route: Route
    tally: ArmTally
    behind: Route | None
    slower: LoadedVariant


@dataclass(slots=True, eq=False)
class Course:
    """One request; `Inference` moves it on, and listeners read it when it has ended.

    Attributes:
        model: Which model it is for.
        pinned: The variant that it names, or None.
        slo: What it asks for.
        request: Its inputs, decoded.
        request_id: The client's id, or one that was made for it; of a rollout, one that a label is joined by.
        arrived: When it arrived, on `time.perf_counter`.
        watch: Called before it waits for the device, or None.
        deadline: When its answer is due, on the same clock.
        transform_s: Time that a text or picture took to become inputs.
        route: Where it goes; None before that is known.
        part: Its part in a rollout, or None.
        fell: Why its arm's variant did not answer in the time that it has, or None.
        suspect: Who could not compute it: when another can, it was not the request's fault.
        done: What the device made of it; None before, and when it failed.
        outputs: Arrays `(rows, ...)` by output name, with those of a transform where they are asked for; None
            when it failed.
        error: Why it failed, or None.
        total_s: Time from arrival to the end.
    """

    model: LoadedModel
    pinned: LoadedVariant | None
    slo: Slo
    request: InferRequest
    request_id: str
    arrived: float
    watch: Watch | None
    deadline: float = 0.0
    transform_s: float = 0.0
    route: Route | None = None
    part: Part | None = None
    fell: ServiceError | None = None
    suspect: LoadedVariant | None = None
    done: Completed | None = None
    outputs: dict[str, Array] | None = None
    error: ServiceError | None = None
    total_s: float = 0.0

    @property
    def chosen(self) -> LoadedVariant | None:
        """What answers it, or was to, if that is known."""
        return self.pinned if self.route is None else self.route.variant

    @property
    def variant(self) -> LoadedVariant:
        """What answers it, or was to; of a request that was routed."""
        chosen = self.chosen
        assert chosen is not None
        return chosen

    @property
    def tier(self) -> str:
        """Name of the tier that was asked for."""
        return self.slo.tier.name

    @property
    def arm(self) -> str:
        """Its arm in a rollout, or `NO_ARM`."""
        return NO_ARM if self.part is None else self.part.arm.name

    @property
    def arm_deadline(self) -> float:
        """Until when its arm's variant has time, the same for all arms: what takes over needs the rest."""
        assert self.part is not None
        left_s = self.deadline - self.arrived
        needs_s = _RESERVE * self.part.slower.predict_ms(self.request.rows) / 1e3
        return self.deadline - min(max(needs_s, _LEAST * left_s), _MOST * left_s)

    @property
    def is_late_for_its_arm(self) -> bool:
        """Whether it was answered after its arm's time."""
        surely_s = (1 - _MOST) * (self.deadline - self.arrived)
        return self.total_s > surely_s and self.arrived + self.total_s > self.arm_deadline

    @property
    def started(self) -> float:
        """When its batch began, the same for all requests of a batch; 0 when it failed."""
        return 0.0 if self.done is None else self.done.started

    @property
    def degraded_from(self) -> str | None:
        """As `routing.Decision` has it."""
        return None if self.route is None else self.route.degraded_from

    def suspects(self, variant: LoadedVariant, error: ServiceError) -> None:
        """Remembers who could not compute the request."""
        if isinstance(error, UncomputableError):
            self.suspect = variant


class Listener(Protocol):
    """Is told of every request that was routed."""

    def served(self, course: Course) -> None:
        """Called on the event loop: cheap, and raises nothing."""
