"""The builder: takes jobs of running gateways and runs each as a command of its own.

`python -m service.building`, which `mipgate builder` starts. It needs the extra `build`; gateways do not.
"""

from __future__ import annotations

import importlib.util
import json
import logging
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
from collections import deque
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import IO, Any

from service.conducting import BUILDERS
from service.config import ConfigError, config
from service.state.database import Database, StateAwayError, StateNewerError, StateUrlError
from service.state.jobs import Job, JobStore, Kind, State
from service.state.leases import Lease, Leases
from variants.catalog import Catalog
from variants.home import subfolder
from variants.store import CatalogError

log = logging.getLogger("mipgate.builder")

_TICK_S = 0.5
_PRESENT_S = 5.0
_LEASE_S = 15.0
_KILL_AFTER_S = 10.0
_LINES_KEPT = 20
_COMMAND = (sys.executable, "-c", "from variants.cli.main import main; main()")


class JobError(Exception):
    """A job cannot be done; the message says why."""


class Progress:
    """What a child says on its standard error: how far it is, and what else, which tells why it failed."""

    def __init__(self, stream: IO[str]) -> None:
        self.phrase, self.fraction = "begins", 0.0
        self._fractions: dict[str, float] = {}
        self._said: deque[str] = deque(maxlen=_LINES_KEPT)
        self._reader = threading.Thread(target=self._read, args=(stream,), daemon=True)
        self._reader.start()

    def _read(self, stream: IO[str]) -> None:
        for line in stream:
            try:
                told = json.loads(line)
                self._fractions[told["task"]] = float(told["fraction"])
                self.phrase = f"{told['task']}: {told['what']}"
            except (ValueError, KeyError, TypeError):
                self._said.append(line.rstrip())
                print(line, end="", file=sys.stderr, flush=True)
            else:  # tasks turn up one by one, and a job never goes back
                mean = sum(self._fractions.values()) / len(self._fractions)
                self.fraction = max(self.fraction, min(mean, 0.99))

    def reason(self) -> str:
        """The last of what it said, without a traceback's lines."""
        self._reader.join(_TICK_S)
        errors = [line for line in self._said if line.startswith("Error: ")]
        return errors[-1].removeprefix("Error: ") if errors else "\n".join(self._said)[-2000:]


class Builder:
    """Does one job after another."""

    def __init__(self, database: Database, catalog: Catalog, command: Sequence[str] = _COMMAND) -> None:
        self.name = f"{os.getpid()}-{secrets.token_hex(4)}"
        self._command = command
        self._database = database
        self._catalog = catalog
        self._jobs = JobStore(database)
        self._leases = Leases(database)
        self._stopping = threading.Event()
        self._away = False
        self._presence: Lease | None = None

    def stop(self) -> None:
        """Ends the work; a job that runs waits for the next builder."""
        self._stopping.set()

    def run(self) -> None:
        """Works until it is stopped."""
        migrated = False
        while not self._stopping.is_set():
            job = None
            try:
                if not migrated:
                    self._database.migrate()
                    migrated = True
                self._announce()
                job = self._jobs.take(self.name, _LEASE_S)
                self._is_back()
            except StateAwayError as error:
                self._is_away(error)
            if job is None:
                self._stopping.wait(_TICK_S)
            else:
                self._do(job)
        with suppress(StateAwayError):  # it is forgotten by itself
            self._leave()

    def _announce(self) -> None:
        self._presence = self._leases.take(f"{BUILDERS}{self.name}", self.name, _PRESENT_S)

    def _leave(self) -> None:
        if self._presence is not None:
            self._leases.give_back(self._presence)

    def _do(self, job: Job) -> None:
        log.info("job %s: %s of %s, attempt %d", job.id, job.kind.value, job.model, job.attempts)
        with tempfile.TemporaryDirectory(dir=subfolder("work")) as folder:
            try:
                arguments = _arguments(job, self._catalog, Path(folder))
                before = _versions(self._catalog, job.model)
                ended = self._run(job, arguments)
                if ended is None:
                    return
                result = _result(job, self._catalog, before)
            except (JobError, CatalogError, OSError) as error:
                self._finish(job, State.FAILED, str(error))
            else:
                self._finish(job, ended, None, result)

    def _run(self, job: Job, arguments: list[str]) -> State | None:
        """Runs a job's command to its end.

        Returns:
            How it ended, or None when the job is another's now.

        Raises:
            JobError: The command failed.
        """
        environment = os.environ | {"MIPGATE_PROGRESS": "json"}
        with subprocess.Popen(
            [*self._command, *arguments],
            env=environment,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",
            start_new_session=True,  # so that all of its children can be stopped with it
        ) as child:
            assert child.stderr is not None
            progress = Progress(child.stderr)
            try:
                verdict = self._watch(job, child, progress)
            finally:
                _kill(child)
        if verdict is not None:
            return verdict if verdict is State.CANCELLED else None
        if child.returncode:
            raise JobError(progress.reason() or f"the command ended with status {child.returncode}.")
        return State.SUCCEEDED

    def _watch(self, job: Job, child: subprocess.Popen[str], progress: Progress) -> State | None:
        """Tells how far the child is until it ends.

        Returns:
            None when it ended by itself, CANCELLED when it was asked to, QUEUED when the job is another's.
        """
        while True:
            with suppress(subprocess.TimeoutExpired):
                child.wait(_TICK_S)
                return None
            if self._stopping.is_set():
                with suppress(StateAwayError):
                    self._jobs.give_back(job, self.name)
                return State.QUEUED
            try:
                self._announce()
                told = self._jobs.progress(job, self.name, progress.phrase, progress.fraction, _LEASE_S)
                self._is_back()
            except StateAwayError as error:
                self._is_away(error)
                continue
            if told is None:
                log.warning("job %s is another builder's now", job.id)
                return State.QUEUED
            if told.cancelling:
                return State.CANCELLED

    def _finish(self, job: Job, state: State, error: str | None, result: Any = None) -> None:
        """Tells how a job ended, however long the database is away."""
        log.info("job %s has %s%s", job.id, state.value, f": {error}" if error else "")
        while True:
            try:
                self._jobs.finish(job, self.name, state, error, result)
                return
            except StateAwayError as away:
                self._is_away(away)
            if self._stopping.wait(_TICK_S):
                return

    def _is_away(self, error: StateAwayError) -> None:
        if not self._away:
            log.error("%s. The builder waits", error)
        self._away = True

    def _is_back(self) -> None:
        if self._away:
            log.warning("the database answers again")
        self._away = False


def _arguments(job: Job, catalog: Catalog, folder: Path) -> list[str]:
    """The command line of a job; only registered models, so that no job imports what it names."""
    if job.model not in catalog.models():
        raise JobError(f'no model "{job.model}" is registered where the builder runs. Add it there.')
    given = job.arguments
    if job.kind is Kind.PROFILE:
        return ["profile", "--json", job.model]
    if job.kind is Kind.SEARCH:
        names = {"min_accuracy": "--min-accuracy", "objective": "--objective", "trials": "--trials"}
        options = [f"{option}={given[name]}" for name, option in names.items() if name in given]
        return ["search", *options, job.model]
    if "recipe" in given:
        return ["build", "--quiet", f"--recipe={given['recipe']}", job.model]
    file = folder / "recipe.json"
    file.write_text(json.dumps(given))
    return ["build", "--quiet", f"--recipe-file={file}", job.model]


def _versions(catalog: Catalog, model: str) -> set[str]:
    return {entry.id.version for entry in catalog.card(model).entries}


def _result(job: Job, catalog: Catalog, before: set[str]) -> dict[str, Any]:
    """What came of a job.

    Raises:
        JobError: The recipe has no artifact; the message says why.
    """
    card = catalog.card(job.model)
    if job.kind is Kind.BUILD:
        recipe = job.arguments.get("recipe") or job.arguments["name"]
        builds = [each for each in card.entries if each.id.recipe == recipe]
        new = [each for each in builds if each.id.version not in before]
        entry = (new or builds)[-1]  # and not the released one, which the recipe's name stands for
        if entry.failure is not None:
            raise JobError(f"{entry.failure.status.value}: {entry.failure.reason}")
        return {"variant": entry.id.version, "life": entry.life.value}
    return {"variants": [entry.id.version for entry in card.entries if entry.id.version not in before]}


def _kill(child: subprocess.Popen[str]) -> None:
    """Stops a child with all that it started."""
    for number in (signal.SIGTERM, signal.SIGKILL):
        with suppress(ProcessLookupError):
            os.killpg(child.pid, number)
        with suppress(subprocess.TimeoutExpired):
            child.wait(_KILL_AFTER_S)


def main() -> None:
    """Works until it is told to stop."""
    logging.basicConfig(level=logging.INFO, format="%(levelname)s %(name)s: %(message)s")
    if importlib.util.find_spec("torch") is None:
        sys.exit("A builder needs what builds. Install mipgate[build].")
    try:
        database = Database(config().state)
    except (ConfigError, StateUrlError) as error:
        sys.exit(str(error))
    builder = Builder(database, Catalog())
    for number in (signal.SIGTERM, signal.SIGINT):
        signal.signal(number, lambda *_: builder.stop())
    log.info("builder %s waits for jobs at %s", builder.name, database)
    try:
        builder.run()
    except StateNewerError as error:
        sys.exit(str(error))
    finally:
        database.close()


if __name__ == "__main__":
    main()
