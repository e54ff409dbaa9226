"""Takes batches from an input until the process is to end, even if the input hangs then."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Generator, Iterator
from concurrent.futures import Future, wait
from types import TracebackType
from typing import Generic, TypeVar

from easyrec_mm.files.daemon_pool import DaemonPool

# After a signal, the next item is waited for this long.
PATIENCE_S = 5.0
_LOOK_EVERY_S = 0.2

T = TypeVar("T")


class UntilStopped(Iterator[T], Generic[T]):
    """The items of a generator; after a signal only those that arrive soon.

    The generator runs in a thread, because whatever reads from a server or a file that hangs cannot be interrupted.

    As a context manager it closes the generator, unless that hangs.

    Args:
      items: the generator.
      is_stopped: whether the process is to end.
    """

    def __init__(self, items: Generator[T, None, None], is_stopped: Callable[[], bool]) -> None:
        self._items, self._is_stopped = items, is_stopped
        self._pool = DaemonPool(1, "input")
        self._next: Future[T] | None = None

    @property
    def hangs(self) -> bool:
        """Return whether an item was not waited for, so that the generator may still be running."""
        return self._next is not None and not self._next.done()

    def __next__(self) -> T:
        self._next = self._pool.submit(next, self._items)
        gives_up_s = math.inf
        while not wait([self._next], _LOOK_EVERY_S).done:
            if gives_up_s == math.inf and self._is_stopped():
                gives_up_s = time.monotonic() + PATIENCE_S
            if time.monotonic() >= gives_up_s:
                raise StopIteration
        return self._next.result()

    def __enter__(self) -> UntilStopped[T]:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.close()
        if not self.hangs:
            self._items.close()
