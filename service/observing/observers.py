"""The observers of one worker: composed here, so that the gateway has one thing to start, tick and stop."""

from __future__ import annotations

import asyncio

from service.asgi import App
from service.config import Config
from service.course import Listener
from service.lag import LoopLag
from service.metrics import Metrics
from service.observing.drift import Drift, FindFile
from service.observing.logs import RequestLog, configure_logs, tell_left_out
from service.observing.tracing import TracedApp, tracing_from_environment


class Observers:
    """Traces, logs and drift as the settings and the environment have them; logs begin at once.

    Args:
        settings: The gateway's.
        worker: Tells this worker's spans from the others'.
        find: Path of a file beside a model's card.
        metrics: Has the gauges.
    """

    def __init__(self, settings: Config, worker: str, find: FindFile, metrics: Metrics) -> None:
        """Starts what is switched on.

        Raises:
            ConfigError: The environment asks for traces in a way that is not here.
        """
        self._bursts = configure_logs(settings.log_format, settings.log_level)
        self.requests = RequestLog(settings.log_requests, self._bursts, settings.log_requests_per_s)
        self._tracing = tracing_from_environment(worker)
        self._drift = None
        if settings.drift_share:
            self._drift = Drift(find, metrics, settings.drift_share, settings.drift_rows_per_s)

    @property
    def listeners(self) -> list[Listener]:
        """What is to be told how requests ended."""
        return [each for each in (self._tracing, self.requests, self._drift) if each is not None]

    def around(self, app: App, lag: LoopLag) -> App:
        """The app with a span around each request; the app itself while traces are off."""
        return app if self._tracing is None else TracedApp(app, self._tracing, lag)

    async def tick(self) -> None:
        """What is done a few times a second, off the way of requests."""
        tell_left_out(self._bursts)
        if self._drift is not None and (samples := self._drift.take()):
            await asyncio.to_thread(self._drift.evaluate, samples)

    async def close(self) -> None:
        """Sends the spans that wait."""
        if self._tracing is not None:
            await asyncio.to_thread(self._tracing.close)
