"""The network side of serving: KServe's ModelServer, REST and gRPC, around a Service.

Routes, protocols, worker processes and health checks are KServe's. This module owns the model that KServe calls, the
status codes of our errors, the limits on requests, and the thread that looks for new releases.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import math
import multiprocessing
import os
import resource
import signal
import socket
import sys
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, MutableMapping
from contextlib import asynccontextmanager
from dataclasses import dataclass
from functools import partial
from typing import Any, TypeVar

from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.serving.release import Embedder, MissingVectorError, NoVectorsError, Release, ServiceOptions
from easyrec_mm.serving.request import RequestError
from easyrec_mm.serving.service import Answer, Service
from easyrec_mm.store import open_store
from easyrec_mm.tensorflow_import import import_tensorflow

_command_line, sys.argv = sys.argv, sys.argv[:1]  # kserve reads the command line when it is imported
import fastapi  # noqa: E402
import kserve  # noqa: E402
import uvloop  # noqa: E402
from fastapi.exceptions import RequestValidationError  # noqa: E402
from fastapi.responses import JSONResponse  # noqa: E402
from grpc_interceptor.exceptions import GrpcException, Internal, InvalidArgument, Unavailable  # noqa: E402
from kserve import model_server  # noqa: E402
from kserve.errors import InvalidInput  # noqa: E402
from kserve.model_repository import ModelRepository  # noqa: E402
from kserve.protocol.model_repository_extension import ModelRepositoryExtension  # noqa: E402
from starlette.exceptions import HTTPException  # noqa: E402
from starlette.routing import Route  # noqa: E402

sys.argv = _command_line

from easyrec_mm.serving import monitoring, protocols  # noqa: E402

MODEL_NAME = "rec"
_LOG = logging.getLogger("easyrec_mm.serving")
# A refused release is tried again after reload_every_s, then after twice as long, and so on, up to this time.
_LONGEST_RETRY_S = 60.0
_WARN_EVERY_S = 1.0

T = TypeVar("T")
Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]


@dataclass(frozen=True)
class ServerOptions:
    """Options of a process of the server.

    service            the model, and what to do about missing vectors
    store              URI of the store
    image_model_dir    folder of the image model, if missing vectors are computed
    image_root         folder in which the paths of their pictures start
    reload_every_s     seconds between looks for a new release; 0: never
    max_request_bytes  maximum size of a request's body
    max_connections    maximum per process; more are answered with 503
    """

    service: ServiceOptions
    store: str
    image_model_dir: str = ""
    image_root: str = ""
    http_port: int = 8080
    grpc_port: int = 8081
    workers: int = 1
    reload_every_s: float = 5.0
    max_request_bytes: int = 8 << 20
    max_connections: int = 1000


class RecModel(kserve.Model):  # type: ignore[misc]
    """The model that KServe calls. Each worker process has its own, which is loaded before it accepts connections."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(MODEL_NAME)
        monitoring.configure_logs()
        self._options = options
        self._service: Service | None = None
        self._warned_s = -math.inf
        # Waiting for a remote store or for an embedded picture must not block the loop that serves the connections.
        self._in_thread = not options.store.startswith("lmdb:") or options.service.missing_vector == "compute"
        _prepare_application(self, options.max_request_bytes)

    def __reduce__(self) -> tuple[type[RecModel], tuple[ServerOptions]]:
        return RecModel, (self._options,)

    @property
    def service(self) -> Service:
        """The service that answers requests."""
        if self._service is None:
            raise RuntimeError("the model is not loaded")
        return self._service

    def load(self) -> bool:
        """Load the model and the store if they are not loaded yet, and start to look for new releases.

        Raises:
          ExportError, StoreError, ServingError: if no release can be loaded.
        """
        if self._service is not None:
            return True
        self._service = _make_service(self._options)
        release = self._service.release
        monitoring.show_release(release)
        _log_release("serving", release)
        if self._options.reload_every_s:
            threading.Thread(target=self._reload_for_ever, name="reload", daemon=True).start()
        threading.Thread(target=self._service.keep_for_ever, name="keep", daemon=True).start()
        # The objects that exist now stay, so the garbage collector need not scan them repeatedly.
        gc.collect()
        gc.freeze()
        self.ready = True
        return True

    async def predict(self, payload: Any, headers: dict[str, str] | None = None) -> Any:
        """Answer a request of the V2 protocol, over REST or gRPC; requests of V1 have their own route.

        Raises:
          InvalidArgument, Unavailable, Internal: with the message for the client.
        """
        return await self._answer(lambda: protocols.body_of_tensors(payload), partial(protocols.tensors, payload))

    async def predict_v1(self, body: bytes) -> bytes:
        """Answer the body of a V1 request; see `predict`."""
        return await self._answer(lambda: body, protocols.predictions)

    async def _answer(self, read: Callable[[], object], write: Callable[[Answer], T]) -> T:
        started = time.perf_counter()
        outcome = "unavailable"
        try:
            body = read()
            answer = (
                await asyncio.to_thread(self.service.answer, body)
                if self._in_thread or self.service.release.lookup.is_remote
                else self.service.answer(body)
            )
            monitoring.count_vectors(answer)
            result = write(answer)
            outcome = "ok"
            return result
        except RequestError as error:
            outcome = "wrong"
            raise InvalidArgument(str(error)) from error
        except UserError as error:
            if isinstance(error, MissingVectorError):
                monitoring.VECTOR_MISSES.labels("error").inc(error.number)
            self._warn(error)
            raise Unavailable(str(error)) from error
        except Exception as error:
            _LOG.exception("a request could not be answered")
            raise Internal("internal error; the server's log has more") from error
        finally:
            monitoring.REQUESTS.labels(outcome).inc()
            monitoring.LATENCY.observe(time.perf_counter() - started)

    def _warn(self, error: UserError) -> None:
        """Log why a request was not answered, at most once per second; the metrics count all such requests."""
        now = time.monotonic()
        if now > self._warned_s + _WARN_EVERY_S:
            self._warned_s = now
            _LOG.warning("a request could not be answered: %s", error)

    def get_input_types(self) -> list[dict[str, Any]]:
        """See protocols.input_tensors."""
        release = self.service.release
        return protocols.input_tensors(release.predictor.manifest, release.reader.key_field)

    def get_output_types(self) -> list[dict[str, Any]]:
        """See protocols.output_tensors."""
        return protocols.output_tensors(self.service.release.predictor.manifest)

    def _reload_for_ever(self) -> None:
        wait_s, last_problem = self._options.reload_every_s, ""
        while True:
            time.sleep(wait_s)
            old = self.service.release
            try:
                new = self.service.reload()
            except Exception as error:
                if str(error) != last_problem:
                    wait_s, last_problem = self._options.reload_every_s, str(error)
                    is_known = isinstance(error, UserError | OSError)
                    text = shown(str(error))
                    _LOG.error("a new release is refused, the old one serves on: %s", text, exc_info=not is_known)
                    monitoring.RELOADS.labels("refused").inc()
                elif not isinstance(error, NoVectorsError):  # nothing was loaded to find that out
                    wait_s = max(min(2 * wait_s, _LONGEST_RETRY_S), self._options.reload_every_s)
                continue
            wait_s, last_problem = self._options.reload_every_s, ""
            if new is not None:
                monitoring.RELOADS.labels("taken").inc()
                monitoring.show_release(new, old)
                _log_release("reloaded", new)


def serve(options: ServerOptions) -> None:
    """Serve until a signal ends it.

    Raises:
      ExportError, StoreError, ServingError: if no release can be loaded.
      UserError: if a port is taken.
    """
    for flag, port in (("--http_port", options.http_port), ("--grpc_port", options.grpc_port)):
        _require_free(flag, port)
    _, most = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (most, most))
    model = RecModel(options)
    model.load()
    # KServe's worker processes choose their event loop themselves; a single process runs the loop that is set here.
    asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
    asyncio.set_event_loop(asyncio.new_event_loop())
    # KServe takes this limit from its own command line, which we do not use.
    model_server.args.grpc_max_receive_message_length = options.max_request_bytes
    _Server(options).start([model])


class _Server(model_server.ModelServer):  # type: ignore[misc]
    """KServe's server with our limits, and with one model that clients cannot load or unload."""

    def __init__(self, options: ServerOptions) -> None:
        super().__init__(
            http_port=options.http_port,
            grpc_port=options.grpc_port,
            workers=options.workers,
            enable_grpc=bool(options.grpc_port),
            enable_latency_logging=False,
            registered_models=_OneModel(),
        )
        self._max_connections = options.max_connections
        self.model_repository_extension = _FixedModel(self.registered_models)

    async def _serve(self) -> None:
        several = self._rest_multiprocess_server
        config = (several._rest_server if several else self._rest_server).config
        config.limit_concurrency = self._max_connections
        config.backlog = max(config.backlog, self._max_connections)
        config.access_log = False
        await super()._serve()


class _OneModel(ModelRepository):  # type: ignore[misc]
    def unload(self, name: str) -> None:
        """Do nothing: KServe calls this when the server has to end, but pending requests are still answered."""


class _FixedModel(ModelRepositoryExtension):  # type: ignore[misc]
    async def load(self, model_name: str) -> dict[str, Any]:
        raise InvalidInput("the server takes new models by itself; see --reload_every_s")

    async def unload(self, model_name: str) -> dict[str, Any]:
        raise InvalidInput("the model cannot be unloaded; end the server instead")


def _make_service(options: ServerOptions) -> Service:
    def load_embedder(fingerprint: str) -> Embedder:
        import_tensorflow()
        from easyrec_mm.embedding.image_model import PictureEmbedder  # imports TensorFlow, needed only here
        from easyrec_mm.serving.release import image_model_of

        folder = image_model_of(fingerprint, options.image_model_dir)
        return PictureEmbedder(folder, options.image_root)

    store = open_store(options.store)
    return Service(options.service, store, load_embedder if options.image_model_dir else None)


def _log_release(event: str, release: Release) -> None:
    _LOG.info(event, extra={"fields": {"rec_model_dir": release.folder, **release.version()}})


def _require_free(flag: str, port: int) -> None:
    """Raise UserError if a port is taken, because gRPC would share it with the process that has it."""
    if not port:
        return
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except (OSError, OverflowError) as error:
            raise UserError(f"{flag} {port}: cannot be used: {error}; choose another port") from error


def _end_with_parent() -> None:
    """End a worker process when its parent is killed, so that it does not keep the port."""
    parent = multiprocessing.parent_process()

    def wait() -> None:
        if parent is not None:
            parent.join()
            os.kill(os.getpid(), signal.SIGTERM)

    if parent is not None:
        threading.Thread(target=wait, name="parent", daemon=True).start()


_STATUS: dict[type[Exception], int] = {InvalidArgument: 400, Unavailable: 503, Internal: 500}


def _prepare_application(model: RecModel, max_request_bytes: int) -> None:
    """Add our routes, error handlers and limits to KServe's web application; KServe adds its own routes later."""
    application = model_server.app

    @asynccontextmanager
    async def load(_: fastapi.FastAPI) -> AsyncIterator[None]:
        # This also runs in worker processes; the parent kills a worker that gives no sign of life for five seconds.
        _end_with_parent()
        await asyncio.to_thread(model.load)
        yield

    application.router.lifespan_context = load

    async def tell(_: fastapi.Request, error: Exception) -> JSONResponse:
        details = error.details if isinstance(error, GrpcException) else str(error)
        return JSONResponse({"error": details}, _STATUS[type(error)])

    async def tell_not_valid(_: fastapi.Request, error: RequestValidationError) -> JSONResponse:
        problem = error.errors()[0]
        place = ".".join(str(part) for part in problem["loc"][1:] if not str(part).startswith("Inference"))
        return JSONResponse({"error": f"{place or 'the body'}: {problem['msg']}"}, 400)

    async def metrics(request: fastapi.Request) -> fastapi.Response:
        page, content_type = monitoring.metrics_page(request.headers.get("accept", ""))
        return fastapi.Response(page, headers={"content-type": content_type})

    async def tell_status(_: fastapi.Request, error: HTTPException) -> JSONResponse:
        return JSONResponse({"error": error.detail}, error.status_code, error.headers)

    application.add_exception_handler(HTTPException, tell_status)
    for kind in _STATUS:
        application.add_exception_handler(kind, tell)
    application.add_exception_handler(RequestValidationError, tell_not_valid)
    application.router.routes.append(Route(f"/v1/models/{MODEL_NAME}:predict", _PredictV1(model), methods=["POST"]))
    application.add_api_route("/metrics", metrics, methods=["GET"])
    application.add_middleware(_Guard, max_request_bytes=max_request_bytes)


class _PredictV1:
    """Answers V1 requests. KServe's own route, through two frameworks, would double the time of a small request."""

    def __init__(self, model: RecModel) -> None:
        self._model = model

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        content = await self._model.predict_v1(await fastapi.Request(scope, receive).body())
        await fastapi.Response(content, media_type="application/json")(scope, receive, send)


class _Guard:
    """Refuses request bodies that are too large, and bodies that KServe fails to read."""

    def __init__(self, application: Any, max_request_bytes: int) -> None:
        self._application, self._max_bytes = application, max_request_bytes

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self._application(scope, receive, send)
            return
        num_bytes, has_answered = 0, False

        async def receive_some() -> Message:
            nonlocal num_bytes
            message = await receive()
            num_bytes += len(message.get("body", b""))
            if num_bytes > self._max_bytes:
                text = f"the body is larger than {self._max_bytes} bytes; ask for fewer candidates at a time"
                raise HTTPException(413, text, {"connection": "close"})
            return message

        async def send_on(message: Message) -> None:
            nonlocal has_answered
            has_answered = True
            await send(message)

        try:
            await self._application(scope, receive_some, send_on)
        except Exception as error:
            # Errors raised by the model have a status; other errors mean that KServe could not read an invalid body.
            if has_answered:
                raise
            text = f"the request cannot be read: {type(error).__name__}: {error}"
            await JSONResponse({"error": text}, 400)(scope, receive, send)
