"""The hot path: a raw ASGI app outermost of BentoML's, answering everything under `/v2`.

Two error branches only: errors of `service.errors` carry their status and message; all else is a bug, whose
traceback is logged and whose answer is a fixed text. It always answers: BentoML would leave a request
whose app raised hanging until its timeout.
"""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Coroutine
from functools import lru_cache
from time import perf_counter
from typing import Any

import orjson
from prometheus_client import CONTENT_TYPE_LATEST

from service.access.peer import one_header
from service.access.principal import ANYONE, Role
from service.asgi import App, Message, Receive, Scope, Send
from service.course import Course
from service.errors import (
    INTERNAL_MESSAGE,
    BadRequestError,
    MediaTypeError,
    NotFoundError,
    PathTooLongError,
    RateLimitError,
    ServiceError,
    TooLargeError,
    UnavailableError,
)
from service.exchange import (
    AsgiExchange,
    ClientGoneError,
    Exchange,
    Head,
    header_lines,
    read_body,
    too_large,
)
from service.inference import Inference
from service.loaded import LoadedModel, LoadedVariant
from service.metrics import exposition
from service.operation import Operation
from service.protocol import InferRequest, encode
from service.repository import Repository
from service.routing import SLO_HEADERS

log = logging.getLogger("mipgate.data_plane")

_MAX_PATH = 2048
_AUTHORIZATION = b"authorization"
_MEDIA_TYPES = (b"application/json", b"application/octet-stream")
_NO_ENCODING = (b"", b"identity")
_JSON = b"content-type: application/json\r\n"
_BINARY = b"content-type: application/octet-stream\r\ninference-header-content-length: %d\r\n"
_REQUEST_ID = b"x-mipgate-request-id: %b\r\n"
_MAX_ROUTES = 4096
_SAFE = ("GET", "HEAD")
_PREDICT = "/predict"
_OPEN = "/v2/health/"  # probes carry no keys
_REPOSITORY = "/v2/repository/models/"
_OPERATIONS = ("/load", "/unload")
_SMALL_BODY = 2**20
_LONGEST_LENGTH = 12  # digits of a length in bytes

Target = tuple[LoadedModel, LoadedVariant | None]


class DataPlane:
    """Answers `/v2`; hands everything else to BentoML's app."""

    def __init__(
        self,
        app: App,
        inference: Inference,
        repository: Repository,
        operation: Operation,
        max_body_bytes: int,
        max_json_bytes: int,
    ) -> None:
        self._app = app
        self._inference = inference
        self._repository = repository
        self._operation = operation
        self._access = operation.access
        self._max_body = max_body_bytes
        self._telling_digits = len(str(max_body_bytes))  # a length of fewer is none too long
        self._max_json = max_json_bytes
        self._small = min(_SMALL_BODY, max_json_bytes)
        self._targets: dict[str, Target] = {}
        self._generation = 0

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answers one connection event of ASGI."""
        if scope["type"] != "http" or not _is_ours(scope["path"]):
            await self._pass_on(scope, receive, send)
            return
        exchange = AsgiExchange(scope, receive, send)
        if scope["method"] == "POST" and exchange.head.path.endswith("/infer"):
            await self.infer(exchange)
        else:
            await self._guard(exchange, self._control(scope, exchange))

    def infer(self, exchange: Exchange) -> Coroutine[Any, Any, None]:
        """Answers one inference, come what may."""
        return self._guard(exchange, self._infer(exchange, perf_counter()))

    async def _guard(self, exchange: Exchange, answering: Coroutine[Any, Any, None]) -> None:
        """Has a request answered, be it by what went wrong."""
        try:
            await answering
        except ClientGoneError:
            log.debug("the client left before its answer was there")
        except ServiceError as error:
            await _refuse(exchange, error, _REQUEST_ID % self._id(exchange).encode())
        except Exception:
            request_id = self._id(exchange)
            log.exception("request %s to %s failed", request_id, exchange.head.path[:200])
            await _tell(exchange, 500, {"error": INTERNAL_MESSAGE}, _REQUEST_ID % request_id.encode())
        finally:
            exchange.end()

    async def _pass_on(self, scope: Scope, receive: Receive, send: Send) -> None:
        """BentoML's part, but for metrics and operation; no body is larger than here."""
        if scope["type"] == "http":
            path: str = scope["path"]
            if path == "/metrics":
                await self._tell_metrics(send)
                return
            if path.startswith(self._operation.paths):
                await self._operation.app(scope, receive, send)
                return
            try:
                # By method: BentoML's router takes other paths for `/predict` too, one that ends in %0A, say.
                if scope["method"] not in _SAFE:
                    self._access.check(scope["headers"], scope["client"], Role.INFER)
                receive = await self._bounded(scope, receive)
            except ClientGoneError:
                return
            except ServiceError as error:
                await _refuse(AsgiExchange(scope, receive, send), error)
                return
        await self._app(scope, receive, send)

    async def _bounded(self, scope: Scope, receive: Receive) -> Receive:
        """Reads a body, whose length need not be said, within bounds; what is returned gives it again."""
        if any(name == b"content-length" and self._is_too_long(value) for name, value in scope["headers"]):
            raise too_large(self._max_body)
        body = await read_body(receive, self._max_body)
        if scope["path"].startswith(_PREDICT) and len(body) > self._max_json:
            raise _json_too_large(self._max_json)
        waiting: list[Message] = [{"type": "http.request", "body": body, "more_body": False}]

        async def again() -> Message:
            return waiting.pop() if waiting else await receive()

        return again

    async def _tell_metrics(self, send: Send) -> None:
        """What Prometheus scrapes; counts are exact at that moment."""
        self._inference.metrics.tallies.flush()
        body = await asyncio.to_thread(exposition)
        headers = [(b"content-type", CONTENT_TYPE_LATEST.encode()), (b"content-length", b"%d" % len(body))]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def _infer(self, exchange: Exchange, arrived: float) -> None:
        head = exchange.head
        if self._generation != self._inference.fleet.generation:
            self._generation = self._inference.fleet.generation
            self._targets.clear()
        if len(head.fields) < len(head.headers):  # the one question that a second value may not answer
            one_header(head.headers, _AUTHORIZATION)
        try:
            self._access.check_inference(head.fields.get(_AUTHORIZATION))
        except RateLimitError as error:
            model, pinned = self._targets.get(head.path) or self._find(head.path)
            self._inference.count_error(model, pinned, model.slo.default.tier.name, error)
            raise
        model, pinned = self._targets.get(head.path) or self._find(head.path)
        model.inflight += 1
        try:
            request, parameters = await self._read(model, pinned, exchange)
            exchange.request_id = request_id = request.id or self._inference.new_id()
            course = await self._inference.infer(
                model, pinned, request, parameters, arrived, exchange.watch, request_id
            )
        except asyncio.CancelledError:
            if not exchange.is_abandoned:
                raise
            raise ClientGoneError from None
        finally:
            model.inflight -= 1
        lines, payload = self._written(course)
        if not exchange.write(200, lines, payload):
            await exchange.send(200, lines, payload)

    def _id(self, exchange: Exchange) -> str:
        """What a request that fails is called: as in the log, if it came so far."""
        return exchange.request_id or self._inference.new_id()

    async def _read(
        self, model: LoadedModel, pinned: LoadedVariant | None, exchange: Exchange
    ) -> tuple[InferRequest, dict[str, Any]]:
        """The decoded request, and what it asks for: parameters win over headers."""
        head, body = exchange.head, exchange.body
        try:
            header_length, parameters = head.meaning or self._read_head(head)
            if body is None:
                body = await exchange.read(self._max_body)
            if len(body) <= self._small:
                request = model.decoder.decode(body, header_length)
            else:
                request = await self._decode_large(model, body, header_length)
        except ServiceError as error:
            self._inference.count_error(model, pinned, model.slo.default.tier.name, error)
            raise
        return request, {**parameters, **request.parameters} if parameters else request.parameters

    async def _decode_large(self, model: LoadedModel, body: bytes, header_length: int | None) -> InferRequest:
        """Decodes in a thread what would hold up everybody else."""
        length = len(body) if header_length is None else header_length
        if length > self._max_json:
            raise _json_too_large(self._max_json)
        return await asyncio.to_thread(model.decoder.decode, body, header_length)

    async def _control(self, scope: Scope, exchange: Exchange) -> None:
        """Everything but inference: rare, and small."""
        path, headers = exchange.head.path, exchange.head.headers
        _check_length(path)
        is_operation = path.rstrip("/").endswith(_OPERATIONS)
        who = ANYONE
        if not path.startswith(_OPEN):
            role = Role.OPERATE if is_operation else Role.INFER
            who = self._access.check(headers, scope["client"], role)
        body = await exchange.read(self._max_body) if scope["method"] == "POST" else b""
        answer = await self._repository.answer(scope, path, body)
        if path.startswith(_REPOSITORY) and is_operation:
            *_, model, verb = path.rstrip("/").split("/")
            await self._operation.audit(who, f"{verb} model", model)
        await _tell(exchange, 200, answer)

    def _find(self, path: str) -> Target:
        """Model and pinned variant of an infer path; found ones are remembered."""
        _check_length(path)
        match path.split("/"):
            case ["", "v2", "models", name, "infer"]:
                version = None
            case ["", "v2", "models", name, "versions", version, "infer"]:
                pass
            case _:
                raise NotFoundError(f'unknown path "{path[:200]}". GET /v2/openapi.json lists what exists.')
        model = self._inference.fleet.find(name)
        try:
            target = (model, None if version is None else model.pinned(version))
        except UnavailableError as error:
            self._inference.count_error(model, None, model.slo.default.tier.name, error)
            raise
        if len(self._targets) < _MAX_ROUTES:
            self._targets[path] = target
        return target

    def _read_head(self, head: Head) -> tuple[int | None, dict[str, Any]]:
        """The length of the binary extension's JSON, and objectives stated in headers; read once per head."""
        headers = head.fields
        media_type = headers.get(b"content-type", _MEDIA_TYPES[0])
        if (
            media_type not in _MEDIA_TYPES
            and media_type.partition(b";")[0].strip().lower() not in _MEDIA_TYPES
        ):
            raise MediaTypeError(
                f'media type "{media_type[:80].decode("latin-1")}" is not read here. '
                "Send Content-Type: application/json or application/octet-stream."
            )
        if headers.get(b"content-encoding", b"") not in _NO_ENCODING:
            raise MediaTypeError("compressed bodies are not read here. Send the body uncompressed.")
        size = headers.get(b"content-length", b"")
        if len(size) >= self._telling_digits and self._is_too_long(size):
            raise too_large(self._max_body)
        length = headers.get(b"inference-header-content-length")
        if length is not None and not (length.isdigit() and len(length) <= _LONGEST_LENGTH):
            raise BadRequestError(
                "Inference-Header-Content-Length is no whole number. Send the JSON's length in bytes."
            )
        stated = SLO_HEADERS.keys() & headers.keys()
        parameters = {SLO_HEADERS[name]: headers[name].decode("latin-1") for name in stated} if stated else {}
        head.meaning = None if length is None else int(length), parameters
        return head.meaning

    def _is_too_long(self, length: bytes) -> bool:
        """Whether this is the length of a body that is not taken; zeros may lead it."""
        digits = length.lstrip(b"0")
        return digits.isdigit() and (len(digits) > _LONGEST_LENGTH or int(digits) > self._max_body)

    def _written(self, course: Course) -> tuple[bytes, bytes]:
        """Header lines and body of an answer."""
        model, variant, done, outputs = course.model, course.variant, course.done, course.outputs
        assert done is not None  # a failure is an exception
        assert outputs is not None
        request_id = course.request_id
        parameters, said_lines = _said(
            variant.name, course.slo.tier.name, course.degraded_from is not None, course.arm
        )
        payload, json_length = encode(
            model.name, variant.version, request_id, course.request, outputs, model.signature,
            {**parameters, "request_id": request_id},
        )  # fmt: skip
        timing = b"queue;dur=%.3f, infer;dur=%.3f" % (done.queue_s * 1e3, done.infer_s * 1e3)
        if course.transform_s:
            timing = b"transform;dur=%.3f, %b" % (course.transform_s * 1e3, timing)
        lines = b"%b%bx-mipgate-request-id: %b\r\nserver-timing: %b\r\ncontent-length: %d\r\n" % (
            _JSON if json_length is None else _BINARY % json_length,
            said_lines,
            request_id.encode(),
            timing,
            len(payload),
        )
        return lines, payload


@lru_cache(4096)
def _said(variant: str, tier: str, is_degraded: bool, arm: str) -> tuple[dict[str, Any], bytes]:
    """What parameters and headers say of who answered: the same for many requests."""
    said: dict[str, Any] = {"variant": variant, "tier": tier, "degraded": is_degraded}
    headers = [
        (b"x-mipgate-variant", variant.encode()),
        (b"x-mipgate-tier", tier.encode()),
        (b"x-mipgate-degraded", b"true" if is_degraded else b"false"),
    ]
    if arm:
        said["arm"] = arm
        headers.append((b"x-mipgate-arm", arm.encode()))
    return said, header_lines(headers)


def _is_ours(path: str) -> bool:
    return path.startswith("/v2/") or path == "/v2"


def _json_too_large(most: int) -> TooLargeError:
    return TooLargeError(
        f"the JSON is longer than {most} bytes. Send tensors in binary, or fewer rows at a time, or raise "
        "MIPGATE_MAX_JSON_BYTES."
    )


def _check_length(path: str) -> None:
    if len(path) > _MAX_PATH:
        raise PathTooLongError(f"the path has {len(path)} characters; {_MAX_PATH} are taken. Shorten it.")


async def _refuse(exchange: Exchange, error: ServiceError, lines: bytes = b"") -> None:
    await _tell(exchange, error.status, {"error": str(error)}, header_lines(error.headers()) + lines)


async def _tell(exchange: Exchange, status: int, document: Any, lines: bytes = b"") -> None:
    body = orjson.dumps(document)
    lines = b"%bcontent-length: %d\r\n%b" % (_JSON, len(body), lines)
    if not exchange.write(status, lines, body):
        await exchange.send(status, lines, body)
