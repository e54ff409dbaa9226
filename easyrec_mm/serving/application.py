"""The web application: KServe's routes and ours behind one gate, which admits requests and answers for all errors."""

from __future__ import annotations

import logging
import re
import time
from collections.abc import Awaitable, Callable, Mapping, MutableMapping, Sequence
from typing import Any

import fastapi
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, ORJSONResponse
from grpc_interceptor.exceptions import Internal
from kserve.errors import InvalidInput, ModelNotReady
from kserve.protocol.model_repository_extension import ModelRepositoryExtension
from kserve.protocol.rest.v1_endpoints import register_v1_endpoints
from kserve.protocol.rest.v2_endpoints import register_v2_endpoints
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from easyrec_mm import __version__
from easyrec_mm.serving import monitoring, openapi, tracing
from easyrec_mm.serving.connections import Connections
from easyrec_mm.serving.model import MODEL_NAME, OneModel, RecModel
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.routes import ModelRoute
from easyrec_mm.serving.security import Tokens
from easyrec_mm.serving.statuses import KNOWN_ERRORS, status_of
from easyrec_mm.serving.traffic import Refusal, Traffic

_LOG = logging.getLogger("easyrec_mm.serving")
_ACCESS_LOG = logging.getLogger("easyrec_mm.access")
_METRICS = "/metrics"
# Path -> protocol of requests to the model.
_PREDICT = {f"/v1/models/{MODEL_NAME}:predict": "v1", f"/v2/models/{MODEL_NAME}/infer": "v2"}
# Paths that say whether the server lives and is ready: neither a token nor load nor the coming end refuse them.
_HEALTH = ("/", "/v2/health/live", "/v2/health/ready", f"/v2/models/{MODEL_NAME}/ready", f"/v1/models/{MODEL_NAME}")
_VERSION = re.compile(rf"(/v[12]/models/{MODEL_NAME})/versions/([^/:]+)(.*)", re.DOTALL)
_MOST_DISCARDED = 64 << 20
# Bodies of the largest size that a process keeps at a time.
_MOST_BODIES = 64
NO_TOKEN = Refusal("no_token", "give a valid token, as in the header authorization: Bearer TOKEN")

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]


def make_application(model: RecModel, data_plane: OneModel, show_gauges: Callable[[], None]) -> fastapi.FastAPI:
    """Return the routes and the handlers of known errors; `Gate` goes before them.

    Args:
      model: the model.
      data_plane: KServe's access to it.
      show_gauges: sets the gauges to what they are now, before they are read.
    """
    application = fastapi.FastAPI(
        title="easyrec-mm", version=__version__, docs_url=None, redoc_url=None, default_response_class=ORJSONResponse
    )

    async def metrics(request: fastapi.Request) -> fastapi.Response:
        show_gauges()
        page, content_type = monitoring.metrics_page(request.headers.get("accept", ""))
        return fastapi.Response(page, headers={"content-type": content_type})

    async def model_status() -> dict[str, Any]:
        if not await data_plane.model_ready(MODEL_NAME):
            raise ModelNotReady(MODEL_NAME)
        status = {"version": model.version, "state": "AVAILABLE", "status": {"error_code": "OK", "error_message": ""}}
        return {"name": MODEL_NAME, "ready": True, "model_version_status": [status]}

    application.add_api_route(f"/v1/models/{MODEL_NAME}", model_status, methods=["GET"])
    application.add_api_route(_METRICS, metrics, methods=["GET"])
    application.add_api_route("/", data_plane.live, methods=["GET"])
    fixed = FixedModel(data_plane.model_registry)
    register_v1_endpoints(application, data_plane, fixed)
    register_v2_endpoints(application, data_plane, fixed)
    _add_error_handlers(application)
    application.openapi = lambda: openapi.document(model.service.release, MODEL_NAME)  # type: ignore[method-assign]
    return application


class FixedModel(ModelRepositoryExtension):  # type: ignore[misc]
    """KServe's way to load and unload models, which clients do not have."""

    async def load(self, model_name: str) -> dict[str, Any]:
        """Refuse to load a model."""
        raise InvalidInput("the server takes new models by itself; see --reload_every_s")

    async def unload(self, model_name: str) -> dict[str, Any]:
        """Refuse to unload a model."""
        raise InvalidInput("the model cannot be unloaded; end the server instead")


def _add_error_handlers(application: fastapi.FastAPI) -> None:
    async def tell(_: fastapi.Request, error: Exception) -> JSONResponse:
        status = status_of(error)
        return JSONResponse({"error": status.message}, status.http)

    async def tell_not_valid(_: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][1:] if not str(part).startswith("Inference"))
        return JSONResponse({"error": f"{place or 'the body'}: {problem['msg']}"}, 400)

    async def tell_status(_: fastapi.Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    application.add_exception_handler(HTTPException, tell_status)  # type: ignore[arg-type]
    application.add_exception_handler(RequestValidationError, tell_not_valid)  # type: ignore[arg-type]
    for kind in (*KNOWN_ERRORS, Internal):
        application.add_exception_handler(kind, tell)


class Gate:
    """Admits requests: refuses those without a token, too many or too large ones, and all once the process has to end.

    Requests to the model take a way of their own: that through two frameworks would double the time of a small one.
    Errors that nothing else answers become an answer here, and one line of the log.
    """

    def __init__(
        self,
        application: Application,
        model: RecModel,
        options: ServerOptions,
        traffic: Traffic,
        connections: Connections,
        tokens: Tokens | None,
    ) -> None:
        self._application, self._model, self._options = application, model, options
        self._routes: dict[str, Application] = {
            path: ModelRoute(model, protocol, options.max_request_bytes) for path, protocol in _PREDICT.items()
        }
        self._traffic, self._connections, self._tokens = traffic, connections, tokens

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request."""
        started = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._traffic, self._options.max_request_bytes)
        path, version = scope["path"], ""
        if "/versions/" in path and (match := _VERSION.fullmatch(path)):
            path, version = match[1] + match[3], match[2]
            scope = {**scope, "path": path, "raw_path": path.encode()}
        token = tracing.current.set(exchange.ids)
        try:
            if refusal := self._refusal(path, scope["headers"]):
                await exchange.refuse(refusal)
            elif path in _HEALTH or path == _METRICS:
                self._model.require_version(version)
                await self._application(scope, exchange.receive, exchange.send)
            else:
                self._model.require_version(version)
                await self._answer(scope, exchange)
        except Exception as error:
            await exchange.tell(error)
        finally:
            exchange.end()
            if self._options.access_log:
                exchange.log(time.perf_counter() - started)
            tracing.current.reset(token)

    async def _answer(self, scope: Message, exchange: _Exchange) -> None:
        self._traffic.begin("rest")
        try:
            route = self._routes.get(scope["path"], self._application)
            await route(scope, exchange.receive, exchange.send)
        finally:
            self._traffic.end("rest")

    def _refusal(self, path: str, headers: Sequence[tuple[bytes, bytes]]) -> Refusal | None:
        if path in _HEALTH:
            return None
        if self._tokens is not None:
            given = next((value for name, value in headers if name == b"authorization"), None)
            if not self._tokens.allow(given):
                return self._traffic.count(NO_TOKEN)
        return None if path == _METRICS else self._traffic.refusal(self._connections.being_answered)


class _Exchange:
    """A request and its answer on their way through the gate."""

    def __init__(self, scope: Message, receive: Receive, send: Send, traffic: Traffic, max_bytes: int) -> None:
        self.ids = tracing.ids_of_headers(scope["headers"])
        self._scope, self._receive, self._send = scope, receive, send
        self._traffic, self._max_bytes = traffic, max_bytes
        self._num_bytes, self._status, self._has_more = 0, 0, True

    async def receive(self) -> Message:
        """Receive a part of the body.

        Raises:
          HTTPException: if the body is too large.
        """
        message = await self._receive()
        self._has_more = bool(message.get("more_body"))
        num_bytes = len(message.get("body", b""))
        self._num_bytes += num_bytes
        if not self._traffic.hold(num_bytes, _MOST_BODIES * self._max_bytes):
            self._traffic.count(Refusal("too_many", ""))
            raise HTTPException(503, "too many bytes of requests at a time; try again later", {"connection": "close"})
        if self._num_bytes > self._max_bytes:
            self._traffic.count(Refusal("too_large", ""))
            await self._discard_body()
            text = f"the body is larger than {self._max_bytes} bytes; ask for fewer candidates at a time"
            raise HTTPException(413, text, {"connection": "close"})
        return message

    async def send(self, message: Message) -> None:
        """Send a part of the answer, with the ids of the request, and say if the connection ends."""
        if message["type"] == "http.response.start":
            self._status = message["status"]
            more = [(name.encode(), value.encode()) for name, value in self.ids.items()]
            if not self._traffic.is_ready:
                more.append((b"connection", b"close"))
            if more:
                message = {**message, "headers": [*message.get("headers", ()), *more]}
        await self._send(message)

    async def refuse(self, refusal: Refusal) -> None:
        """Answer a request that is not admitted."""
        await self._discard_body()
        if refusal is NO_TOKEN:
            await self._answer(401, refusal.message, {"www-authenticate": "Bearer"})
        else:
            await self._traffic.wait_before_refusing()
            await self._answer(503, refusal.message, {"connection": "close"} if self._traffic.is_ready else {})

    async def tell(self, error: Exception) -> None:
        """Answer with an error."""
        if isinstance(error, ClientDisconnect):
            return
        if self._status:
            _LOG.error("an answer has failed", exc_info=error)
        elif isinstance(error, HTTPException):
            await self._answer(error.status_code, error.detail, error.headers)
        elif isinstance(error, (*KNOWN_ERRORS, Internal)):
            status = status_of(error)
            await self._answer(status.http, status.message)
        elif self._scope["method"] == "POST":
            # What the model raises has a status: this is how KServe fails to read an invalid body.
            await self._answer(400, f"the request cannot be read: {type(error).__name__}: {error}")
        else:
            _LOG.error("a request has failed", exc_info=error)
            await self._answer(500, status_of(error).message)

    def end(self) -> None:
        """Let go of the body."""
        self._traffic.release(self._num_bytes)

    def log(self, seconds: float) -> None:
        """Log the request."""
        client = self._scope["client"]
        fields = {
            "client": client[0] if client else "",
            "method": self._scope["method"],
            "path": self._scope["path"],
            "status": self._status,
            "bytes": self._num_bytes,
            "seconds": round(seconds, 6),
        }
        _ACCESS_LOG.info("request", extra={"fields": fields})

    async def _answer(self, status: int, text: str, headers: Mapping[str, str] | None = None) -> None:
        answer = JSONResponse({"error": text}, status, None if headers is None else dict(headers))
        await answer(self._scope, self._receive, self.send)

    async def _discard_body(self) -> None:
        """Read the rest of the body: a client that still sends would not see the answer before a closed connection."""
        if any(name == b"expect" for name, _ in self._scope["headers"]):
            return  # its client waits for a word before it sends the body
        num_bytes = 0
        while self._has_more and num_bytes < _MOST_DISCARDED:
            message = await self._receive()
            self._has_more = bool(message.get("more_body"))
            num_bytes += len(message.get("body", b""))
