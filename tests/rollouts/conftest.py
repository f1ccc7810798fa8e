"""Gateways that run rollouts: operators' requests, and callers that go on asking."""

import json
import subprocess
import sys
import threading
import time
from base64 import urlsafe_b64decode
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
import pytest

from compression.signature import Array
from tests.commands import MIPGATE
from tests.conftest import ROOT, Homes
from tests.gateway import Gateway, request
from tests.service.state.conftest import outage, postgres, url
from variants.catalog import SAMPLES_FILE, Catalog
from variants.samples import read_split

__all__ = ["outage", "postgres", "url"]  # fixtures

SOON_S = 60.0
FINAL = ("succeeded", "failed", "inconclusive")
# These tests are about rollouts, not about deadlines: a busy machine must not fail them.
PATIENT = {"max_latency_ms": 30_000.0}
# Which variant serves a tier differs from machine to machine, so both are named.
ARMS = {"primary": "fp32", "candidate": "int8-static"}
_CALLERS = 24  # per client; every other request is of nobody in particular
_ANSWERS_PER_CONNECTION = 10  # so that every worker is met
_PAUSE_S = 0.004
_DIGEST_BYTES = 12  # before the facts in an id that carries them


def worker_of(request_id: str) -> str:
    """The worker that made an id, also one that carries its answer behind a digest."""
    if request_id.startswith("s."):
        request_id = json.loads(urlsafe_b64decode(request_id[2:])[_DIGEST_BYTES:])[0]
    return request_id.partition("-")[0]


def wait_for(condition: Callable[[], object]) -> None:
    end = time.monotonic() + SOON_S
    while not condition():
        assert time.monotonic() < end, "the condition did not come true"
        time.sleep(0.05)


def mipgate(gateway: Gateway, homes: Homes, *arguments: str, status: int = 0) -> str:
    command = [MIPGATE, *arguments, "--url", gateway.url]
    ended = subprocess.run(command, env=homes.environment, capture_output=True, text=True, check=False)
    assert ended.returncode == status, (ended.stdout, ended.stderr)
    return ended.stdout + ended.stderr


def publish(homes: Homes, recipe: str, build: str, damage: str) -> str:
    """A further build as a candidate; its `recipe@build`."""
    command = [sys.executable, "-m", "tests.rollouts.publish", recipe, build, damage]
    subprocess.run(command, env=homes.environment, cwd=ROOT, check=True)
    return f"{recipe}@{build}"


class Operator:
    """Whoever drives rollouts of digits on a gateway."""

    def __init__(self, gateway: Gateway) -> None:
        self._url = f"{gateway.url}/admin"

    def start(self, **body: Any) -> httpx.Response:
        return self.post(body)

    def post(self, body: object) -> httpx.Response:
        return httpx.post(f"{self._url}/models/digits/rollouts", json=body, timeout=30)

    def started(self, **body: Any) -> str:
        answer = self.start(**body)
        assert answer.status_code == 201, answer.text
        return str(answer.json()["id"])

    def rollouts(self) -> list[str]:
        return [rollout["id"] for rollout in self._get("/models/digits/rollouts")]

    def running(self) -> list[str]:
        return [rollout for rollout in self.rollouts() if self.find(rollout)["phase"] not in FINAL]

    def find(self, rollout: str) -> dict[str, Any]:
        found: dict[str, Any] = self._get(f"/rollouts/{rollout}")
        return found

    def change(self, rollout: str, verb: str, **body: Any) -> httpx.Response:
        return httpx.post(f"{self._url}/rollouts/{rollout}/{verb}", json=body, timeout=30)

    def history(self, rollout: str) -> list[dict[str, Any]]:
        lines: list[dict[str, Any]] = self._get(f"/rollouts/{rollout}/history")
        return lines

    def lives(self) -> dict[str, str]:
        document = self._get("/models/digits")
        return {f"{each['name']}@{each['build']}": each["life"] for each in document["variants"]}

    def wait_for(self, rollout: str, *phases: str) -> dict[str, Any]:
        wait_for(lambda: self.find(rollout)["phase"] in phases)
        return self.find(rollout)

    def _get(self, path: str) -> Any:
        return httpx.get(f"{self._url}{path}", timeout=30).raise_for_status().json()

    def evidence(self, rollout: str) -> dict[str, dict[str, Any]]:
        return {arm["name"]: arm["evidence"] for arm in self.find(rollout)["arms"]}


def assert_complete(history: list[dict[str, Any]]) -> None:
    """Every version is there, in order, with its reason, and shares out all requests."""
    assert [line["version"] for line in history] == list(range(1, len(history) + 1))
    assert all(line["reason"] for line in history)
    assert [line["at"] for line in history] == sorted(line["at"] for line in history)
    assert all(sum(line["weights"].values()) == pytest.approx(100) for line in history)


@dataclass(frozen=True)
class Answer:
    """What a caller got, 0 for a connection that broke."""

    sent: float
    status: int
    caller: str
    arm: str | None = None
    variant: str = ""
    worker: str = ""
    text: str = ""


class Traffic:
    """Callers that ask again and again, and label every third answer of a rollout."""

    def __init__(self, url: str, rows: Array, labels: Array, clients: int) -> None:
        self._url, self._rows, self._labels = url, rows, labels
        self._stop = threading.Event()
        self.answers: list[Answer] = []
        self.labels: Counter[int] = Counter()
        self._threads = [threading.Thread(target=self._client, args=(n,)) for n in range(clients)]
        for thread in self._threads:
            thread.start()

    def stop(self) -> None:
        self._stop.set()
        for thread in self._threads:
            thread.join()

    def of(self, arm: str | None) -> list[Answer]:
        return [answer for answer in self.answers if answer.arm == arm]

    def met_since(self, since: float, workers: int) -> bool:
        """Whether as many workers have answered requests that were sent after a time."""
        return len({a.worker for a in self.answers if a.sent > since and a.status == 200}) >= workers

    def arms(self) -> dict[str, list[str]]:
        """The arms of each caller with a sticky key, the oldest first."""
        arms: dict[str, list[str]] = {}
        for answer in self.answers:
            if answer.caller and answer.arm:
                arms.setdefault(answer.caller, []).append(answer.arm)
        return arms

    def _client(self, client: int) -> None:
        asked = 0
        while not self._stop.is_set():
            with httpx.Client(base_url=self._url, timeout=60) as http:
                for _ in range(_ANSWERS_PER_CONNECTION):
                    asked += 1
                    caller = f"caller {client}.{asked % _CALLERS}" if asked % 2 else ""
                    self._ask(http, caller, (client * 31 + asked) % len(self._rows))
                    self._stop.wait(_PAUSE_S)

    def _ask(self, http: httpx.Client, caller: str, row: int) -> None:
        sent = time.time()
        body = request(self._rows[row], **PATIENT | ({"sticky_key": caller} if caller else {}))
        try:
            response = http.post("/v2/models/digits/infer", json=body)
        except httpx.TransportError:
            self.answers.append(Answer(sent, 0, caller))
            return
        if response.status_code != 200:
            self.answers.append(Answer(sent, response.status_code, caller, text=response.text))
            return
        document = response.json()
        arm, variant = document["parameters"].get("arm"), document["parameters"]["variant"]
        self.answers.append(Answer(sent, 200, caller, arm, variant, worker_of(document["id"])))
        assert np.isfinite(document["outputs"][0]["data"]).all()
        if arm and row % 3 == 0:
            label = {"request_id": document["id"], "label": int(self._labels[row])}
            try:
                self.labels[http.post("/v1/feedback", json=label).status_code] += 1
            except httpx.TransportError:
                self.labels[0] += 1


@contextmanager
def traffic(gateway: Gateway, marked: bool = False, clients: int = 3) -> Iterator[Traffic]:
    """Real rows of digits; `marked` sets the first pixel of every other, which is never set in them."""
    split = read_split(Catalog().card_file("digits", SAMPLES_FILE))
    rows = np.array(split.inputs["image"])
    assert not rows[:, 0].any()
    assert split.labels is not None
    if marked:
        rows[::2, 0] = 1.0
    asking = Traffic(gateway.url, rows, split.labels, clients)
    try:
        wait_for(lambda: len(asking.answers) > 10)
        yield asking
    finally:
        asking.stop()


def logged(gateway: Gateway, text: str) -> list[str]:
    """Events of the gateway's log that contain a text, the oldest first."""
    events = []
    for line in gateway.log.read_text().splitlines():
        if text in line:
            events.append(str(json.loads(line)["event"]) if line.startswith("{") else line)
    return events
