"""A worker's turn at the shared state: write what it saw, follow rollouts, and, as holder, advance them.

Synchronous, and called from one thread. A turn that is cut off anywhere is taken up by the next, of whichever
worker: what a phase waits for can be carried out twice.
"""

from __future__ import annotations

import logging
import secrets
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

from service.access.store import AccessStore
from service.errors import NotFoundError
from service.rollout.judgement import Verdict, judge_candidates
from service.rollout.machine import advance, withdraw
from service.rollout.rollout import Arm, Observation, Outcome, Phase, Rollout, Transition
from service.state.database import Database, StateAwayError
from service.state.evidence import Batch, EvidenceStore, Seen
from service.state.jobs import Job, JobStore
from service.state.leases import FencedError, Lease, Leases, check, forget
from service.state.rollouts import RolloutStore, StaleError
from service.state.sealed import Seal
from variants.card import Card
from variants.catalog import Catalog, CatalogBusyError
from variants.document import DocumentError
from variants.store import CatalogError
from variants.variant import Life

log = logging.getLogger("mipgate.conducting")

LEASE = "conductor"
BUILDERS = "builder/"
_LEASE_S = 2.0
_RENEW_S = 0.5
_PRUNE_S = 60.0


@dataclass(frozen=True)
class Ages:
    """How long what has ended is kept, in seconds: answers that wait for labels; rollouts, jobs and audit."""

    feedback_s: float
    history_s: float


@dataclass(frozen=True)
class Turn:
    """What a turn found.

    Attributes:
        running: Rollouts that have not ended, by id.
        changed: Those that differ from the turn before, with those that have ended since.
        transitions: The changes that this worker made.
        verdicts: What the evidence says of guards whose rollouts stay as they are, by model.
        ended: Jobs that ended since the turn before; only the holder of the lease is told.
        is_holder: Whether this worker advances rollouts.
        seal: What makes ids that carry their answer.
    """

    running: Mapping[str, Rollout] = field(default_factory=dict)
    changed: tuple[Rollout, ...] = ()
    transitions: tuple[Transition, ...] = ()
    verdicts: tuple[tuple[str, Verdict], ...] = ()
    ended: tuple[Job, ...] = ()
    is_holder: bool = False
    seal: Seal | None = None


class Conducting:
    """Takes one worker's turns.

    Args:
        database: The shared state.
        catalog: Where candidates are released and retired.
        worker: A name that no other process has or had.
        is_loaded: Whether `recipe@build` of a model answers here.
        ages: How long things are kept.
    """

    def __init__(
        self,
        database: Database,
        catalog: Catalog,
        worker: str,
        is_loaded: Callable[[str, str], bool],
        ages: Ages,
    ) -> None:
        self._database = database
        self._catalog = catalog
        self._worker = worker
        self._is_loaded = is_loaded
        self._ages = ages
        self._rollouts = RolloutStore(database)
        self._evidence = EvidenceStore(database)
        self._jobs = JobStore(database)
        self._access = AccessStore(database)
        self._leases = Leases(database)
        self._lease: Lease | None = None
        self._renewed = self._pruned = float("-inf")
        self._looked: float | None = None
        self._migrated = False
        self._known: dict[str, Rollout] = {}
        self._seen: dict[str, Seen] = {}
        self._verdicts: list[tuple[str, Verdict]] = []
        self._complained: set[str] = set()

    def turn(self, batch: Batch | None) -> Turn:
        """Takes a turn.

        Raises:
            StateAwayError: The database does not answer; the batch may be given again.
        """
        if not self._migrated:
            self._database.migrate()
            self._migrated = True
        if batch is not None:
            self._evidence.write(self._worker, batch)
        running = self._rollouts.running(self._known)
        transitions: list[Transition] = []
        self._verdicts = []
        ended: list[Job] = []
        lease = self._held()
        if lease is not None:
            try:
                now = self._now()
                transitions = [t for r in running.values() if (t := self._advanced(r, lease, now))]
                ended = self._ended_jobs(now)
                self._prune(lease)
            except FencedError as error:
                log.warning("%s; this worker follows", error)
                self._lease = lease = None
        for transition in transitions:
            running[transition.rollout.id] = transition.rollout
        changed = [*self._changed(running)]
        self._known = {i: rollout for i, rollout in running.items() if not rollout.phase.is_final}
        self._seen = {i: seen for i, seen in self._seen.items() if i in self._known}
        return Turn(
            self._known,
            tuple(changed),
            tuple(transitions),
            tuple(self._verdicts),
            tuple(ended),
            lease is not None,
            self._evidence.seal(),
        )

    def end(self) -> None:
        """Lets another worker advance rollouts at once.

        Raises:
            StateAwayError: The database does not answer; the lease expires by itself.
        """
        if self._lease is not None:
            self._leases.give_back(self._lease)
            self._lease = None

    def _held(self) -> Lease | None:
        """The lease, if it is or becomes this worker's."""
        now = time.monotonic()
        if self._lease is None or now - self._renewed > _RENEW_S:
            before, self._lease = self._lease, self._leases.take(LEASE, self._worker, _LEASE_S)
            self._renewed = now
            if self._lease is not None and before is None:
                log.info("%s advances rollouts, token %d", self._worker, self._lease.token)
        return self._lease

    def _advanced(self, rollout: Rollout, lease: Lease, now: float) -> Transition | None:
        """Advances a rollout, if the evidence says so; one that cannot be does not hold up the others."""
        try:
            return self._moved(rollout, lease, now)
        except (FencedError, StateAwayError):
            raise
        except Exception:
            complaint = f"rollout {rollout.id} cannot be advanced in version {rollout.version}"
            if complaint not in self._complained:
                self._complained.add(complaint)
                log.exception("%s", complaint)
            return None

    def _moved(self, rollout: Rollout, lease: Lease, now: float) -> Transition | None:
        read = self._evidence.compact(rollout.id, lease, self._seen.pop(rollout.id, None))
        self._seen[rollout.id], seen = read, read.evidence
        if withdrawn := self._withdrawn(rollout):
            transition: Transition | None = withdraw(rollout, withdrawn, now)
        else:
            observation = Observation(seen, self._carried_out(rollout, lease), secrets.randbits(32))
            transition = advance(rollout, observation, now)
        if transition is None:
            if rollout.phase in (Phase.PROGRESSING, Phase.WAITING):
                self._verdicts += [(rollout.model, verdict) for verdict in judge_candidates(rollout, seen)]
            return None
        try:
            self._rollouts.record(transition, lease)
        except StaleError:  # an operator was faster; the next turn sees it
            return None
        after = transition.rollout
        log.info("rollout %s of %s: %s; %s", after.id, after.model, after.phase.value, transition.reason)
        return transition

    def _now(self) -> float:
        with self._database.reading() as connection:
            return self._database.now(connection)

    def _carried_out(self, rollout: Rollout, lease: Lease) -> bool:
        """Whether what the phase waits for is done; does it where that is ours to do."""
        if rollout.phase is Phase.INITIALIZING:
            return all(self._is_loaded(rollout.model, arm.variant) for arm in rollout.arms)
        if rollout.phase is Phase.PROMOTING:
            return self._move(rollout, _passed(rollout), Life.RELEASED, lease)
        if rollout.phase is Phase.FINALISING:
            failed = [arm for arm in rollout.candidates if arm.outcome is Outcome.FAILED]
            return self._move(rollout, failed if rollout.retire_failed else [], Life.RETIRED, lease)
        return False

    def _withdrawn(self, rollout: Rollout) -> list[Arm]:
        """Candidates about to be released whose build an operator retired or removed."""
        if rollout.phase is not Phase.PROMOTING or self._catalog.is_pinned:
            return []
        try:
            return _gone(self._catalog.card(rollout.model), _passed(rollout))
        except (CatalogError, DocumentError):
            return []  # releasing meets the same, and says so

    def _move(self, rollout: Rollout, arms: Sequence[Arm], life: Life, lease: Lease) -> bool:
        """Gives variants another life in the catalog; a Bento serves what it packed, whatever follows."""
        versions = {arm.variant for arm in arms}
        if not versions or self._catalog.is_pinned:
            return True

        def edit(card: Card) -> Card:
            self._rollouts.check(rollout, lease)
            if life is Life.RELEASED and _gone(card, arms):
                raise StaleError("a candidate was retired or removed; the next turn drops it", rollout)
            for entry in card.entries:
                if entry.id.version in versions and entry.life is not life:
                    card = card.with_life(entry.id, life)
            return card

        try:
            self._catalog.change(rollout.model, edit, wait_s=0)
        except (CatalogBusyError, StaleError):  # the next turn tries again, or sees what an operator did
            return False
        except (CatalogError, DocumentError) as error:
            complaint = f"rollout {rollout.id} stays {rollout.phase.value}: {error}"
            if complaint not in self._complained:
                self._complained.add(complaint)
                log.error("%s", complaint)
            return False
        return True

    def _changed(self, running: Mapping[str, Rollout]) -> Iterable[Rollout]:
        for known in self._known.values():
            if known.id not in running:
                try:
                    yield self._rollouts.find(known.id)
                except NotFoundError:
                    log.warning("rollout %s was deleted", known.id)
        for rollout in running.values():
            known_before = self._known.get(rollout.id)
            if known_before is None or known_before.version != rollout.version:
                yield rollout

    def _ended_jobs(self, now: float) -> list[Job]:
        since, self._looked = self._looked, now
        return [] if since is None else self._jobs.ended(since, now)

    def _prune(self, lease: Lease) -> None:
        now = time.monotonic()
        if now - self._pruned < _PRUNE_S:
            return
        self._pruned = now
        with self._database.writing() as connection:
            check(connection, lease)
            present = self._database.now(connection)
            self._evidence.prune(connection, present - self._ages.feedback_s)
            self._rollouts.prune(connection, present - self._ages.history_s)
            self._jobs.prune(connection, present - self._ages.history_s)
            self._access.prune(connection, present, present - self._ages.history_s)
            forget(connection, BUILDERS, present - _PRUNE_S)


def _passed(rollout: Rollout) -> list[Arm]:
    return [arm for arm in rollout.candidates if arm.outcome is Outcome.PASSED]


def _gone(card: Card, arms: Iterable[Arm]) -> list[Arm]:
    """Arms whose build an operator retired or removed."""
    lives = {entry.id.version: entry.life for entry in card.entries}
    return [arm for arm in arms if lives.get(arm.variant, Life.RETIRED) is Life.RETIRED]
