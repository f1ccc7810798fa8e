"""A worker as a process of its own, which a test may kill: `python -m tests.service.state.worker URL NAME`.

Prints a line for each turn. `--hang` says so and stops when a change of a rollout is written and not yet
committed; `--stop` when it is about to be written.
"""

import os
import signal
import sys
import time
from typing import Any

import service.state.rollouts as room
from service.conducting import Ages, Conducting
from service.state.database import Database
from service.state.rollouts import RolloutStore
from variants.catalog import Catalog

_remember = room._remember
_record = RolloutStore.record


def hang(*arguments: Any) -> None:
    _remember(*arguments)
    print("in the middle", flush=True)
    signal.pause()


def stop(*arguments: Any) -> None:
    print("about to", flush=True)
    os.kill(os.getpid(), signal.SIGSTOP)
    _record(*arguments)


def main(url: str, name: str, *flags: str) -> None:
    if "--hang" in flags:
        room._remember = hang
    if "--stop" in flags:
        RolloutStore.record = stop  # type: ignore[assignment]
    worker = Conducting(Database(url), Catalog(), name, lambda model, version: True, Ages(60, 60))
    while True:
        print("holds" if worker.turn(None).is_holder else "follows", flush=True)
        time.sleep(0.02)


if __name__ == "__main__":
    main(*sys.argv[1:])
