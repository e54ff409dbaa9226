"""Connections of clients over HTTP: uvicorn's protocol with limits of time, size and number.

A connection either waits for its client (for a request, for the rest of its head or of its body) or is answered.
Waiting costs little, so thousands may wait; the time of each is limited. When the process has no room for a further
connection, the one that has waited for the longest time is closed. Clients that only hold connections can therefore
not keep others out, least of all the probes of health.
"""

from __future__ import annotations

import asyncio
import http
import json
import re
import resource
import socket
import ssl
from collections.abc import Callable
from contextlib import suppress
from enum import IntEnum
from typing import NamedTuple, Protocol, cast

from uvicorn import Config
from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol
from uvicorn.server import ServerState

from easyrec_mm.serving.traffic import Refusal, Traffic

# Connections of a listener, if the limit of open files allows so many.
_MOST_CONNECTIONS = 16_384
# Files that a process needs besides: models, stores, logs, sockets between processes.
_OTHER_FILES = 128
_MOST_HEAD_BYTES = 64 << 10
_WHERE_UPGRADES_ARE = 4 << 10
_UPGRADE = re.compile(rb"\r\nupgrade:", re.IGNORECASE)


class Limits(NamedTuple):
    """Seconds that a client may take.

    request_s  for the head of a request, for its body, and for the TLS handshake
    idle_s     between two requests
    """

    request_s: float
    idle_s: float


class _Waiting(Protocol):
    """A connection that waits for its client."""

    def give_up(self) -> None:
        """Close it because its time is over."""

    def make_room(self) -> None:
        """Close it at once in favour of another one."""


def most_connections() -> tuple[int, int]:
    """Return how many connections REST and gRPC may have in this process, and raise its limit of open files first."""
    _, files = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (files, files))
    if files == resource.RLIM_INFINITY:
        return _MOST_CONNECTIONS, _MOST_CONNECTIONS
    of_grpc = max(8, min(_MOST_CONNECTIONS, files // 16))  # each takes many requests at a time
    return max(8, min(_MOST_CONNECTIONS, files - of_grpc - _OTHER_FILES)), of_grpc


class Connections:
    """The connections of a listener.

    Args:
      most: how many there may be.
      limits: how long each may wait.
      traffic: where refusals are counted.
    """

    def __init__(self, most: int, limits: Limits, traffic: Traffic) -> None:
        self.limits = limits
        self._most, self._traffic = most, traffic
        # Connection -> end of its time, in the order in which they began to wait.
        self._waiting: dict[_Waiting, float] = {}
        self._answered: set[_Waiting] = set()

    @property
    def number(self) -> int:
        """How many connections there are."""
        return len(self._waiting) + len(self._answered)

    @property
    def being_answered(self) -> int:
        """How many have sent a whole request that is not answered yet."""
        return len(self._answered)

    def admit(self, connection: _Waiting) -> None:
        """Take in a new connection; where there is no room, close the one that has waited for the longest time."""
        if self.number >= self._most:
            oldest = next(iter(self._waiting), connection)
            self._traffic.count(Refusal("no_room", ""))
            oldest.make_room()
            if oldest is connection:
                return
            self.forget(oldest)
        self.wait(connection, self.limits.idle_s)

    def wait(self, connection: _Waiting, seconds: float) -> None:
        """Note that a connection waits for its client from now on, for so long at most."""
        self.forget(connection)
        self._waiting[connection] = asyncio.get_running_loop().time() + seconds

    def answer(self, connection: _Waiting) -> None:
        """Note that a connection's request has arrived as a whole."""
        self._waiting.pop(connection, None)
        self._answered.add(connection)

    def forget(self, connection: _Waiting) -> None:
        """Note that a connection is closed."""
        self._waiting.pop(connection, None)
        self._answered.discard(connection)

    def refuse(self, reason: str) -> None:
        """Count a request that is not even read."""
        self._traffic.count(Refusal(reason, ""))

    def close_late_ones(self) -> None:
        """Close the connections whose time is over."""
        now = asyncio.get_running_loop().time()
        for connection in [connection for connection, end in self._waiting.items() if end <= now]:
            connection.give_up()


class _Phase(IntEnum):
    """What a connection waits for; DONE: for its answer."""

    REQUEST = 0
    HEAD = 1
    BODY = 2
    DONE = 3


class HttpConnection(HttpToolsProtocol):
    """A connection of HTTP/1.1.

    Args:
      config: uvicorn's settings, loaded.
      state: uvicorn's state of the listener.
      connections: where it is kept.
    """

    def __init__(self, config: Config, state: ServerState, connections: Connections) -> None:
        super().__init__(config, state, {})
        self._among = connections
        self._phase = _Phase.REQUEST
        self._num_head_bytes = 0

    # What uvicorn or its parser call.

    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        """See asyncio.Protocol."""
        super().connection_made(cast(asyncio.Transport, transport))
        self._among.admit(self)

    def connection_lost(self, exc: Exception | None) -> None:
        """See asyncio.Protocol."""
        self._among.forget(self)
        super().connection_lost(exc)

    def data_received(self, data: bytes) -> None:
        """See asyncio.Protocol."""
        num_left = _MOST_HEAD_BYTES - self._num_head_bytes
        if self._phase <= _Phase.HEAD and len(data) > num_left and b"\r\n\r\n" not in data[: num_left + 4]:
            self._among.refuse("too_large")
            self._answer_and_close(431, f"the head of the request is larger than {_MOST_HEAD_BYTES} bytes")
            return
        if self._phase <= _Phase.HEAD and b"upgrade:" in data[:_WHERE_UPGRADES_ARE].lower():
            # Java's client asks for HTTP/2 in every request. uvicorn ignores that, and the body of the request with it.
            head, end, body = data.partition(b"\r\n\r\n")
            data = _UPGRADE.sub(b"\r\nx-upgrade:", head) + end + body
        super().data_received(data)
        if self._phase == _Phase.HEAD:
            self._num_head_bytes += len(data)

    def on_message_begin(self) -> None:
        """Begin to parse the head of a request."""
        super().on_message_begin()
        self._enter(_Phase.HEAD)

    def on_headers_complete(self) -> None:
        """Begin to answer a request, which waits for its body."""
        self._enter(_Phase.BODY)
        super().on_headers_complete()

    def on_message_complete(self) -> None:
        """Take note of the end of a request."""
        super().on_message_complete()
        # A request may be refused before its body has arrived.
        self._enter(_Phase.REQUEST if self.cycle.response_complete else _Phase.DONE)

    def on_response_complete(self) -> None:
        """Take note of the end of an answer; a request that was sent ahead of it is next."""
        super().on_response_complete()
        if not self.transport.is_closing():
            self._phase = _Phase.REQUEST
            if not self.cycle.response_complete:
                self._enter(_Phase.BODY if self.cycle.more_body else _Phase.DONE)
            else:
                self._enter(_Phase.REQUEST)

    def send_400_response(self, msg: str) -> None:
        """Answer what is not HTTP."""
        self._among.refuse("not_http")
        self._answer_and_close(400, msg)

    # What the listener calls.

    def give_up(self) -> None:
        """Close the connection because its client has taken too long."""
        if self._phase == _Phase.HEAD or (self._phase == _Phase.BODY and not self.cycle.response_started):
            part = "head" if self._phase == _Phase.HEAD else "body"
            self._among.refuse("too_slow")
            self._answer_and_close(408, f"the {part} of the request took more than {self._among.limits.request_s:g} s")
        elif self.transport.get_write_buffer_size():
            self.transport.abort()  # the client does not take its answer
        else:
            self.transport.close()

    def make_room(self) -> None:
        """Close the connection at once, for another one."""
        self.transport.abort()

    def close_if_idle(self) -> None:
        """Close the connection unless a request of it is to be answered."""
        self.shutdown()

    def _enter(self, phase: _Phase) -> None:
        if self.transport.is_closing() or (self._phase == _Phase.DONE and phase != _Phase.REQUEST):
            return  # a request that was sent before the answer to the last one
        self._phase = phase
        if phase == _Phase.DONE:
            self._among.answer(self)
        else:
            self._num_head_bytes = 0
            limits = self._among.limits
            self._among.wait(self, limits.idle_s if phase == _Phase.REQUEST else limits.request_s)

    def _answer_and_close(self, status: int, message: str) -> None:
        if self.transport.is_closing():
            return
        body = json.dumps({"error": message}).encode()
        lines = [
            f"HTTP/1.1 {status} {http.HTTPStatus(status).phrase}",
            "content-type: application/json",
            f"content-length: {len(body)}",
            "connection: close",
        ]
        self.transport.write("\r\n".join(lines).encode() + b"\r\n\r\n" + body)
        self.transport.close()


class Handshake:
    """A connection that becomes an HttpConnection when its TLS handshake is done.

    An event loop that does the handshake shows a connection only afterwards, so unfinished ones would not count.

    Args:
      accepted: the connection.
      make: makes what it becomes.
      connections: where it is kept meanwhile.
      context: the certificate.
    """

    def __init__(
        self,
        accepted: socket.socket,
        make: Callable[[], HttpConnection],
        connections: Connections,
        context: ssl.SSLContext,
    ) -> None:
        self._accepted, self._make, self._among, self._context = accepted, make, connections, context

    async def shake_hands(self) -> None:
        """Do the handshake, within the time that a request may take."""
        self._among.admit(self)
        limit_s = self._among.limits.request_s
        try:
            await asyncio.get_running_loop().connect_accepted_socket(
                self._make, self._accepted, ssl=self._context, ssl_handshake_timeout=limit_s
            )
        except OSError:
            self._accepted.close()
        finally:
            self._among.forget(self)

    def give_up(self) -> None:
        """See HttpConnection."""
        with suppress(OSError):  # the client has closed it
            self._accepted.shutdown(socket.SHUT_RDWR)

    def make_room(self) -> None:
        """See HttpConnection."""
        self.give_up()
