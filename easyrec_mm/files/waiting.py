"""What this process reads at the moment, and what it waits for, so that a run that stalls can say why.

Whoever reads a file, a picture or a store notes it with `reading`, in any thread. Work that cannot go on without them
notes that with `waiting`. While a command runs in `stalls_told`, a thread tells about waits that take long.
"""

from __future__ import annotations

import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

# A wait is told after this many seconds; then after twice as many, and so on, but at least once an hour.
FIRST_S, LONGEST_S = 60.0, 3600.0
_MOST_SHOWN = 3

T = TypeVar("T")
_numbers = itertools.count()
# Number -> what is read, or a function that tells what is waited for, and since when.
_reads: dict[int, tuple[str, float]] = {}
_waits: dict[int, tuple[Callable[[], str], float]] = {}


@contextmanager
def reading(what: str) -> Iterator[None]:
    """Note that something is read within the context; `what` is its path, or a description."""
    number = next(_numbers)
    _reads[number] = what, time.monotonic()
    try:
        yield
    finally:
        del _reads[number]


def reading_each(what: str, items: Iterable[T]) -> Iterator[T]:
    """Yield items, and note that `what` is read while the next one is not there yet."""
    iterator = iter(items)
    end = object()
    while True:
        with reading(what):
            item = next(iterator, end)
        if item is end:
            return
        yield item  # type: ignore[misc]  # it is not `end`


@contextmanager
def waiting(describe: Callable[[], str]) -> Iterator[None]:
    """Note that the process cannot go on before the context ends; `describe` tells what it waits for."""
    number = next(_numbers)
    _waits[number] = describe, time.monotonic()
    try:
        yield
    finally:
        del _waits[number]


@contextmanager
def stalls_told(tell: Callable[[str], None]) -> Iterator[None]:
    """Call `tell` from a thread with a message about each wait that takes long, less and less often."""
    stop = threading.Event()

    def watch() -> None:
        due: dict[int, float] = {}  # number of a wait -> how long it lasts when it is told next
        while not stop.wait(min(1.0, FIRST_S / 4)):
            now, waits = time.monotonic(), dict(_waits)
            due = {number: due.get(number, FIRST_S) for number in waits}
            for number, (describe, since) in waits.items():
                if now - since >= due[number]:
                    due[number] += min(due[number], LONGEST_S)
                    tell(_message(describe(), now - since))

    thread = threading.Thread(target=watch, daemon=True, name="stalls")
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


def _message(what: str, seconds: float) -> str:
    """Return what is waited for, and the requests and reads that have taken longest."""
    now = time.monotonic()
    reads = sorted(dict(_reads).values(), key=lambda read: read[1])
    shown = [f"{path} for {now - since:.0f} s" for path, since in reads[:_MOST_SHOWN]]
    more = [f"{len(reads) - _MOST_SHOWN} more"] if len(reads) > _MOST_SHOWN else []
    not_done = f"not done yet: {', '.join([*shown, *more])}" if reads else "no file is being read by Python"
    return f"waiting for {what} for {seconds:.0f} s; {not_done}"
