"""Threads that run functions, and for which the process does not wait at its end."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from concurrent.futures import Future
from contextlib import suppress
from functools import partial
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Any, NamedTuple, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


# Functions that are running at the end of a context are waited for at most this long.
LONGEST_END_S = 5.0


class _Call(NamedTuple):
    """A function with its arguments, and the future of its result."""

    future: Future[Any]
    function: Callable[[], Any]


class DaemonPool:
    """Runs functions in the order in which they are given, as a ThreadPoolExecutor does.

    At the end of the process Python waits until the threads of all ThreadPoolExecutors have run what was given to them,
    such as reading from a server that does not answer. It does not wait for these.

    As a context manager it ends with the context: what has not begun is cancelled, and what has is waited for some
    seconds.

    Args:
      num_threads: number of threads, which start when they are needed.
      name: name of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name
        self._given: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def __enter__(self) -> DaemonPool:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.cancel()
        self.close()
        until_s = time.monotonic() + LONGEST_END_S
        for thread in self._threads:
            thread.join(max(until_s - time.monotonic(), 0))

    def submit(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Run a function in one of the threads; the future has what it returns or raises."""
        future: Future[Result] = Future()
        self._given.put(_Call(future, partial(function, *args, **kwargs)))
        with self._lock:
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, daemon=True, name=self._name)
                self._threads.append(thread)
                thread.start()
        return future

    def cancel(self) -> None:
        """Cancel what has not begun."""
        with suppress(Empty):
            while (call := self._given.get_nowait()) is not None:
                call.future.cancel()

    def close(self) -> None:
        """End the threads when they have run what was given to them; does not wait."""
        with self._lock:
            for _ in self._threads:
                self._given.put(None)

    def _work(self) -> None:
        while (call := self._given.get()) is not None:
            _run(call)
            del call  # it refers to the result


def _run(call: _Call) -> None:
    if not call.future.set_running_or_notify_cancel():
        return
    try:
        call.future.set_result(call.function())
    except BaseException as error:  # raised to whoever asks the future
        call.future.set_exception(error)
