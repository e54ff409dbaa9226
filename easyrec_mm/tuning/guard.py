"""Ends the trainings of a search when the search has ended in whatever way: a process that waits for that.

Linux could signal the children of a process that ends, but does so for each of its threads, and a training takes a
second signal for the wish to end at once. This file is run as a program, too, and imports nothing of the package.
"""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
from types import TracebackType


class Guard:
    """Knows which trainings run, in a context; those that still run at the end of this process get SIGTERM."""

    def __enter__(self) -> Guard:
        # In a session of its own: a terminal sends its signals to the others only.
        self._process = subprocess.Popen(
            [sys.executable, "-S", __file__], stdin=subprocess.PIPE, text=True, start_new_session=True
        )
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, where: TracebackType | None
    ) -> None:
        self._process.communicate()

    def begins(self, pid: int) -> None:
        """Note that a training runs."""
        self._tell(f"+{pid}")

    def ends(self, pid: int) -> None:
        """Note that a training has ended; its number may become that of another process."""
        self._tell(f"-{pid}")

    def _tell(self, line: str) -> None:
        if self._process.stdin is not None:
            self._process.stdin.write(f"{line}\n")
            self._process.stdin.flush()


def _main() -> None:
    running: set[int] = set()
    for line in sys.stdin:  # until the other process ends, and the pipe with it
        (running.add if line[0] == "+" else running.discard)(int(line[1:]))
    for pid in running:
        with contextlib.suppress(ProcessLookupError):
            os.kill(pid, signal.SIGTERM)


if __name__ == "__main__":
    _main()
