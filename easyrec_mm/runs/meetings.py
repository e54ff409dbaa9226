"""Exchanges of texts between workers for threads that write beside the training.

The exchanges of workers have to come in the same order on all of them. A thread therefore leaves its text here, and the
thread of the training exchanges it at a point of its loop at which all workers do.
"""

from __future__ import annotations

import threading
from collections.abc import Callable


class AbandonedError(Exception):
    """The training has given up what a thread writes."""


class Meetings:
    """The exchanges of one thread.

    Args:
      exchange: the text of this worker -> those of all workers; all call it together.
    """

    def __init__(self, exchange: Callable[[str], list[str]]) -> None:
        self._exchange = exchange
        self._changes = threading.Condition()  # of the attributes below
        self._text: str | None = None  # what waits to be exchanged
        self._texts: list[str] = []  # of all workers, at the last meeting
        self._is_over = False

    @property
    def is_due(self) -> bool:
        """Return whether the thread waits for a meeting."""
        return self._text is not None

    def texts(self, text: str) -> list[str]:
        """Return the texts of all workers after their next meeting; called by the thread.

        Raises:
          AbandonedError: if there will be no meeting.
        """
        with self._changes:
            self._text = text
            self._changes.notify_all()
            self._changes.wait_for(lambda: self._text is None or self._is_over)
            if self._text is not None:
                raise AbandonedError
            return self._texts

    def hold(self) -> bool:
        """Wait until the thread has a text, and exchange it; return False if the thread has ended instead."""
        with self._changes:
            self._changes.wait_for(lambda: self.is_due or self._is_over)
            text = self._text
        if text is None:
            return False
        texts = self._exchange(text)
        with self._changes:
            self._text, self._texts = None, texts
            self._changes.notify_all()
        return True

    def end(self) -> None:
        """Hold no more meetings: the thread ends, or what it writes is given up."""
        with self._changes:
            self._is_over = True
            self._changes.notify_all()
