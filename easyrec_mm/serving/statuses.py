"""The status of each error, over REST and gRPC; anything else is a fault of the server: 500, INTERNAL."""

from __future__ import annotations

from typing import NamedTuple

from grpc import StatusCode
from grpc_interceptor.exceptions import GrpcException, InvalidArgument, Unavailable
from kserve.errors import (
    InferenceError,
    InvalidInput,
    ModelNotFound,
    ModelNotReady,
    ServerNotLive,
    ServerNotReady,
    UnsupportedProtocol,
)

from easyrec_mm.safe_text import hide_secrets


class Status(NamedTuple):
    """What a client is told of an error."""

    http: int
    grpc: StatusCode
    message: str


class VersionNotFound(ModelNotFound):  # type: ignore[misc]
    """A version of the model that is not served."""

    def __init__(self, name: str, version: str, served: str) -> None:
        super().__init__(name)
        self.reason = f"{name} has no version {version}; version {served} is served"


_STATUSES: tuple[tuple[tuple[type[Exception], ...], int, StatusCode], ...] = (
    ((InvalidArgument, InvalidInput, InferenceError), 400, StatusCode.INVALID_ARGUMENT),
    ((ModelNotFound,), 404, StatusCode.NOT_FOUND),
    ((NotImplementedError, UnsupportedProtocol), 501, StatusCode.UNIMPLEMENTED),
    ((Unavailable, ModelNotReady, ServerNotReady, ServerNotLive), 503, StatusCode.UNAVAILABLE),
)
KNOWN_ERRORS = tuple(error for errors, _, _ in _STATUSES for error in errors)


def status_of(error: Exception) -> Status:
    """Return the status of an error."""
    for errors, http, grpc in _STATUSES:
        if isinstance(error, errors):
            text = error.details if isinstance(error, GrpcException) else str(error)
            return Status(http, grpc, hide_secrets(text) or "not supported")
    return Status(500, StatusCode.INTERNAL, "internal error; the server's log has more")
