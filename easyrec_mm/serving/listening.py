"""Where the server listens: addresses, ports, and the listener of REST with its connections."""

from __future__ import annotations

import asyncio
import ipaddress
import logging
import socket
from contextlib import suppress
from email.utils import formatdate
from typing import Any

from uvicorn import Config
from uvicorn.server import ServerState

from easyrec_mm.errors import UserError
from easyrec_mm.serving.connections import Connections, Handshake, HttpConnection
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.security import Certificate

_LOG = logging.getLogger("easyrec_mm.serving")
_BACKLOG = 2048
_LAST_REQUESTS_S = 0.3


def bind(flag: str, host: str, port: int) -> socket.socket:
    """Return a socket of a port that nobody else has; it does not accept connections yet.

    Args:
      flag: the flag of the port, for messages.
      host: an address of this machine, or its name.
      port: the port.

    Raises:
      UserError: if the host is not one of this machine, or the port is taken.
    """
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[
            0
        ]
    except (OSError, UnicodeError) as error:
        raise UserError(f"--host {host}: is not known: {error}; give an address such as 0.0.0.0") from error
    listener = None
    try:
        listener = socket.socket(family, kind)
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            # "::" stands for all addresses, as for gRPC: those of IPv4 as well.
            listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, int(address[0] != "::"))
        listener.bind(address)
    except (OSError, OverflowError) as error:
        if listener is not None:
            listener.close()
        raise UserError(
            f"{flag} {port}: cannot be used: {error} (--host {host}); choose another port, or an address of "
            "this machine"
        ) from error
    return listener


def require_ports(options: ServerOptions) -> None:
    """Check the ports before anything is loaded.

    Raises:
      UserError: if a port is taken, or both are the same.
    """
    ports = {"--http_port": options.http_port, "--grpc_port": options.grpc_port}
    for flag, port in ports.items():
        if port > 65535:
            raise UserError(f"{flag} {port}: is not a port; give a number up to 65535")
    if options.http_port == options.grpc_port:
        raise UserError(f"--grpc_port {options.grpc_port}: is the port of REST, too; choose another one, or 0 for none")
    for flag, port in ports.items():
        if port:
            bind(flag, options.host, port).close()


def log_who_can_reach(options: ServerOptions, address: str) -> None:
    """Log if other machines can reach the server, and what protects it."""
    if ipaddress.ip_address(address).is_loopback:
        return
    lacking = [
        flag for flag, value in (("--tls_cert", options.tls_cert), ("--token_file", options.token_file)) if not value
    ]
    text = f"other machines can reach this server at {address}"
    if lacking:
        _LOG.warning("%s; keep it behind a gateway, or give %s", text, " and ".join(lacking))
    else:
        _LOG.info(text)


class RestListener:
    """Accepts connections of HTTP and hands their requests to an application.

    Args:
      application: an ASGI application.
      connections: where its connections are kept.
      certificate: None serves without TLS.
    """

    def __init__(self, application: Any, connections: Connections, certificate: Certificate | None) -> None:
        self._config = Config(
            application, http=HttpConnection, ws="none", lifespan="off", log_config=None, access_log=False,
            server_header=False, proxy_headers=False, timeout_keep_alive=connections.limits.idle_s,  # type: ignore[arg-type]
        )  # fmt: skip
        self._config.load()
        self._state = ServerState()
        self._connections, self._certificate = connections, certificate
        self._server: asyncio.Server | None = None
        self._listener: socket.socket | None = None
        # With TLS, connections are accepted here: the handshake counts.
        self._accepting: asyncio.Task[None] | None = None
        self._beginning: set[asyncio.Task[None]] = set()

    async def start(self, listener: socket.socket) -> None:
        """Accept connections of a socket."""
        self.tick()
        listener.setblocking(False)
        self._listener = listener
        loop = asyncio.get_running_loop()
        if self._certificate is None:
            self._server = await loop.create_server(self._make, sock=listener, backlog=_BACKLOG)
        else:
            listener.listen(_BACKLOG)
            self._accepting = loop.create_task(self._accept(listener))

    def tick(self) -> None:
        """Do what is to be done every second."""
        self._state.default_headers = [(b"date", formatdate(usegmt=True).encode())]
        self._connections.close_late_ones()

    async def stop(self, seconds: float, is_shared: bool) -> None:
        """Close the listener and its connections.

        Args:
          seconds: how long answers that are being sent may take.
          is_shared: whether other processes go on to accept connections of the socket.
        """
        await self._stop_accepting(is_shared)
        # A client may have sent a request at this moment. It gets an answer, which ends its connection.
        await self._wait_until_closed(min(seconds, _LAST_REQUESTS_S))
        for connection in list(self._state.connections):
            connection.shutdown()
        await self._wait_until_closed(seconds)
        for connection in list(self._state.connections):
            connection.transport.abort()
        tasks = [*self._state.tasks, *self._beginning]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    async def _stop_accepting(self, is_shared: bool) -> None:
        """Close the listener. Connections that the kernel has made already are accepted first, not reset."""
        if self._listener is None:
            return
        accepted = []
        if not is_shared:
            with suppress(OSError):  # there are no more
                while True:
                    accepted.append(self._listener.accept()[0])
            with suppress(OSError):  # another process was faster
                self._listener.shutdown(socket.SHUT_RDWR)  # at once; the event loop closes it later
        if self._server is not None:
            self._server.close()
        if self._accepting is not None:
            self._accepting.cancel()
            self._listener.close()
        for connection in accepted:
            self._take(connection)

    async def _wait_until_closed(self, seconds: float) -> None:
        loop = asyncio.get_running_loop()
        end = loop.time() + seconds
        while (self._state.connections or self._beginning) and loop.time() < end:
            await asyncio.sleep(0.02)

    async def _accept(self, listener: socket.socket) -> None:
        loop = asyncio.get_running_loop()
        while True:
            try:
                self._take((await loop.sock_accept(listener))[0])
            except OSError:  # no files are left, or the client has gone
                await asyncio.sleep(0.05)

    def _take(self, accepted: socket.socket) -> None:
        task = asyncio.get_running_loop().create_task(self._begin(accepted))
        self._beginning.add(task)
        task.add_done_callback(self._beginning.discard)

    async def _begin(self, accepted: socket.socket) -> None:
        if self._certificate is not None:
            await Handshake(accepted, self._make, self._connections, self._certificate.context).shake_hands()
        else:
            with suppress(OSError):  # the client has gone
                await asyncio.get_running_loop().connect_accepted_socket(self._make, accepted)

    def _make(self) -> HttpConnection:
        return HttpConnection(self._config, self._state, self._connections)
