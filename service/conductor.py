"""What a worker knows of the shared state, never waiting for it: a task takes turns in a thread."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from typing import Any

from service.conducting import Conducting, Turn
from service.errors import NotFoundError
from service.metrics import Metrics
from service.rollout.evidence import ArmTally, Feedback
from service.rollout.rollout import Phase, Rollout
from service.state.database import StateAwayError, StateNewerError
from service.state.evidence import Batch, EvidenceStore
from service.state.sealed import Seal, Served

log = logging.getLogger("mipgate.conductor")

TICK_S = 0.25
_MOST_SERVED = 20_000

_Active = dict[tuple[str, str | None], Rollout]


class Conductor:
    """Follows the shared state."""

    def __init__(self, conducting: Conducting, evidence: EvidenceStore, metrics: Metrics) -> None:
        self._conducting = conducting
        self._evidence = evidence
        self._metrics = metrics
        self._thread = ThreadPoolExecutor(1, "mipgate-state")
        self._active: _Active = {}
        self._tallies: dict[tuple[str, str], ArmTally] = {}
        self._served: list[Served] = []
        self._dropped = 0
        self._number = 0
        self._seal: Seal | None = None
        self._pending: Batch | None = None
        self._away_since: float | None = None
        self._hurry = asyncio.Event()
        self._turning = asyncio.Lock()
        self._task: asyncio.Task[None] | None = None

    # For the path of a request

    def active(self, model: str, tier: str) -> Rollout | None:
        """The rollout that a request of this model and tier takes part in."""
        active = self._active
        return (active.get((model, tier)) or active.get((model, None))) if active else None

    def tally(self, rollout: str, arm: str) -> ArmTally:
        """Where what is seen of an arm is counted."""
        key = rollout, arm
        tally = self._tallies.get(key)
        if tally is None:
            tally = self._tallies[key] = ArmTally()
        return tally

    @property
    def seal(self) -> Seal | None:
        """Makes ids that carry an answer; None where answers have to be remembered."""
        return self._seal

    def remember(self, answer: Served) -> None:
        """Keeps an answer for a label that may come; the log says when it does not."""
        if len(self._served) < _MOST_SERVED:
            self._served.append(answer)
        else:
            self._dropped += 1

    # For operation

    @property
    def state(self) -> str:
        """`ok`, or `away` while the database does not answer and everything stays as it was."""
        return "ok" if self._away_since is None else "away"

    def hurry(self) -> None:
        """Has the next turn taken at once, after an operator's change."""
        self._hurry.set()

    async def judge(
        self, labels: Mapping[str, Any], score: Callable[[Served, Any], Feedback], age_s: float
    ) -> list[Served]:
        """Joins labels with their answers, each once: all of them, or none.

        An answer that is not there yet may have been given by a worker that has not written it yet: it is
        looked for once more.

        Raises:
            NotFoundError: No answer with such an id is known, or it is too old.
            ConflictError: An answer was judged already.
            StateAwayError: The database does not answer.
        """
        if self._served:
            await self._turn()
        try:
            return await asyncio.to_thread(self._evidence.judge, labels, score, age_s)
        except NotFoundError:
            await asyncio.sleep(2 * TICK_S)
            return await asyncio.to_thread(self._evidence.judge, labels, score, age_s)

    async def start(self) -> None:
        """Learns what runs before the first request, and follows from then on."""
        await self._turn()
        self._task = asyncio.create_task(self._follow())

    async def stop(self) -> None:
        """Writes what is left, and lets another worker advance rollouts."""
        if self._task is not None:
            self._task.cancel()
            with suppress(asyncio.CancelledError):
                await self._task
        is_behind = self._pending is not None
        await self._turn()
        if is_behind and self._away_since is None:  # it wrote what had waited; now what was seen since
            await self._turn()
        if self._away_since is None:
            with suppress(StateAwayError):  # the lease expires by itself
                await asyncio.get_running_loop().run_in_executor(self._thread, self._conducting.end)
        self._thread.shutdown(wait=False)

    async def _follow(self) -> None:
        while True:
            with suppress(TimeoutError):
                await asyncio.wait_for(self._hurry.wait(), TICK_S)
            self._hurry.clear()
            await self._turn()

    async def _turn(self) -> None:
        async with self._turning:
            if self._pending is None:
                self._pending = self._collect()
            try:
                turn = await asyncio.get_running_loop().run_in_executor(
                    self._thread, self._conducting.turn, self._pending
                )
            except (StateAwayError, StateNewerError) as error:
                if self._away_since is None:
                    self._away_since = time.monotonic()
                    log.error("%s. Rollouts stay as they are, and labels are refused, until it does", error)
            except Exception:  # requests go on, and so must this
                log.exception("a turn at the shared state failed; what this worker saw in it is lost")
                self._pending = None
            else:
                self._pending = None
                self._heed(turn)

    def _collect(self) -> Batch | None:
        """What was seen since the last batch."""
        seen = {key: tally.take() for key, tally in self._tallies.items()}
        running = {rollout.id for rollout in self._active.values()}
        self._tallies = {key: tally for key, tally in self._tallies.items() if key[0] in running}
        served, self._served = self._served, []
        if self._dropped:
            log.warning("%d answers are not kept for labels: too many wait to be written", self._dropped)
            self._dropped = 0
        evidence = {key: counts for key, counts in seen.items() if counts != _NOTHING}
        if not evidence and not served:
            return None
        self._number += 1
        return Batch(self._number, evidence, served)

    def _heed(self, turn: Turn) -> None:
        """Takes over what a turn found."""
        if self._away_since is not None:
            log.warning("the database answers again, after %.1f s", time.monotonic() - self._away_since)
            self._away_since = None
        self._seal = turn.seal or self._seal
        self._active = {(rollout.model, rollout.tier): rollout for rollout in turn.running.values()}
        for rollout in turn.changed:
            self._tell(rollout)
        for transition in turn.transitions:
            after = transition.rollout
            self._metrics.rollout_transitions.labels(after.model, after.phase.value).inc()
            for figure in transition.figures:
                self._metrics.judged(after.model, figure)
        for model, verdict in turn.verdicts:
            self._metrics.judged(model, verdict.to_json())
        for job in turn.ended:
            self._metrics.builds.labels(job.model, job.state.value).inc()
            if job.started is not None and job.finished is not None:
                self._metrics.build_duration.labels(job.model).observe(job.finished - job.started)

    def _tell(self, rollout: Rollout) -> None:
        for arm in rollout.arms:
            self._metrics.rollout_weight.labels(rollout.model, arm.name).set(arm.weight / 100)
        for arm in rollout.contenders:
            self._metrics.watched(rollout.model, arm.name, [guard.name for guard in rollout.guards])
        for phase in Phase:
            self._metrics.rollout_phase.labels(rollout.model, phase.value).set(float(phase is rollout.phase))


_NOTHING = ArmTally().take()
