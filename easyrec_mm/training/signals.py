"""Handling of signals, so that a run ends in good order."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from types import FrameType

from easyrec_mm.console import say_at_once
from easyrec_mm.exit_status import after_signal

# The signals that end a run.
STOPPING = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)
# A second signal has this long to end the process as usual.
_END_S = 2.0


class Caught:
    """The number of the first SIGINT, SIGTERM or SIGHUP; a second one ends the process as usual."""

    number: int | None = None

    def is_caught(self) -> bool:
        """Return whether there was one."""
        return self.number is not None


@contextmanager
def caught_signals(message: str) -> Iterator[Caught]:
    """Remember the first signal and show a message instead of ending the process.

    A SIGHUP that is ignored, as under nohup, stays ignored. In a thread other than the main one, which Python lets set
    no handlers, no signal is caught.
    """
    caught = Caught()
    if threading.current_thread() is not threading.main_thread():
        yield caught
        return

    def remember(number: int, frame: FrameType | None) -> None:
        caught.number = number
        signal.signal(number, previous[signal.Signals(number)])

    numbers = [n for n in STOPPING if n != signal.SIGHUP or signal.getsignal(n) != signal.SIG_IGN]
    with _watched(message):
        previous = {number: signal.signal(number, remember) for number in numbers}
        try:
            yield caught
        finally:
            for number, handler in previous.items():
                signal.signal(number, handler)


@contextmanager
def _watched(message: str) -> Iterator[None]:
    """Show a message at the first signal, and end the process soon after a second one, from a thread.

    Python calls handlers in the main thread, between two of its instructions. While that waits within TensorFlow, as
    for another worker, it calls none; but it writes the number of the signal to a pipe at once.
    """
    reader, writer = os.pipe()
    os.set_blocking(writer, False)

    def watch() -> None:
        num_caught = 0
        while number := os.read(reader, 1)[:1]:
            if number[0] not in STOPPING:
                continue
            num_caught += 1
            if num_caught == 1:
                # Not by print, which fails if the signal interrupts another print.
                say_at_once(f"\n{message}")
            elif not ended.wait(_END_S):
                os._exit(after_signal(number[0]))

    ended = threading.Event()
    thread = threading.Thread(target=watch, daemon=True, name="signals")
    former = signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    thread.start()
    try:
        yield
    finally:
        ended.set()
        signal.set_wakeup_fd(former)
        os.close(writer)  # which ends the thread
        thread.join()
        os.close(reader)
