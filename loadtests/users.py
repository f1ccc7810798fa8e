"""Locust users that send labelled rows to one target and check each answer.

Importing Locust patches the process for gevent: import this in load generators only.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from locust import task
from locust.contrib.fasthttp import FastHttpUser

from loadtests.answers import Answer, AnswerError, check_answer, gateway_time_ms, read_answer
from loadtests.samples import Body
from loadtests.tally import Tally
from loadtests.targets import Target

_SHOWN = 300


class TargetUser(FastHttpUser):
    """Sends random rows to one target, the next as soon as an answer is there (a closed loop).

    Attributes:
        target: What it aims at.
        bodies: Its requests, one per row.
        tally: What happened, shared by all users of the target.
        measuring: Whether answers count now.
    """

    abstract = True
    network_timeout = 90.0
    connection_timeout = 10.0

    target: Target
    bodies: Sequence[Body]
    tally: Tally
    measuring: Callable[[], bool] = staticmethod(lambda: True)

    @task
    def infer(self) -> None:
        """Sends one row and checks the answer."""
        ask(self.client, self.target, random.choice(self.bodies), self.tally, self.measuring)


def user_class(
    target: Target, bodies: Sequence[Body], tally: Tally, *, weight: int = 1, **attributes: Any
) -> type[TargetUser]:
    """A Locust user class for one target.

    Args:
        target: What its users aim at.
        bodies: Its requests, one per row.
        tally: Counts what happened.
        weight: How many of its users Locust starts in proportion to other classes.
        **attributes: Further attributes of the class.
    """
    name = "".join(char if char.isalnum() else "_" for char in target.label)
    members = {"abstract": False, "target": target, "bodies": bodies, "tally": tally, "weight": weight}
    return type(name, (TargetUser,), members | attributes)


@dataclass(frozen=True, slots=True)
class Due:
    """When a request was meant to be sent.

    Attributes:
        start: The start of the load, on this process's `time.perf_counter`.
        at_s: Seconds from there.
    """

    start: float
    at_s: float


def ask(
    session: Any,
    target: Target,
    body: Body,
    tally: Tally,
    measuring: Callable[[], bool] = lambda: True,
    due: Due | None = None,
    *,
    allow_degrade: bool = False,
) -> None:
    """Sends one request under the target's name and counts what came of it.

    Args:
        session: A `FastHttpSession`; its annotations know no bodies of bytes.
        target: What is asked.
        body: The request.
        tally: Counts what happened.
        measuring: Whether it counts now.
        due: When it was meant to be sent: its latency counts from there. None: from now.
        allow_degrade: Whether a degraded answer is a good one.
    """
    sent = time.perf_counter()
    with session.post(
        target.path, data=body.payload, headers=body.headers, name=target.label, catch_response=True
    ) as response:
        start, at_s = (0.0, sent) if due is None else (due.start, due.at_s)
        latency_ms = (time.perf_counter() - start - at_s) * 1000
        answer, gateway_ms, reason = None, None, ""
        try:
            answer, gateway_ms = _read(response, target, allow_degrade)
        except AnswerError as error:
            reason = str(error)
        if measuring():
            if answer is None:
                tally.failed(reason)
            else:
                tally.answered(answer, body.label, latency_ms, gateway_ms)
            if tally.keep_times:
                tally.sent(
                    target,
                    answer,
                    body.label,
                    at_s=at_s,
                    late_ms=(sent - start - at_s) * 1000,
                    latency_ms=latency_ms,
                    gateway_ms=np.nan if gateway_ms is None else gateway_ms,
                    status=response.status_code,
                    row=body.row,
                )
        if answer is None:
            response.failure(reason)
        else:
            response.success()


def _read(response: Any, target: Target, allow_degrade: bool) -> tuple[Answer, float | None]:
    if response.status_code == 0:
        raise AnswerError(f"no answer: {response.error!r:.{_SHOWN}}")
    if response.status_code != 200:
        said = (response.content or b"")[:_SHOWN].decode(errors="replace")
        raise AnswerError(f"status {response.status_code}: {said}")
    headers = response.headers
    answer = read_answer(response.content, headers.get("inference-header-content-length"))
    check_answer(target, answer, allow_degrade=allow_degrade)
    return answer, gateway_time_ms(headers.get("server-timing"))
