"""The console of a command.

Nothing that is printed shows the passwords and signatures of addresses, and no text of data, files or servers controls
the terminal.
"""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import IO, Any, cast

from easyrec_mm.safe_text import hide_secrets, printable


class _Guarded:
    """A stream that guards what is written to it. `terminal` is the stream itself, for progress bars."""

    def __init__(self, stream: IO[str]) -> None:
        self.terminal = stream

    def write(self, text: str) -> int:
        self.terminal.write(_guarded(text))
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


@contextmanager
def guarded_console() -> Iterator[None]:
    """Guard stdout and stderr while a command runs."""
    out, err = (cast(IO[str], _Guarded(stream)) for stream in (sys.stdout, sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def show_exception(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print a stack trace, as sys.excepthook does."""
    sys.stderr.write(_guarded("".join(traceback.format_exception(kind, error, where))))


def _guarded(text: str) -> str:
    return printable(hide_secrets(text))
