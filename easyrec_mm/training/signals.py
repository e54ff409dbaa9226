"""Handling of signals, so that a run ends in good order."""

from __future__ import annotations

import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

# The signals that end a run.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Caught:
    """The number of the first SIGINT, SIGTERM or SIGHUP; a second one ends the process as usual."""

    number: int | None = None


@contextmanager
def caught_signals(message: str) -> Iterator[Caught]:
    """Remember the first signal and show a message instead of ending the process.

    A SIGHUP that is ignored, as under nohup, stays ignored.
    """
    caught = Caught()

    def remember(number: int, frame: FrameType | None) -> None:
        caught.number = number
        signal.signal(number, previous[signal.Signals(number)])
        # Not by print, which fails if the signal interrupts another print.
        with suppress(OSError):
            os.write(2, f"\n{message}\n".encode())

    numbers = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    previous = {number: signal.signal(number, remember) for number in numbers}
    try:
        yield caught
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
