"""Plays rollouts against themselves thousands of times: how often they err, and how soon they notice.

`python -m tests.service.rollout.simulation` prints the tables of docs/rollouts.md.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, fields
from math import log

import numpy as np

from service.rollout.evidence import ArmEvidence, Comparisons, Feedback, Histogram
from service.rollout.guard import Guard, Relation, Scale, Source, parse_guard
from service.rollout.judgement import State, judge
from service.rollout.machine import advance
from service.rollout.rollout import Kind, Observation, Phase, Rollout
from service.rollout.sequences import ShareCapital
from tests.service.rollout.rollouts import rollout

Pair = tuple[ArmEvidence, ArmEvidence]


@dataclass(frozen=True)
class World:
    """The truth about a primary and a candidate: shares, and latencies around a median with a tail."""

    errors: tuple[float, float] = (0.0, 0.0)
    agreement: float = 1.0
    accuracy: tuple[float, float] = (0.95, 0.95)
    slower: float = 1.0


@dataclass(frozen=True)
class Played:
    """What came of many runs."""

    failed: float
    passed: float
    samples: tuple[float, float]

    def __str__(self) -> str:
        median, late = self.samples
        return f"{self.failed:7.1%} {self.passed:7.1%} {median:9.0f} {late:9.0f}"


def play(text: str, world: World, runs: int, looks: int, batch: int, seed: int = 0) -> Played:
    """Watches a guard in many runs and stops each at its first decision.

    Args:
        text: The guard.
        world: The truth.
        runs: How many runs.
        looks: How often each is looked at.
        batch: Samples per arm between two looks.
        seed: Decides all draws.

    Returns:
        Shares of runs that failed and passed; median and 90th percentile of samples until a decision.
    """
    guard = parse_guard(text)
    draws, states, samples = np.random.default_rng(seed), Counter[State](), []
    for _ in range(runs):
        for number, (primary, candidate) in _looks(guard, world, looks, batch, draws):
            state = judge(guard, primary, candidate).state
            if state is not State.UNDECIDED:
                states[state] += 1
                samples.append(number * batch)
                break
    median, late = np.percentile(samples or [np.nan], [50, 90])
    return Played(states[State.FAILS] / runs, states[State.PASSES] / runs, (float(median), float(late)))


def is_decided(guard: Guard, total: float, count: int) -> bool:
    """Whether a guard on a share is decided: what `judge` answers, without looking for an interval."""
    capital = ShareCapital(total, count, guard.threshold).against(guard.threshold)
    return count >= guard.samples and capital >= -log(1 - guard.confidence)


def run_canary(guards: tuple[str, ...], world: World, seed: int, per_tick: int = 100) -> Rollout:
    """A canary from its first step to its end, looked at every second under so many requests."""
    draws, now = np.random.default_rng(seed), 1000.0
    running = rollout(Kind.CANARY, *guards, deadline=1400.0)
    evidence = {arm.name: ArmEvidence() for arm in running.arms}
    while not running.phase.is_final:
        now += 1
        for arm, slower, errors in zip(running.arms, (1.0, world.slower), world.errors, strict=True):
            count = int(draws.binomial(per_tick, arm.weight / 100))
            seen = _requests(count, errors, slower, draws)
            if arm.name == "candidate" and count:
                seen = seen.merged(_compared(per_tick // 10, world.agreement, draws))
            evidence[arm.name] = evidence[arm.name].merged(seen)
        done = running.phase in (Phase.PROMOTING, Phase.FINALISING)
        if transition := advance(running, Observation(evidence, done), now):
            running = transition.rollout
    return running


def _looks(
    guard: Guard, world: World, looks: int, batch: int, draws: np.random.Generator
) -> Iterator[tuple[int, Pair]]:
    """The evidence at each look; of a guard on a share only where it is decided, as that is quicker."""
    if guard.statistic.scale is not Scale.SHARE or guard.relation is not Relation.VALUE:
        yield from enumerate(_stream(guard, world, looks, batch, draws), 1)
        return
    share = {"errors": world.errors[1], "agreement": world.agreement}[guard.name]
    totals = draws.binomial(batch, share, size=looks).cumsum().tolist()
    for number, total in enumerate(totals, 1):
        if is_decided(guard, total, number * batch):
            seen = ArmEvidence(number * batch, total, comparisons=Comparisons(number * batch, total))
            yield number, (ArmEvidence(), seen)


def _stream(guard: Guard, world: World, looks: int, batch: int, draws: np.random.Generator) -> Iterator[Pair]:
    primary = candidate = ArmEvidence()
    for _ in range(looks):
        if guard.statistic.source is Source.FEEDBACK:
            primary = primary.merged(_labelled(batch, world.accuracy[0], draws))
            candidate = candidate.merged(_labelled(batch, world.accuracy[1], draws))
        else:
            primary = primary.merged(_requests(batch, world.errors[0], 1.0, draws))
            candidate = candidate.merged(_requests(batch, world.errors[1], world.slower, draws))
        yield primary, candidate


def _requests(count: int, errors: float, slower: float, draws: np.random.Generator) -> ArmEvidence:
    failed = int(draws.binomial(count, errors))
    seconds = 0.005 * slower * np.exp(0.4 * draws.standard_normal(count - failed))
    buckets, counts = np.unique(np.floor(32 * np.log2(seconds / 1e-6)).astype(int), return_counts=True)
    return ArmEvidence(
        count, failed, latency=Histogram(dict(zip(buckets.tolist(), counts.tolist(), strict=True)))
    )


def _compared(count: int, agreement: float, draws: np.random.Generator) -> ArmEvidence:
    return ArmEvidence(comparisons=Comparisons(count, int(draws.binomial(count, agreement))))


def _labelled(count: int, accuracy: float, draws: np.random.Generator) -> ArmEvidence:
    return ArmEvidence(feedback=Feedback(count, int(draws.binomial(count, accuracy))))


_AT_THE_EDGE = (
    ("errors<=1%,n=1", World(errors=(0.0, 0.01)), 1000, 250, 20),
    ("agreement>=0.99,n=1", World(agreement=0.99), 1000, 250, 20),
    ("accuracy>=-1pt,n=1", World(accuracy=(0.95, 0.94)), 300, 50, 100),
    ("accuracy>=0.99x,n=1", World(accuracy=(0.95, 0.9405)), 300, 50, 100),
    ("p50<=1.2x,n=1", World(slower=1.2), 300, 50, 100),
    ("p99<=1.2x,n=1", World(slower=1.2), 300, 50, 100),
)
_EQUALS = (
    ("errors<=0.1%", World(), 300, 500, 100),
    ("agreement>=0.99", World(agreement=0.998), 300, 500, 20),
    ("accuracy>=-1pt", World(), 100, 150, 200),
    ("p99<=1.2x", World(), 100, 150, 200),
)
_WORSE = (
    ("errors<=1%,n=1", World(errors=(0.0, 1.0)), 300, 50, 1),
    ("errors<=1%", World(errors=(0.0, 0.03)), 300, 500, 20),
    ("errors<=0.1%", World(errors=(0.0, 0.01)), 300, 500, 20),
    ("agreement>=0.99", World(agreement=0.97), 300, 500, 20),
    ("agreement>=0.99", World(agreement=0.90), 300, 500, 5),
    ("accuracy>=-1pt", World(accuracy=(0.95, 0.90)), 100, 300, 50),
    ("p99<=1.2x", World(slower=1.5), 100, 300, 50),
    ("p99<=1.2x", World(slower=2.0), 100, 300, 50),
)
_CANARY = ("agreement>=0.99@95%,n=100", "p99<=1.2x", "errors<=1%")
_CANARIES = (
    ("equal, agreement 0.998", World(agreement=0.998)),
    ("agreement 0.95", World(agreement=0.95)),
    ("agreement at the threshold", World(agreement=0.99)),
    ("twice as slow", World(agreement=0.998, slower=2.0)),
    ("fails every request", World(errors=(0.0, 1.0))),
)


def main() -> None:
    """Prints how often guards err and how soon they decide."""
    for title, cases in (("at the threshold", _AT_THE_EDGE), ("within", _EQUALS), ("beyond", _WORSE)):
        print(f"\n{title:22} {'fails':>7} {'passes':>7} {'median n':>9} {'p90 n':>9}")
        for text, world, runs, looks, batch in cases:
            told = ", ".join(
                f"{field.name} {getattr(world, field.name)}"
                for field in fields(World)
                if getattr(world, field.name) != field.default
            )
            print(f"{text:22} {play(text, world, runs, looks, batch)}   {told}")
    for name, world in _CANARIES:
        ended = [run_canary(_CANARY, world, seed) for seed in range(20)]
        took = np.median([one.updated - 1000 for one in ended])
        print(f"canary, {name:28} {dict(Counter(one.phase.value for one in ended))} median {took:.0f} s")


if __name__ == "__main__":
    main()
