"""A process of the server: its listeners, from their start until all that they have admitted is answered."""

from __future__ import annotations

import asyncio
import socket
from contextlib import suppress

from fastapi import FastAPI

from easyrec_mm.serving import monitoring
from easyrec_mm.serving.application import Gate, make_application
from easyrec_mm.serving.connections import Connections, Limits, most_connections
from easyrec_mm.serving.grpc_listener import GrpcListener
from easyrec_mm.serving.listening import RestListener
from easyrec_mm.serving.model import OneModel, RecModel
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.security import Certificate, Tokens
from easyrec_mm.serving.traffic import Traffic

_TICK_S = 1.0
# How long answers that are written get to reach their clients at the end.
_FLUSH_S = 2.0


class Protection:
    """The certificate and the tokens of a process, None without.

    Raises:
      UserError: if their files cannot be used.
    """

    def __init__(self, options: ServerOptions) -> None:
        self.certificate = Certificate(options.tls_cert, options.tls_key) if options.tls_cert else None
        self.tokens = Tokens(options.token_file) if options.token_file else None

    def renew(self) -> None:
        """Take files that have changed."""
        for files in (self.certificate, self.tokens):
            if files is not None:
                files.renew()


class Process:
    """The listeners of a process, which share its model.

    Args:
      options: limits.
      model: the model, loaded.
      protection: the certificate and the tokens.
    """

    def __init__(self, options: ServerOptions, model: RecModel, protection: Protection) -> None:
        self._options, self._model, self._protection = options, model, protection
        self.traffic = Traffic(options.max_connections)
        self._data_plane = OneModel(model, self.traffic)
        limits = Limits(options.request_s, options.idle_s)
        self._connections = Connections(most_connections()[0], limits, self.traffic)
        # Whether other processes go on to accept connections when this one ends.
        self.is_replaced = False
        self._rest: RestListener | None = None
        self._grpc: GrpcListener | None = None

    async def run(self, rest: socket.socket | None, grpc_address: str, end: asyncio.Event) -> bool:
        """Answer requests until `end`, and those that are under way then; return whether all were answered.

        Args:
          rest: socket of REST; None for none.
          grpc_address: address of gRPC; "" for none.
          end: set when the process has to end.

        Raises:
          UserError: if the port of gRPC is taken.
        """
        if grpc_address:
            protection = self._protection.certificate, self._protection.tokens
            self._grpc = GrpcListener(self._model, self._data_plane, self._options, self.traffic, *protection)
            await self._grpc.start(grpc_address)
        if rest is not None:
            self._rest = RestListener(self._application(), self._connections, self._protection.certificate)
            await self._rest.start(rest)
        ticking = asyncio.create_task(self._tick())
        await end.wait()
        is_idle = await self.traffic.drain(self._options.drain_s, self._not_ready)
        seconds = _FLUSH_S if is_idle else 0.0
        if self._rest is not None:
            await self._rest.stop(seconds, self.is_replaced)
        if self._grpc is not None:
            await self._grpc.stop(seconds)
        ticking.cancel()
        with suppress(asyncio.CancelledError):
            await ticking
        return is_idle

    def _application(self) -> FastAPI:
        routes = make_application(self._model, self._data_plane, self._show_gauges)
        routes.add_middleware(
            Gate, model=self._model, options=self._options, traffic=self.traffic, connections=self._connections,
            tokens=self._protection.tokens,
        )  # fmt: skip
        return routes

    async def _not_ready(self) -> None:
        if self._grpc is not None:
            await self._grpc.not_ready()

    async def _tick(self) -> None:
        while True:
            if self._rest is not None:
                self._rest.tick()
            self._protection.renew()
            self._show_gauges()
            await asyncio.sleep(_TICK_S)

    def _show_gauges(self) -> None:
        for protocol in ("rest", "grpc"):
            monitoring.UNDER_WAY.labels(protocol).set(self.traffic.under_way(protocol))
        monitoring.CONNECTIONS.set(self._connections.number)
