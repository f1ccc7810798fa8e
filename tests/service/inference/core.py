"""The core of inference on real variants, and what stands for the rest of the gateway around it."""

from __future__ import annotations

import asyncio
import dataclasses
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from time import perf_counter
from typing import Any, TypeVar

import numpy as np
from prometheus_client import CollectorRegistry

from compression.signature import Array
from service.course import Course
from service.experiments import Experiments
from service.fleet import Fleet
from service.inference import Inference
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import Metrics
from service.protocol import InferRequest
from service.rollout.evidence import ArmTally
from service.rollout.rollout import CANDIDATE, PRIMARY, Arm, Kind, Phase, Rollout
from service.scheduler import Limits, Scheduler
from service.state.sealed import Served
from service.transforming import Transforming

T = TypeVar("T")
NEVER_S = 30.0
LIMITS = Limits(requests=1024, bytes=2**28, inline_ms=1.0)
PATIENT: dict[str, Any] = {"max_latency_ms": 20_000.0}


@asynccontextmanager
async def core(fleet: Fleet) -> AsyncIterator[Inference]:
    metrics = Metrics(CollectorRegistry())
    scheduler, transforming = Scheduler(LIMITS), Transforming(LIMITS, metrics)
    try:
        yield Inference(fleet, scheduler, transforming, metrics)
    finally:
        scheduler.close()
        transforming.close()


def on_loop(scenario: Callable[[], Coroutine[Any, Any, T]]) -> T:
    async def run() -> T:
        async with asyncio.timeout(NEVER_S):
            return await scenario()

    return asyncio.run(run())


def request(rows: int = 1, seed: int = 0) -> InferRequest:
    image = np.random.default_rng(seed).uniform(0, 16, (rows, 64)).astype(np.float32)
    return InferRequest(None, {"image": image}, rows, (), False, {})


async def ask(core: Inference, model: LoadedModel, sent: InferRequest, **parameters: Any) -> Course:
    return await core.infer(model, None, sent, PATIENT | parameters, perf_counter())


def direct(variant: LoadedVariant, sent: InferRequest) -> Array:
    return variant.open().run(sent.inputs)[0]


def failing(inputs: Any) -> Any:
    raise RuntimeError("broken on purpose")


def noting(
    variant: LoadedVariant, ran: list[LoadedVariant], takes_s: float = 0.0
) -> Callable[[Any], list[Array]]:
    """A variant's `run` that notes that it ran, and takes its time."""
    run = variant.run

    def noted(inputs: Any) -> list[Array]:
        ran.append(variant)
        time.sleep(takes_s)
        return run(inputs)

    return noted


class Known:
    """Stands for the conductor: one rollout that runs, its tallies, and what is kept for labels."""

    def __init__(self, rollout: Rollout) -> None:
        self.rollout = rollout
        self.seal = None
        self.tallies: dict[str, ArmTally] = {arm.name: ArmTally() for arm in rollout.arms}
        self.kept: list[Served] = []

    def active(self, model: str, tier: str) -> Rollout | None:
        return self.rollout

    def tally(self, rollout: str, arm: str) -> ArmTally:
        return self.tallies[arm]

    def remember(self, answer: Served) -> None:
        self.kept.append(answer)

    async def judge(self, labels: Any, score: Any, age_s: float) -> list[Served]:
        found = [answer for answer in self.kept if answer.request in labels]
        self.scores = [score(answer, labels[answer.request]) for answer in found]
        return found


def rollout(candidate: LoadedVariant, weight: float = 100.0, **changes: Any) -> Rollout:
    arms = (
        Arm(PRIMARY, "fp32@000000000000", 100 - weight),
        Arm(CANDIDATE, candidate.version, weight, weight),
    )
    settings: dict[str, Any] = {"kind": Kind.AB, "phase": Phase.PROGRESSING, "tier": None} | changes
    return Rollout(id="r", model="digits", arms=arms, created=0, entered=0, deadline=1e12, **settings)


def named(primary: LoadedVariant, candidate: LoadedVariant, weight: float) -> Rollout:
    """A rollout whose primary is a variant of its own, and not whatever the router chooses."""
    arms = Arm(PRIMARY, primary.version, 100 - weight), Arm(CANDIDATE, candidate.version, weight, weight)
    return dataclasses.replace(rollout(candidate), arms=arms, keeps_primary=True)


def joined(serving: Inference, known: Known) -> Experiments:
    made = Experiments(known, serving.scheduler, serving.metrics, "rollouts", 1e9)  # type: ignore[arg-type]
    serving.experiments = made
    return made


def other_than(model: LoadedModel, usual: LoadedVariant) -> LoadedVariant:
    """A good variant that the router does not choose: it knows the usual one alone from now on."""
    floor = model.slo.default.floor
    model.candidates, known = [usual.candidate], model.candidates
    good = [model.variants[each.version] for each in known if each.ratio >= floor]
    return next(variant for variant in good if variant is not usual)


def refusing(bad: InferRequest, run: Callable[..., list[Array]]) -> Callable[..., list[Array]]:
    """A variant's `run` that cannot compute one row."""

    def raises(inputs: Any) -> list[Array]:
        if (inputs["image"] == bad.inputs["image"][0]).all(axis=1).any():
            raise RuntimeError("this row is too much")
        return run(inputs)

    return raises


def nan(variant: LoadedVariant) -> Callable[[Any], list[Array]]:
    return lambda inputs: [np.full((len(inputs["image"]), 10), np.nan, np.float32)]
