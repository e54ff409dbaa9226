"""The console of a command: whatever text of data, files or servers is printed cannot control the terminal."""

from __future__ import annotations

import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from typing import IO, Any, cast

from easyrec_mm.errors import printable


class _Guarded:
    """A stream that writes text as `printable` returns it. `terminal` is the stream itself, for progress bars."""

    def __init__(self, stream: IO[str]) -> None:
        self.terminal = stream

    def write(self, text: str) -> int:
        self.terminal.write(printable(text))
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
