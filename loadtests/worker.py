"""A Locust worker that sends its share of a schedule at the times drawn beforehand, whatever the answers do.

    locust -f loadtests/worker.py --worker --master-host HOST --master-port PORT --samples samples.npz

`loadtests.crew` is the master. For each load it sends a share (`prepare`), and once every worker has its
requests ready, the moment to begin (`play`). Requests that are due get a connection of their own when all
others wait for an answer: the number of users is not given, it follows from the load (an open loop).
"""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import gevent
from gevent.event import AsyncResult
from gevent.pool import Pool
from gevent.queue import Queue
from locust import User, events, task
from locust.contrib.fasthttp import FastHttpSession
from locust.runners import WorkerRunner

from loadtests.samples import Body, Samples, SamplesError, read_samples
from loadtests.schedule import Schedule, read_message
from loadtests.tally import Tally
from loadtests.targets import Target
from loadtests.users import Due, ask

_TIMEOUT_S = 60.0
_WARM_CONNECTIONS = 4
# Without a pause now and then a late dispatcher would starve the requests that it has begun.
_BREATH = 16

shares: Queue[Share] = Queue()


class Share:
    """What this worker sends in one load.

    Attributes:
        begin: Unix time at which to begin, once the master has told it.
    """

    def __init__(self, message: dict[str, Any], samples: Samples) -> None:
        self.schedule: Schedule = read_message(message)
        self.targets = [Target(**fields) for fields in message["asked"]]
        self.url: str = message["url"]
        self.allow_degrade: bool = message["allow_degrade"]
        self.most_open: int = message["most_open"]
        self.begin: AsyncResult[float] = AsyncResult()
        degrading = {"allow_degrade": True} if self.allow_degrade else {}
        pairs = zip(self.schedule.targets.tolist(), self.schedule.rows.tolist(), strict=True)
        self.bodies: dict[tuple[int, int], Body] = {
            (target, row): samples.body(
                row, self.targets[target].parameters() | degrading, binary=message["binary"]
            )
            for target, row in set(pairs)
        }


class Player(User):
    """One per worker: plays share after share."""

    @task
    def play(self) -> None:
        """Sends one share and hands back what became of it."""
        share = shares.get()
        runner = self.environment.runner
        sessions = [_session(self.environment, share.url) for _ in range(_WARM_CONNECTIONS)]
        _warm_up(share, sessions)
        runner.send_message("prepared")
        begin = share.begin.get()
        start = time.perf_counter() + begin - time.time()
        tally = Tally()
        cpu_s = _send(share, start, tally, sessions, self.environment)
        runner.send_message(
            "played",
            {
                "rows": tally.rows.tobytes(),
                "names": list(tally.names),
                "failures": dict(tally.failures),
                "cpu": cpu_s / share.schedule.seconds,
            },
        )


def _send(
    share: Share, start: float, tally: Tally, sessions: list[FastHttpSession], environment: Any
) -> float:
    """Sends every request when it is due; gives the processor seconds that this took."""
    pool, schedule = Pool(share.most_open), share.schedule

    def one(place: int, at_s: float) -> None:
        session = sessions.pop() if sessions else _session(environment, share.url)
        target, row = int(schedule.targets[place]), int(schedule.rows[place])
        body = share.bodies[target, row]
        due = Due(start, at_s)
        ask(session, share.targets[target], body, tally, due=due, allow_degrade=share.allow_degrade)
        sessions.append(session)

    gevent.sleep(max(0.0, start - time.perf_counter()))
    used = time.process_time()
    for place, at_s in enumerate(schedule.times.tolist()):
        wait = start + at_s - time.perf_counter()
        if wait > 0:
            gevent.sleep(wait)
        elif place % _BREATH == 0:
            gevent.sleep(0)
        pool.spawn(one, place, at_s)
    gevent.sleep(max(0.0, start + schedule.seconds - time.perf_counter()))
    used = time.process_time() - used
    pool.join()
    return used


def _warm_up(share: Share, sessions: list[FastHttpSession]) -> None:
    """Opens connections before the load begins; what is answered does not count."""
    for session, ((target, _), body) in zip(sessions, share.bodies.items(), strict=False):
        ask(session, share.targets[target], body, Tally(), lambda: False, allow_degrade=share.allow_degrade)


def _session(environment: Any, url: str) -> FastHttpSession:
    event = environment.events.request
    return FastHttpSession(url, event, None, network_timeout=_TIMEOUT_S, connection_timeout=10.0)


@events.init_command_line_parser.add_listener
def add_arguments(parser: Any) -> None:
    """Locust's own parser shows these in its help and refuses unknown ones."""
    parser.add_argument("--samples", required=True, help="labelled rows: the model's samples.npz")


@events.init.add_listener
def listen(environment: Any, runner: Any, **_: Any) -> None:
    """Takes the master's messages."""
    if not isinstance(runner, WorkerRunner):
        raise SystemExit("error: this is a worker. Start it with --worker, or use `mipgate compare`.")
    try:
        samples = read_samples(Path(environment.parsed_options.samples))
    except SamplesError as error:
        raise SystemExit(f"error: {error}") from error
    prepared: list[Share] = []

    def prepare(environment: Any, msg: Any, **_: Any) -> None:
        if msg.data["rows_there"] != samples.rows:
            text = f"the master has {msg.data['rows_there']} sample rows, this worker {samples.rows}"
            runner.send_message("refused", {"reason": f"{text}. Give both the same samples.npz."})
            return
        prepared[:] = [Share(msg.data, samples)]
        shares.put(prepared[0])

    def play(environment: Any, msg: Any, **_: Any) -> None:
        prepared[0].begin.set(msg.data["begin"])

    runner.register_message("prepare", prepare)
    runner.register_message("play", play)
