"""What a rollout survives: a worker that is killed, a database that goes away."""

import re
import signal
import time
from functools import partial
from itertools import pairwise

import httpx

from service.rollout.assignment import position
from service.rollout.rollout import Arm, Kind, Rollout
from tests.conftest import Homes
from tests.gateway import Gateway, running
from tests.rollouts.conftest import ARMS, Operator, assert_complete, logged, traffic, wait_for
from tests.service.state.conftest import Outage

GUARDS = ["errors<=20%,n=20"]


def holders(gateway: Gateway) -> list[tuple[int, int]]:
    """Process and token of each that advanced rollouts, the oldest first."""
    lines = logged(gateway, "advances rollouts, token")
    found = [re.search(r"-(\d+)-[0-9a-f]{8} advances rollouts, token (\d+)", line) for line in lines]
    return [(int(match[1]), int(match[2])) for match in found if match]


def places(rollout: str, callers: list[str]) -> dict[str, float]:
    """Where in 0..1 callers lie in a rollout."""
    arms = (Arm("primary", "a@b", 100.0), Arm("candidate", "c@d", 0.0))
    known = Rollout(rollout, "digits", None, Kind.CANARY, arms, 0, 0, 0)
    return {caller: position(known, caller) for caller in callers}


def test_a_worker_that_is_killed_midway_costs_the_rollout_nothing(homes: Homes) -> None:
    with running(homes, workers=2) as gateway, traffic(gateway, clients=4) as asking:
        operator = Operator(gateway)
        rollout = operator.started(
            kind="canary", steps=[30, 60, 100], step_duration_s=2, guards=GUARDS, failure_budget=0.5, **ARMS
        )
        wait_for(lambda: asking.of("candidate"))
        (victim, token), *_ = reversed(holders(gateway))
        next(worker for worker in gateway.workers() if worker.pid == victim).send_signal(signal.SIGKILL)
        ended = operator.wait_for(rollout, "succeeded", "failed", "inconclusive")
        assert ended["phase"] == "succeeded", ended["reason"]
        successor, newer = holders(gateway)[-1]
        assert successor != victim
        assert newer > token
        wait_for(lambda: len(gateway.workers()) == 2)
        wait_for(partial(asking.met_since, time.time(), workers=2))
        asking.stop()

        history = operator.history(rollout)
        assert_complete(history)
        steps = [line for line in history if line["phase"] == "progressing"]
        assert [line["weights"]["candidate"] for line in steps] == [30, 60, 100]
        assert history[-1]["weights"] == {"primary": 0, "candidate": 100}
        lie = places(rollout, [answer.caller for answer in asking.answers if answer.caller])
        begun = {line["weights"]["candidate"] / 100: line["at"] for line in steps}
        for answer in (answer for answer in asking.answers if answer.caller and answer.arm):
            entered = next(at for weight, at in begun.items() if lie[answer.caller] < weight)
            assert answer.arm == "primary" or answer.sent > entered - 1  # a request takes its time
            assert answer.arm == "candidate" or lie[answer.caller] >= 0.3  # before the kill and after it
        broken = [answer for answer in asking.answers if answer.status != 200]
        assert {answer.status for answer in broken} <= {0}  # connections of the worker that was killed
        assert len(broken) <= 4
        seen = operator.evidence(rollout)["candidate"]["requests"]
        assert 0 < seen <= len(asking.of("candidate")) + len(broken)


def test_while_the_database_is_away_the_rollout_stays_and_requests_go_on(
    homes: Homes, outage: Outage
) -> None:
    def is_up(gateway: Gateway) -> bool:
        text = httpx.get(f"{gateway.url}/metrics", timeout=30).text
        values = [line.split()[-1] for line in text.splitlines() if line.startswith("mipgate_state_up{")]
        return bool(values) and min(map(float, values)) == 1

    with running(homes, MIPGATE_STATE=outage.url) as gateway, traffic(gateway) as asking:
        operator = Operator(gateway)
        rollout = operator.started(
            kind="canary", steps=[20, 40, 60, 100], step_duration_s=2, guards=GUARDS, **ARMS
        )
        wait_for(lambda: asking.of("candidate"))
        assert is_up(gateway)
        outage.begin()
        try:
            wait_for(lambda: not is_up(gateway))
            gone = time.time()
            refused = operator.change(rollout, "abort")
            assert refused.status_code == 503
            assert "database" in refused.json()["error"]
            before = len(asking.of("candidate"))
            wait_for(lambda: len(asking.of("candidate")) > before + 10)  # on the last known state
            wait_for(lambda: time.time() > gone + 3)  # longer than a step
        finally:
            back = time.time()  # it answers before `end` does
            outage.end()
        wait_for(lambda: is_up(gateway))
        ended = operator.wait_for(rollout, "succeeded", "failed", "inconclusive")
        assert ended["phase"] == "succeeded", ended["reason"]
        asking.stop()

        history = operator.history(rollout)
        assert_complete(history)
        assert not [line for line in history if gone < line["at"] < back]
        weights = [line["weights"]["candidate"] for line in history if line["phase"] == "progressing"]
        assert weights == [20, 40, 60, 100]
        assert all(before < after for before, after in pairwise(weights))
        assert {answer.status for answer in asking.answers} == {200}
        wait_for(
            lambda: (
                sum(arm["requests"] for arm in operator.evidence(rollout).values())
                == len(asking.of("primary")) + len(asking.of("candidate"))
            )
        )
        (away,) = logged(gateway, "Rollouts stay as they are")
        assert "the database does not answer" in away
        assert logged(gateway, "the database answers again")
