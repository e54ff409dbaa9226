"""The server: from its options to the processes that answer, and to their end after a signal."""

from __future__ import annotations

import asyncio
import signal
import socket
import sys
from contextlib import suppress
from typing import NamedTuple

import uvloop

_command_line, sys.argv = sys.argv, sys.argv[:1]  # kserve reads the command line when it is imported
import kserve  # noqa: E402, F401

sys.argv = _command_line

from easyrec_mm.serving import monitoring  # noqa: E402
from easyrec_mm.serving.listening import bind, log_who_can_reach, require_ports  # noqa: E402
from easyrec_mm.serving.model import RecModel  # noqa: E402
from easyrec_mm.serving.options import ServerOptions  # noqa: E402
from easyrec_mm.serving.process import Process, Protection  # noqa: E402
from easyrec_mm.serving.workers import Workers  # noqa: E402

__all__ = ["Ended", "ServerOptions", "serve"]


class Ended(NamedTuple):
    """How the server has ended.

    status   exit status: 0, or 128 + n after a second signal n, which does not wait for requests under way
    is_idle  whether all requests were answered; otherwise threads may still be at work
    """

    status: int
    is_idle: bool


def serve(options: ServerOptions) -> Ended:
    """Serve until a signal ends it.

    Raises:
      ExportError, StoreError, ServingError: if no release can be loaded.
      UserError: if an address, a port, a certificate or a token cannot be used.
    """
    monitoring.configure_logs(options.quiet)
    require_ports(options)
    protection = Protection(options)
    listener = bind("--http_port", options.host, options.http_port)  # so that nobody takes it meanwhile
    with listener:
        address = listener.getsockname()[0]
        log_who_can_reach(options, address)
        model = RecModel(options)
        model.load()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        return loop.run_until_complete(_serve(options, Process(options, model, protection), listener, address))


async def _serve(options: ServerOptions, process: Process, listener: socket.socket, address: str) -> Ended:
    loop = asyncio.get_running_loop()
    end, status = asyncio.Event(), 0
    workers = Workers(options, listener) if options.workers > 1 else None
    replacing = asyncio.create_task(workers.replace_dead_ones()) if workers else None

    def on_signal(number: int) -> None:
        nonlocal status
        if end.is_set():
            status = 128 + number
            process.traffic.hurry()
            if workers:
                workers.hurry()
            return
        end.set()
        if workers and replacing:
            replacing.cancel()
            listener.close()  # the workers have theirs
            workers.end()

    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, on_signal, number)
    is_idle = await process.run(None if workers else listener, address if options.grpc_port else "", end)
    if workers and replacing:
        with suppress(asyncio.CancelledError):
            await replacing
        await workers.join()
    return Ended(status, is_idle)
