"""The BentoML service: composes the rooms of the gateway, and holds no logic of its own.

`bentoml serve service.gateway:Gateway`, or `mipgate serve`, which checks first and says what is missing.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
from contextlib import closing, suppress
from datetime import UTC, datetime
from functools import cache
from typing import Any

import bentoml
from bentoml.exceptions import BentoMLException
from bentoml.models import BentoModel

from service.asgi import App
from service.config import config
from service.data_plane import DataPlane
from service.errors import ServiceError
from service.fleet import Fleet
from service.http_protocol import take_protocol
from service.inference import Inference
from service.metrics import Metrics
from service.observing.observers import Observers
from service.operation import Operation
from service.predict import predict
from service.repository import Repository
from service.scheduler import Limits, Scheduler
from service.state.database import Database, StateAwayError, StateNewerError, StateUrlError
from service.ticking import Ticking
from service.transforming import Transforming
from service.workers.accepting import spread_connections
from service.workers.sizing import choose_workers
from service.workers.together import shared_folder, start_anew
from service.workers.unloading import Unloaded
from variants.catalog import Catalog
from variants.host import this_host

log = logging.getLogger("mipgate.gateway")

_TICK_S = 0.5
_PAGE = """# Mipgate

Compressed variants of each model; each request is answered by the variant that fits the latency and accuracy
that it asks for. Inference is at `/v2/models/{model}/infer`, described in
[/v2/openapi.json](/v2/openapi.json); `/predict` below is the same in plain JSON.
"""


class SeamError(BentoMLException):
    """This BentoML does not let the data plane be outermost."""


class GatewayService(bentoml.Service[Any]):
    """A BentoML service whose ASGI app has the data plane around it.

    `service_class` is BentoML's public seam for this. The exact pin, a contract test and the checks here
    hold it.
    """

    core: Inference
    observers: Observers
    operation: Operation

    def __attrs_post_init__(self) -> None:
        """Names what `bentoml build` packs: each model's card and its released variants."""
        super().__attrs_post_init__()
        self.models.extend(BentoModel(tag) for tag in Catalog().packed_tags())

    @property
    def doc(self) -> str:
        """What BentoML's Swagger page says above its list of APIs."""
        return _PAGE

    def to_asgi(self, is_main: bool = True) -> App:
        """BentoML's app for everything else, with the data plane outermost.

        Raises:
            SeamError: BentoML's app is not what the data plane can be put around.
        """
        app = super().to_asgi(is_main=is_main)
        if not callable(app):
            raise SeamError(f"BentoML {bentoml.__version__} gives no ASGI app. Install the pinned version.")
        settings, metrics, catalog = config(), Metrics(), self._catalog()
        worker = bentoml.server_context.worker_index or 1
        self.observers = Observers(settings, str(worker), catalog.card_file, metrics)
        workers, shared = _workers(), shared_folder()
        host = this_host(workers)
        fleet = Fleet(
            catalog, host, metrics, settings.max_batch_rows, settings.memory_budget_bytes,
            Unloaded(shared / "unloaded"),
        )  # fmt: skip
        fleet.load_all()
        limits = Limits(settings.max_queue_requests, settings.max_queue_bytes, settings.inline_ms)
        scheduler = Scheduler(limits, margin=lambda: fleet.pace.margin)
        self.core = Inference(fleet, scheduler, Transforming(limits, metrics), metrics)
        self.core.listeners += self.observers.listeners
        self.core.refusals.append(self.observers.requests.refused)
        self.operation = Operation(settings, catalog, host, self.core)
        metrics.started(worker, settings.max_queue_requests)
        log.info("worker %d of %d, %d threads each", worker, workers, host.threads)
        _quicken()
        take_protocol()
        spread_connections(shared / "connections", worker, workers)
        repository = Repository(fleet, follow_s=0.0 if workers == 1 else 2 * _TICK_S)
        plane = DataPlane(
            app, self.core, repository, self.operation, settings.max_body_bytes, settings.max_json_bytes
        )
        return self.observers.around(plane, self.core.lag)

    def _catalog(self) -> Catalog:
        """The whole store, or in a Bento only what it packed, unless it is to follow the store."""
        if self.bento is None or config().catalog == "store":
            return Catalog()
        cards = [model.tag for model in self.bento.info.all_models if "." not in model.tag.name]
        return Catalog({tag.name: str(tag) for tag in cards})


@cache
def _workers() -> int:
    return choose_workers(config(), Catalog(), this_host())


def _quicken() -> None:
    """Spares each request what does not depend on it."""
    # uvicorn formats an access line per request unless its logger has nowhere to write; BentoML keeps its own
    # for what passes through it, and metrics tell of the rest.
    logging.getLogger("uvicorn.access").propagate = False
    # What was loaded stays: the collector need not look at it again, nor pause for every 700 objects.
    gc.collect()
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)


# BentoML's own metrics make a series of every path that anyone asks for; the data plane answers `/metrics`.
@bentoml.service(
    name="mipgate",
    service_class=GatewayService,
    workers=_workers(),
    metrics={"enabled": False},
)
class Gateway:
    """Mipgate: compressed variants of each model, each request routed by the tier that it asks for."""

    bento_service: GatewayService

    def __is_ready__(self) -> bool:
        """`/readyz`: whether any variant serves."""
        return any(model.variants for model in self.bento_service.core.fleet.models.values())

    @bentoml.on_deployment
    @staticmethod
    def check() -> None:
        """Runs once, before the workers start."""
        if not Catalog().models():
            raise BentoMLException("no model is registered. Run `mipgate build digits` first.")
        start_anew()
        os.environ["MIPGATE_WORKERS"] = str(_workers())  # a worker that starts later is one of as many
        try:
            with closing(Database(config().state)) as database, suppress(StateAwayError):  # workers go on
                database.migrate()
        except (StateNewerError, StateUrlError) as error:
            raise BentoMLException(str(error)) from error

    @bentoml.on_startup
    async def start_ticking(self) -> None:
        """Follows rollouts; writes metrics and follows the catalog and the keys, twice a second."""
        core, operation = self.bento_service.core, self.bento_service.operation
        await operation.start()
        core.lag.start()
        fleet, depth = core.fleet, core.scheduler.depth
        self._ticking = Ticking(
            {
                "closing variants for memory": lambda: fleet.trim(depth),
                "closing variants that left": fleet.let_go,
                "writing metrics": lambda: fleet.refresh_metrics(datetime.now(UTC), depth),
                "following keys": operation.follow_keys,
                "sampling traffic": operation.sample,
                "watching drift": self.bento_service.observers.tick,
                "following the catalog": lambda: asyncio.to_thread(fleet.load_all),
            },
            _TICK_S,
        )

    @bentoml.on_shutdown
    async def stop(self) -> None:
        """Lets the running batch end."""
        await self._ticking.stop()
        core = self.bento_service.core
        core.lag.stop()
        core.transforming.close()
        core.scheduler.close()
        await self.bento_service.operation.stop()
        core.metrics.tallies.flush()
        await self.bento_service.observers.close()

    @bentoml.api
    async def predict(
        self,
        ctx: bentoml.Context,
        model: str,
        inputs: dict[str, list[Any]],
        tier: str | None = None,
        variant: str | None = None,
        max_latency_ms: float | None = None,
        min_accuracy: float | None = None,
        allow_degrade: bool | None = None,
        sticky_key: str | None = None,
        priority: str | None = None,
    ) -> dict[str, Any]:
        """Answers plain JSON: named inputs, each a nested list of rows, and objectives if wanted.

        For throughput use `/v2/models/{model}/infer`, which does not pass through BentoML's layers.
        """
        wanted = {
            "tier": tier,
            "max_latency_ms": max_latency_ms,
            "min_accuracy": min_accuracy,
            "allow_degrade": allow_degrade,
            "sticky_key": sticky_key,
            "priority": priority,
        }
        core = self.bento_service.core
        request_id = core.new_id()
        try:
            answer = await predict(core, model, inputs, variant, wanted, request_id)
            request_id = answer["request_id"]  # that of a rollout carries the answer
        except ServiceError as error:  # told here: BentoML keeps from the client what a 503 says
            ctx.response.status_code = error.status
            ctx.response.headers.update({name.decode(): value.decode() for name, value in error.headers()})
            answer = {"error": str(error)}
        ctx.response.headers["x-mipgate-request-id"] = request_id
        return answer
