"""Processes that answer REST requests beside the first one, which replaces those that die and ends them with itself."""

from __future__ import annotations

import asyncio
import logging
import multiprocessing
import os
import signal
import socket
import threading
from contextlib import suppress
from multiprocessing.connection import Connection
from typing import NamedTuple

import uvloop

from easyrec_mm.serving import monitoring
from easyrec_mm.serving.model import RecModel
from easyrec_mm.serving.options import ServerOptions
from easyrec_mm.serving.process import Process, Protection

_LOG = logging.getLogger("easyrec_mm.serving")
_CONTEXT = multiprocessing.get_context("spawn")
_LOOK_EVERY_S = 0.5
# A worker that has not ended so long after its time is killed.
_PATIENCE_S = 5.0
_END, _HURRY = "end", "hurry"


class _Worker(NamedTuple):
    process: multiprocessing.process.BaseProcess
    orders: Connection

    def tell(self, order: str) -> None:
        with suppress(OSError):  # it has ended
            self.orders.send(order)


class Workers:
    """The processes that share the socket of REST.

    Orders reach them through a pipe: a signal of a terminal or of a service manager goes to all processes at once, and
    would be the second one for them.

    Args:
      options: options of the server.
      listener: the socket.
    """

    def __init__(self, options: ServerOptions, listener: socket.socket) -> None:
        self._options, self._listener = options, listener
        self._workers = [self._start() for _ in range(options.workers)]

    async def replace_dead_ones(self) -> None:
        """Start a new process for each that dies, for ever."""
        while True:
            await asyncio.sleep(_LOOK_EVERY_S)
            for i, worker in enumerate(self._workers):
                if not worker.process.is_alive():
                    _LOG.error("process %s has ended with status %s", worker.process.pid, worker.process.exitcode)
                    self._workers[i] = self._start()

    def end(self) -> None:
        """Tell them to end when the requests under way are answered."""
        for worker in self._workers:
            worker.tell(_END)

    def hurry(self) -> None:
        """Tell them to end now."""
        for worker in self._workers:
            worker.tell(_HURRY)

    async def join(self) -> None:
        """Wait until they have ended; kill those that do not."""
        loop = asyncio.get_running_loop()
        deadline = loop.time() + self._options.drain_s + _PATIENCE_S
        while any(worker.process.is_alive() for worker in self._workers) and loop.time() < deadline:
            await asyncio.sleep(0.05)
        for worker in self._workers:
            if worker.process.is_alive():
                _LOG.error("process %s does not end and is killed", worker.process.pid)
                worker.process.kill()

    def _start(self) -> _Worker:
        ours, theirs = _CONTEXT.Pipe()
        process = _CONTEXT.Process(target=work, args=(self._options, self._listener, theirs), daemon=True)
        process.start()
        theirs.close()
        return _Worker(process, ours)


def work(options: ServerOptions, listener: socket.socket, orders: Connection) -> None:
    """Answer REST requests until told to end, or until the first process is gone."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C reaches the first process, too
    monitoring.configure_logs(options.quiet)
    state = _State()
    threading.Thread(target=state.listen, args=(orders,), name="orders", daemon=True).start()
    model = RecModel(options)
    protection = Protection(options)
    model.load()
    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    is_idle = loop.run_until_complete(state.run(Process(options, model, protection), listener))
    if not is_idle:
        os._exit(0)  # a thread may wait for ever


class _State:
    """What a worker has been told."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._loop: asyncio.AbstractEventLoop | None = None
        self._end = asyncio.Event()
        self._process: Process | None = None

    def listen(self, orders: Connection) -> None:
        """Follow orders, until the pipe ends with the first process."""
        while True:
            try:
                order = orders.recv()
            except (EOFError, OSError):
                self._follow(_END)
                return
            self._follow(order)

    async def run(self, process: Process, listener: socket.socket) -> bool:
        """Run the process; see Process.run."""
        loop = asyncio.get_running_loop()

        def end_alone() -> None:
            if not self._end.is_set():
                process.is_replaced = True
                self._end.set()

        loop.add_signal_handler(signal.SIGTERM, end_alone)
        with self._lock:
            self._loop, self._process = loop, process
        return await process.run(listener, "", self._end)

    def _follow(self, order: str) -> None:
        with self._lock:
            if self._loop is None or self._process is None:
                os._exit(0)  # nothing has been admitted yet
            self._process.is_replaced = False  # the signal may have been meant for all
            self._loop.call_soon_threadsafe(self._process.traffic.hurry if order == _HURRY else self._end.set)
