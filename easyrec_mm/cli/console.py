"""What commands print: nothing that a command prints shows the passwords and signatures of addresses."""

from __future__ import annotations

import sys
import traceback
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from types import TracebackType
from typing import Any, TextIO, cast

from easyrec_mm.errors import hide_secrets


class _Console:
    """A stream that hides secrets in what is written to it."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """See TextIO."""
        return self._stream.write(hide_secrets(text))

    def writelines(self, lines: list[str]) -> None:
        """See TextIO."""
        for line in lines:
            self.write(line)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextmanager
def without_secrets_shown() -> Iterator[None]:
    """Hide secrets in all that is printed meanwhile."""
    out, err = cast(TextIO, _Console(sys.stdout)), cast(TextIO, _Console(sys.stderr))
    with redirect_stdout(out), redirect_stderr(err):
        yield


def show_exception(kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
    """Print a stack trace, as sys.excepthook does."""
    sys.stderr.write(hide_secrets("".join(traceback.format_exception(kind, error, where))))
