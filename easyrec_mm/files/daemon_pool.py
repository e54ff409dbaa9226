"""Threads that run functions, and for which the process does not wait at its end."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from queue import SimpleQueue
from typing import Any, ParamSpec, TypeVar

Arguments = ParamSpec("Arguments")
Result = TypeVar("Result")


class DaemonPool:
    """Runs functions in the order in which they are given, as a ThreadPoolExecutor does.

    At the end of the process Python waits until the threads of all ThreadPoolExecutors have run what was given to them,
    such as reading from a server that does not answer. It does not wait for these.

    Args:
      num_threads: number of threads, which start when they are needed.
      name: name of the threads.
    """

    def __init__(self, num_threads: int, name: str) -> None:
        self._num_threads, self._name = num_threads, name
        self._given: SimpleQueue[Callable[[], None] | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._lock = threading.Lock()

    def submit(
        self, function: Callable[Arguments, Result], *args: Arguments.args, **kwargs: Arguments.kwargs
    ) -> Future[Result]:
        """Run a function in one of the threads; the future has what it returns or raises."""
        future: Future[Result] = Future()
        self._given.put(partial(_run, future, partial(function, *args, **kwargs)))
        with self._lock:
            if len(self._threads) < self._num_threads:
                thread = threading.Thread(target=self._work, daemon=True, name=self._name)
                self._threads.append(thread)
                thread.start()
        return future

    def close(self) -> None:
        """End the threads when they have run what was given to them; does not wait."""
        with self._lock:
            for _ in self._threads:
                self._given.put(None)

    def _work(self) -> None:
        while (run := self._given.get()) is not None:
            run()
            del run  # it refers to the result


def _run(future: Future[Any], function: Callable[[], Any]) -> None:
    if not future.set_running_or_notify_cancel():
        return
    try:
        future.set_result(function())
    except BaseException as error:  # raised to whoever asks the future
        future.set_exception(error)
