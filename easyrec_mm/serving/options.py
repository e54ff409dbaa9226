"""Options of the server."""

from __future__ import annotations

from dataclasses import dataclass

from easyrec_mm.serving.release import ServiceOptions


@dataclass(frozen=True)
class ServerOptions:
    """Options of the server; limits are those of each of its processes.

    service            the model, and what to do about missing vectors
    store              URI of the store
    image_model_dir    folder of the image model, if missing vectors are computed
    host               address or name to listen at
    workers            processes that answer REST requests
    reload_every_s     seconds between looks for a new release; 0: never
    max_request_bytes  maximum size of a request's body
    max_connections    maximum of requests that are answered at a time; further ones are answered with 503
    request_s          seconds that a client may take for the head of a request, and for its body
    idle_s             seconds after which a connection without a request is closed
    drain_s            seconds that requests under way get to end after a signal
    tls_cert, tls_key  files of the certificate chain and its private key, PEM; "" serves without TLS
    token_file         file with the tokens of which clients need one, one a line; "" serves everyone
    access_log         whether each request is logged
    quiet              whether the log has warnings and errors only
    """

    service: ServiceOptions
    store: str
    image_model_dir: str = ""
    host: str = "127.0.0.1"
    http_port: int = 8080
    grpc_port: int = 8081
    workers: int = 1
    reload_every_s: float = 5.0
    max_request_bytes: int = 8 << 20
    max_connections: int = 1000
    request_s: float = 30.0
    idle_s: float = 75.0
    drain_s: float = 25.0
    tls_cert: str = ""
    tls_key: str = ""
    token_file: str = ""
    access_log: bool = False
    quiet: bool = False
