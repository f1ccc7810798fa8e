"""The servers of one part: started, checked, at rest until their turn. Who fails is a hole with a reason."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType

import psutil

from loadtests.bench.arithmetic import Sample
from loadtests.bench.environments import InstallError
from loadtests.bench.processes import Peer, PeerError, Server, started
from loadtests.bench.requests import Request
from loadtests.bench.wrk import WrkError, run_wrk

_LOOK_S = 0.5


@dataclass(frozen=True)
class Settings:
    """How to measure.

    Attributes:
        rounds: How often, in another order each time.
        seconds: Length of each closed loop; open loops take twice as long.
        peers: Who stands beside the gateway.
        model: The real model; None takes the first of those that are built.
        rows: Rows of each check at most.
        progress: Told of each step.
    """

    rounds: int
    seconds: int
    peers: tuple[str, ...]
    model: str | None
    rows: int
    progress: Callable[[str], None]


@dataclass(frozen=True)
class Contender:
    """What is measured under one name.

    Attributes:
        server: Who answers.
        requests: What it is sent, in turn.
    """

    server: Server
    requests: Sequence[Request]

    def run(self, connections: int, seconds: float, pause_ms: float = 0.0) -> Sample | None:
        """One closed loop; None when the server no longer answers."""
        with self.server.awake():
            try:
                return run_wrk(self.server.port, self.requests, connections, seconds, pause_ms)
            except WrkError as error:
                print(f"{self.server.peer.name}: {error}", file=sys.stderr)
                return None


@dataclass
class Stage:
    """Servers side by side.

    Attributes:
        folder: For their homes and logs.
        progress: Told who starts.
        servers: Those that answer, at rest.
        holes: Why others are missing.
        rollout_hole: Why no rollout ran.
        busy: Share of the machine that other work took, each time that one looked.
    """

    folder: Path
    progress: Callable[[str], None]
    servers: dict[str, Server] = field(default_factory=dict)
    holes: dict[str, str] = field(default_factory=dict)
    rollout_hole: str = ""
    busy: list[float] = field(default_factory=list)
    _stack: ExitStack = field(default_factory=ExitStack)

    def __enter__(self) -> Stage:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._stack.close()

    def start(
        self, name: str, make: Callable[[Path], Peer], probe: Callable[[Peer], Request]
    ) -> Server | None:
        """Starts a server and lets it rest; None where it is a hole.

        Args:
            name: Under which it stands here.
            make: Describes it, given a folder of its own.
            probe: A request that it should answer.
        """
        place = self.folder / f"{len(self.servers) + len(self.holes)}"
        self.progress(f"starting {name}")
        try:
            peer = make(place)
            server = self._stack.enter_context(started(peer, probe(peer), place.with_suffix(".log")))
        except (PeerError, InstallError) as error:
            self.hole(name, str(error))
            return None
        server.sleep()
        self.servers[name] = server
        return server

    def hole(self, name: str, why: str) -> None:
        """Notes why someone cannot be measured."""
        self.progress(f"{name} is missing: {why}")
        self.holes[name] = why

    @contextmanager
    def checking(self, name: str, server: Server) -> Iterator[None]:
        """Awake for a check; who fails it is a hole."""
        try:
            with server.awake():
                yield
        except PeerError as error:
            self.hole(name, str(error))

    def look(self) -> None:
        """Notes how busy the machine is while no server is asked."""
        self.busy.append(psutil.cpu_percent(_LOOK_S) / 100)


def turned(names: Sequence[str], number: int) -> list[str]:
    """Another order each round, so that a drift of the machine favours nobody."""
    if not names:
        return []
    turn = number % len(names)
    return [*names[turn:], *names[:turn]]


def round_of(
    contenders: Mapping[str, Contender], number: int, connections: int, seconds: float
) -> dict[str, Sample | None]:
    """One closed loop of each contender."""
    order = turned(list(contenders), number)
    return {name: contenders[name].run(connections, seconds) for name in order}
