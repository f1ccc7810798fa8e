"""Thompson sampling: arms get traffic as often as they are likely to be the best.

Thompson (1933), On the likelihood that one unknown probability exceeds another; shares by simulation as in
Scott (2010), A modern Bayesian look at the multi-armed bandit.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from random import Random

from service.errors import BadRequestError
from service.rollout.evidence import ArmEvidence
from service.rollout.guard import Source
from service.rollout.sequences import Interval, difference_interval

FLOOR = 5.0  # percent of the requests that every arm keeps, so that it goes on being measured
_DRAWS = 2000
_ALPHA = 0.05
_USUAL = 0.9

Earned = tuple[float, int]  # sum of rewards 0..1, and of how many


@dataclass(frozen=True, slots=True)
class Reward:
    """What a bandit maximises: the mean of values 0..1.

    Attributes:
        text: As it was written.
        source: Where it comes from.
        of: Sum and number of the rewards of an arm.
    """

    text: str
    source: Source
    of: Callable[[ArmEvidence], Earned]


def _in_time(seen: ArmEvidence) -> int:
    """Requests that an arm answered itself in its time: what another did in its place earns it nothing."""
    return seen.asked - seen.failures


_REWARDS = {
    reward.text: reward
    for reward in (
        Reward("accuracy", Source.FEEDBACK, lambda seen: (seen.feedback.correct, seen.feedback.n)),
        Reward("in_time", Source.REQUESTS, lambda seen: (_in_time(seen), seen.requests)),
    )
}
_WITHIN = re.compile(r"within\s*(\d+(?:\.\d+)?)\s*ms")


def parse_reward(text: str) -> Reward:
    """Reads a reward: `accuracy`, `in_time`, or `within 20ms`.

    Raises:
        BadRequestError: It is none of these.
    """
    if match := _WITHIN.fullmatch(text.strip()):
        seconds = float(match[1]) / 1e3
        return Reward(text, Source.REQUESTS, lambda seen: (seen.latency.within(seconds), seen.requests))
    if text not in _REWARDS:
        raise BadRequestError(
            f'reward: "{text[:80]}" is none. Give accuracy (of labelled requests), in_time, or '
            'a limit such as "within 20ms".'
        )
    return _REWARDS[text]


def shares(earned: Mapping[str, Earned], seed: int) -> dict[str, float]:
    """The weight of each arm in percent: how likely it is the best, and no less than `FLOOR`.

    Args:
        earned: By the arm's name; without any reward an arm may be anything.
        seed: Decides the draws.
    """
    draws, wins = Random(seed), dict.fromkeys(earned, 0)
    posteriors = {name: (1 + total, 1 + count - total) for name, (total, count) in earned.items()}
    for _ in range(_DRAWS):
        wins[max(posteriors, key=lambda name: draws.betavariate(*posteriors[name]))] += 1
    spread = 100.0 - FLOOR * len(earned)
    return {name: FLOOR + spread * won / _DRAWS for name, won in wins.items()}


def lead(ours: Earned, primary: Earned, candidates: int) -> Interval | None:
    """How much more a candidate earns than the primary, always valid; None while one of them earned nothing.

    Args:
        ours: What the candidate earned.
        primary: What the primary earned.
        candidates: How many candidates share the chance of being wrong.
    """
    if not ours[1] or not primary[1]:
        return None
    return difference_interval(ours, primary, _ALPHA / candidates, _USUAL)
