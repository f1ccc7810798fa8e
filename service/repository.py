"""Everything under `/v2` but inference: metadata, health, statistics, the model repository, OpenAPI."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Iterable
from functools import partial
from time import perf_counter
from typing import Any

import orjson

from service.asgi import Scope
from service.errors import (
    BadRequestError,
    ConflictError,
    MethodNotAllowedError,
    NotFoundError,
    UnavailableError,
)
from service.fleet import Fleet
from service.loaded import LoadedModel, LoadedVariant
from service.metadata import metadata
from service.openapi import DocumentedModel, document
from variants.document import DocumentError
from variants.host import installed_version
from variants.store import CatalogError

EXTENSIONS = ["binary_tensor_data", "model_repository", "statistics"]
PLATFORM = "onnxruntime_onnx"


class Repository:
    """Answers the protocol's control requests over a fleet."""

    def __init__(self, fleet: Fleet, follow_s: float = 0.0) -> None:
        """`follow_s` is how long other workers may take to see what this one unloads or loads."""
        self._fleet = fleet
        self._follow_s = follow_s
        self._loading = asyncio.Lock()
        self.version = installed_version("mipgate") or "0"

    async def answer(self, scope: Scope, path: str, body: bytes) -> Any:
        """The JSON answer to a control request.

        Raises:
            ServiceError: There is no such path, model or variant, or the caller may not do this.
        """
        parts = path.strip("/").split("/")
        handler: tuple[Callable[[], Any], str]
        match parts[1:]:
            case []:
                handler = self._server, "GET"
            case ["health", "live"]:
                handler = _live, "GET"
            case ["health", "ready"]:
                handler = self._ready, "GET"
            case ["openapi.json"]:
                handler = self._openapi, "GET"
            case ["models", "stats"]:
                handler = self._stats, "GET"
            case ["models", name, *rest]:
                return self._model(scope, name, rest)
            case ["repository", "index"]:
                handler = partial(self._index, body), "POST"
            case ["repository", "models", name, ("load" | "unload") as verb]:
                _require_method(scope, "POST")
                return await self._change(name, verb)
            case _:
                raise NotFoundError(f'unknown path "{path[:200]}". GET /v2/openapi.json lists what exists.')
        answer, method = handler
        _require_method(scope, method)
        return answer()

    def _server(self) -> dict[str, Any]:
        return {"name": "mipgate", "version": self.version, "extensions": EXTENSIONS}

    def _ready(self) -> dict[str, bool]:
        if not any(model.variants for model in self._fleet.models.values()):
            raise UnavailableError("no model is ready. Look at the log, or run `mipgate build`.", "refused")
        return {"ready": True}

    def _openapi(self) -> dict[str, Any]:
        return document(
            DocumentedModel(
                model.name,
                model.signature,
                tuple(model.versions),
                tuple(tier.name for tier in model.card.spec.tiers),
                model.transforms.raw,
                model.transforms.example,
            )
            for model in self._fleet.models.values()
        )

    def _model(self, scope: Scope, name: str, rest: list[str]) -> Any:
        model = self._fleet.find(name)
        match rest:
            case ["versions", version, *rest]:
                pinned = [model.pinned(version)]
            case _:
                pinned = [model.variants[known] for known in model.versions]
        if rest == ["infer"]:
            _require_method(scope, "POST")
        _require_method(scope, "GET")
        match rest:
            case []:
                names = [variant.name for variant in pinned]
                return metadata(model.name, names, model.signature, PLATFORM, model.transforms.raw)
            case ["ready"]:
                return _model_ready(model)
            case ["stats"]:
                return {"model_stats": _statistics(model, pinned)}
            case _:
                raise NotFoundError(f'unknown path below "{name}". GET /v2/openapi.json lists what exists.')

    def _stats(self) -> dict[str, Any]:
        models = self._fleet.models.values()
        each = [_statistics(model, [model.variants[known] for known in model.versions]) for model in models]
        return {"model_stats": [entry for entries in each for entry in entries]}

    def _index(self, body: bytes) -> list[dict[str, str]]:
        only_ready = _object(body).get("ready", False)
        if not isinstance(only_ready, bool):
            raise BadRequestError('"ready" is no boolean. Send {"ready": true} or an empty body.')
        entries = []
        for name in self._fleet.known():
            model = self._fleet.models.get(name)
            if model is None:
                entries.append(_entry(name, "", "UNAVAILABLE", "unloaded"))
                continue
            entries += [_entry(name, version, "READY", "") for version in model.versions]
            refused = {version: why for version, why in model.refused.items() if "@" not in version}
            entries += [_entry(name, version, "UNAVAILABLE", why) for version, why in refused.items()]
        return [entry for entry in entries if entry["state"] == "READY" or not only_ready]

    async def _change(self, name: str, verb: str) -> dict[str, Any]:
        if verb == "load" and self._fleet.is_pinned:
            raise ConflictError(
                "this gateway serves a Bento, whose variants are fixed. Serve a new one: `mipgate bento`."
            )
        known = self._fleet.registered() if verb == "load" else self._fleet.known()
        if name not in known:
            there = ", ".join(known) or "none"
            raise NotFoundError(f'no model "{name[:80]}" is registered; there are: {there}. Build it first.')
        started = perf_counter()
        async with self._loading:
            if verb == "unload":
                await asyncio.to_thread(self._fleet.unload, name)
            else:
                try:
                    await asyncio.to_thread(self._fleet.load, name)
                except (CatalogError, DocumentError) as error:
                    raise UnavailableError(str(error), "refused") from error
        if self._follow_s:  # what comes next may go to another worker, which takes as long as this one did
            await asyncio.sleep(self._follow_s + perf_counter() - started)
        return {}


def _live() -> dict[str, bool]:
    return {"live": True}


def _model_ready(model: LoadedModel) -> dict[str, Any]:
    if not model.variants:
        raise UnavailableError(f"{model.name} has no variant that serves. Look at the log.", "refused")
    return {"name": model.name, "ready": True}


def _statistics(model: LoadedModel, variants: Iterable[LoadedVariant]) -> list[dict[str, Any]]:
    return [variant.statistics.to_json(model.name, variant.name) for variant in variants]


def _entry(name: str, version: str, state: str, reason: str) -> dict[str, str]:
    return {"name": name, "version": version, "state": state, "reason": reason}


def _object(body: bytes) -> dict[str, Any]:
    if not body:
        return {}
    try:
        value = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise BadRequestError(f"the body is no JSON: {error}. Send an object, or nothing.") from error
    if not isinstance(value, dict):
        raise BadRequestError("the body is no JSON object. Send an object, or nothing.")
    return value


def _require_method(scope: Scope, method: str) -> None:
    if scope["method"] != method:
        raise MethodNotAllowedError(f"{scope['method']} is not answered here. Use {method}.")
