"""gRPC: KServe's inference service and the standard health service, behind a gate like that of REST."""

from __future__ import annotations

import asyncio
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from typing import Any

import grpc
from grpc import StatusCode
from grpc.aio import ServerInterceptor
from grpc_health.v1 import health_pb2_grpc
from grpc_health.v1.health import aio as health
from grpc_health.v1.health_pb2 import HealthCheckResponse
from grpc_interceptor.exceptions import Internal
from kserve.protocol.grpc import grpc_predict_v2_pb2_grpc as services
from kserve.protocol.grpc.servicer import InferenceServicer

from easyrec_mm.errors import UserError
from easyrec_mm.serving import tracing
from easyrec_mm.serving.application import NO_TOKEN, FixedModel
from easyrec_mm.serving.connections import most_connections
from easyrec_mm.serving.model import MODEL_NAME, OneModel, RecModel
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.security import Certificate, Tokens
from easyrec_mm.serving.statuses import KNOWN_ERRORS, Status, status_of
from easyrec_mm.serving.traffic import Refusal, Traffic

_LOG = logging.getLogger("easyrec_mm.serving")
_ACCESS_LOG = logging.getLogger("easyrec_mm.access")
_SERVICE = "inference.GRPCInferenceService"
# What says whether the server lives and is ready: neither a token nor load nor the coming end refuse it.
_HEALTH = tuple(f"/{_SERVICE}/{method}" for method in ("ServerLive", "ServerReady", "ModelReady"))

Handle = Callable[[Any, grpc.aio.ServicerContext], Awaitable[Any]]


class GrpcListener:
    """Answers requests over gRPC.

    Args:
      model: the model.
      data_plane: KServe's access to it.
      options: address and limits.
      traffic: the requests of this process.
      certificate: None serves without TLS.
      tokens: None serves everyone.
    """

    def __init__(
        self,
        model: RecModel,
        data_plane: OneModel,
        options: ServerOptions,
        traffic: Traffic,
        certificate: Certificate | None,
        tokens: Tokens | None,
    ) -> None:
        self._options, self._certificate = options, certificate
        limits = {
            "grpc.max_receive_message_length": options.max_request_bytes,
            "grpc.max_send_message_length": -1,
            "grpc.max_allowed_incoming_connections": most_connections()[1],
            "grpc.max_connection_idle_ms": max(1, int(options.idle_s * 1000)),
            "grpc.server_handshake_timeout_ms": max(1, int(options.request_s * 1000)),
            "grpc.so_reuseport": 0,  # another process could take half of the connections unnoticed
        }
        gate = _Gate(options, traffic, tokens)
        self._server = grpc.aio.server(interceptors=[gate], options=list(limits.items()))
        services.add_GRPCInferenceServiceServicer_to_server(_Servicer(data_plane, model), self._server)
        self._health = health.HealthServicer()
        health_pb2_grpc.add_HealthServicer_to_server(self._health, self._server)

    async def start(self, address: str) -> None:
        """Accept connections at an address of this machine.

        Raises:
          UserError: if the port is taken.
        """
        port = self._options.grpc_port
        place = f"[{address}]:{port}" if ":" in address else f"{address}:{port}"
        try:
            if self._certificate is None:
                self._server.add_insecure_port(place)
            else:
                self._server.add_secure_port(place, self._certificate.grpc_credentials())
        except RuntimeError as error:
            raise UserError(f"--grpc_port {port}: cannot be used at {address}; choose another port") from error
        for service in (MODEL_NAME, _SERVICE):
            await self._health.set(service, HealthCheckResponse.SERVING)
        await self._server.start()

    async def not_ready(self) -> None:
        """Tell those who watch the health service that this process is no longer ready."""
        await self._health.enter_graceful_shutdown()

    async def stop(self, seconds: float) -> None:
        """Close the listener and its connections; answers that are being sent get that many seconds."""
        await self._server.stop(seconds)


class _Servicer(InferenceServicer):  # type: ignore[misc]
    """KServe's service, which knows no versions of a model, and would convert large requests in the event loop."""

    def __init__(self, data_plane: OneModel, model: RecModel) -> None:
        super().__init__(data_plane, FixedModel(data_plane.model_registry))
        self._model = model

    async def ModelReady(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._require_version(request.name, request.version)
        return await super().ModelReady(request, context)

    async def ModelMetadata(self, request: Any, context: Any) -> Any:  # noqa: N802
        self._require_version(request.name, request.version)
        metadata = await super().ModelMetadata(request, context)
        metadata.versions.append(self._model.version)
        return metadata

    async def ModelInfer(self, request: Any, context: Any) -> Any:  # noqa: N802
        if request.model_name != MODEL_NAME:
            return await super().ModelInfer(request, context)
        self._model.require_version(request.model_version)
        return await self._model.predict_grpc(request)

    def _require_version(self, name: str, version: str) -> None:
        if name == MODEL_NAME:
            self._model.require_version(version)


class _Gate(ServerInterceptor):  # type: ignore[misc]
    """Admits requests, counts them and answers for their errors; see Gate of REST."""

    def __init__(self, options: ServerOptions, traffic: Traffic, tokens: Tokens | None) -> None:
        self._options, self._traffic, self._tokens = options, traffic, tokens

    async def intercept_service(
        self,
        continuation: Callable[[grpc.HandlerCallDetails], Awaitable[grpc.RpcMethodHandler]],
        handler_call_details: grpc.HandlerCallDetails,
    ) -> grpc.RpcMethodHandler:
        """See grpc.aio.ServerInterceptor."""
        handler = await continuation(handler_call_details)
        method = handler_call_details.method
        if handler is None or not method.startswith(f"/{_SERVICE}/"):
            return handler
        call = _Call(method, handler.unary_unary, self._traffic, self._options)
        if method not in _HEALTH:
            call.refusal = self._refusal(handler_call_details.invocation_metadata)
        # As a stream, the only message of a request is read by us: within a limit of time.
        return grpc.stream_unary_rpc_method_handler(
            call.answer, handler.request_deserializer, handler.response_serializer
        )

    def _refusal(self, metadata: Sequence[tuple[str, str | bytes]]) -> Refusal | None:
        if self._tokens is not None:
            given = next((value for key, value in metadata if key == "authorization"), None)
            if not self._tokens.allow(given.encode() if isinstance(given, str) else given):
                return self._traffic.count(NO_TOKEN)
        return self._traffic.refusal(self._traffic.under_way("grpc") + 1)


class _Call:
    """A request."""

    def __init__(self, method: str, handle: Handle, traffic: Traffic, options: ServerOptions) -> None:
        self._method, self._handle, self._traffic, self._options = method, handle, traffic, options
        self.refusal: Refusal | None = None

    async def answer(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        """Return the answer, or end the call with a status."""
        started = time.perf_counter()
        ids = tracing.ids_of_metadata(context.invocation_metadata())
        tracing.current.set(ids)  # each call is a task of its own
        metadata = tuple(ids.items())
        if metadata:
            await context.send_initial_metadata(metadata)
        is_counted = self._method not in _HEALTH and self.refusal is None
        if is_counted:
            self._traffic.begin("grpc")
        status = Status(200, StatusCode.OK, "")
        try:
            answer = await self._answer(requests, context)
            context.set_trailing_metadata(metadata)
            return answer
        except Exception as error:
            status = self._status_of(error)
            await context.abort(status.grpc, status.message, metadata)
        finally:
            if is_counted:
                self._traffic.end("grpc")
            if self._options.access_log:
                self._log(context.peer(), status, time.perf_counter() - started)

    async def _answer(self, requests: AsyncIterator[Any], context: grpc.aio.ServicerContext) -> Any:
        if self.refusal is not None:
            await self._traffic.wait_before_refusing()
            raise _RefusedError(self.refusal)
        try:
            request = await asyncio.wait_for(anext(requests), self._options.request_s)
        except asyncio.TimeoutError as error:
            self._traffic.count(Refusal("too_slow", ""))
            text = f"the message took more than {self._options.request_s:g} s"
            raise _RefusedError(Refusal("too_slow", text)) from error
        return await self._handle(request, context)

    def _status_of(self, error: Exception) -> Status:
        if isinstance(error, _RefusedError):
            code = {"no_token": StatusCode.UNAUTHENTICATED, "too_slow": StatusCode.DEADLINE_EXCEEDED}
            return Status(503, code.get(error.refusal.reason, StatusCode.UNAVAILABLE), error.refusal.message)
        if isinstance(error, (*KNOWN_ERRORS, Internal)):
            return status_of(error)
        if self._method.endswith("/ModelInfer"):
            # What the model raises has a status: this is how KServe fails to read an invalid message.
            text = f"the request cannot be read: {type(error).__name__}: {error}"
            return Status(400, StatusCode.INVALID_ARGUMENT, text)
        _LOG.error("a request has failed", exc_info=error)
        return status_of(error)

    def _log(self, client: str, status: Status, seconds: float) -> None:
        fields = {"client": client, "method": self._method, "status": status.grpc.name, "seconds": round(seconds, 6)}
        _ACCESS_LOG.info("request", extra={"fields": fields})


class _RefusedError(Exception):
    """A request that is not admitted."""

    def __init__(self, refusal: Refusal) -> None:
        super().__init__(refusal.message)
        self.refusal = refusal
