"""Runs what models declare before and after them: texts and pictures to inputs, scores to labels.

Small work runs on the event loop, everything else in one thread, beside the one that computes: a large
picture delays neither other requests' arrival nor their batches. What waits there is bounded.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from time import perf_counter
from typing import Any

from compression.signature import Array
from service.errors import BadRequestError, DeadlineError, UnavailableError
from service.loaded import LoadedModel
from service.metrics import Metrics
from service.protocol import InferRequest
from service.scheduler import Limits
from variants.transform import Before, TooLateError, TransformError

_LATE = "the deadline passed before the inputs were read. Give more time, or send less at once."


class Transforming:
    """The transforms of all models of one worker.

    Args:
        limits: How many requests, and bytes of theirs, may wait for the thread.
        metrics: Counts the time.
    """

    def __init__(self, limits: Limits, metrics: Metrics) -> None:
        self._limits = limits
        self._metrics = metrics
        self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="mipgate-transform")
        self._requests = 0
        self._bytes = 0

    def close(self) -> None:
        """Lets the running transform end; those that wait never run."""
        self._executor.shutdown(wait=True, cancel_futures=True)

    async def before(
        self, model: LoadedModel, request: InferRequest, deadline: float
    ) -> tuple[InferRequest, float]:
        """The request with the model's own inputs, and the seconds that making them took.

        Args:
            model: Which model it is for.
            request: The decoded request.
            deadline: When its answer must be there, on `time.perf_counter`.

        Raises:
            BadRequestError: A text or picture cannot be read, or `top_k` is none.
            UnavailableError: Too much waits already.
            DeadlineError: It waited beyond its deadline.
        """
        transforms = model.transforms
        try:
            if transforms.after is not None and "top_k" in request.parameters:
                transforms.after.check(request.parameters)
            if transforms.before is None or not request.is_raw:
                return request, 0.0
            started = perf_counter()
            inputs = await self._inputs(transforms.before, request, deadline)
        except TooLateError as error:
            raise DeadlineError(str(error)) from error
        except TransformError as error:
            raise BadRequestError(str(error)) from error
        seconds = perf_counter() - started
        tallies = self._metrics.tallies
        tallies.histogram(self._metrics.transform_duration, model.name).observe(seconds)
        return replace(request, inputs=inputs), seconds

    def after(
        self, model: LoadedModel, request: InferRequest, outputs: Mapping[str, Array]
    ) -> dict[str, Array]:
        """The outputs, and beside them those that the request asks a transform for."""
        after = model.transforms.after
        if after is None or not any(request.wants(spec.name) for spec in after.outputs):
            return dict(outputs)
        return {**outputs, **after.run(outputs, request.parameters)}

    async def _inputs(self, before: Before, request: InferRequest, deadline: float) -> dict[str, Array]:
        values = request.inputs[before.raw.name]
        if before.is_light(values):
            return before.run(values)
        size = sum(map(len, values))
        if self._requests >= self._limits.requests or self._bytes + size > self._limits.bytes:
            raise UnavailableError(
                "too many texts or pictures wait to be read. Try again after Retry-After.", "capacity"
            )
        self._requests += 1
        self._bytes += size

        def read(done: asyncio.Future[Any]) -> None:
            self._requests -= 1
            self._bytes -= size
            if not done.cancelled():
                done.exception()  # nobody may be left to ask for it

        running: asyncio.Future[Any] = asyncio.get_running_loop().run_in_executor(
            self._executor, before.run, values, deadline
        )
        # Whoever waits may give up, the thread holds it until it is there.
        running.add_done_callback(read)
        try:
            return await asyncio.wait_for(asyncio.shield(running), max(0.0, deadline - perf_counter()))
        except TimeoutError as error:
            raise DeadlineError(_LATE) from error
