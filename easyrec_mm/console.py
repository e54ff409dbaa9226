"""The console of a process: what is printed to stdout and stderr, and in which form.

Nothing that is printed shows the passwords and signatures of addresses, and no text of data, files or servers controls
the terminal. Every message passes through here, so that --quiet and --json_logs hold for all commands.

A message is of the work under way (`say`), a result (`tell_result`, or any other line on stdout), or about a problem
(lines on stderr). The words "error:", "warning:" and "note:" at its beginning are its level. --quiet leaves out the
notes and what is of the work under way.
"""

from __future__ import annotations

import json
import math
import os
import re
import sys
import threading
import time
import traceback
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, redirect_stderr, redirect_stdout, suppress
from types import TracebackType
from typing import IO, Any, cast

from easyrec_mm.safe_text import hide_secrets, printable

_INFO, _WARNING, _ERROR = "INFO", "WARNING", "ERROR"
_LEVELS = {"error": _ERROR, "warning": _WARNING, "note": _INFO}
# argparse puts the name of the command before it.
_LEVEL = re.compile(r"\s*(?:easyrec-mm[\w -]*: )?(error|warning|note): ")


def json_line(created: float, level: str, logger: str, message: str, fields: Mapping[str, Any]) -> str:
    """Return a message as a line of JSON, as the server's log and --json_logs have it; `created` is in s since 1970."""
    values = {
        "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(created)) + f".{int(created * 1000) % 1000:03d}Z",
        "level": level,
        "logger": logger,
        "process": os.getpid(),
        "message": message,
        **fields,
    }
    return _safe(json.dumps(_finite(values), ensure_ascii=False, default=str))


class Console:
    """Guards stdout and stderr of a process.

    Attributes:
      is_quiet: whether only results, warnings and errors are shown.
      is_json: whether each message is a line of JSON.
      logger: the name that these lines have.
    """

    def __init__(self) -> None:
        self.is_quiet = self.is_json = False
        self.logger = "easyrec_mm"

    def use(self, is_quiet: bool, is_json: bool, command: str = "") -> None:
        """Take the flags of a command."""
        self.is_quiet, self.is_json = is_quiet, is_json
        self.logger = f"easyrec_mm.{command}" if command else "easyrec_mm"

    @contextmanager
    def guarded(self) -> Iterator[None]:
        """Guard what is printed within the context."""
        out, err = Stream(sys.stdout, self, _INFO), Stream(sys.stderr, self, _WARNING)
        with redirect_stdout(cast(IO[str], out)), redirect_stderr(cast(IO[str], err)):
            try:
                yield
            finally:
                out.end()
                err.end()

    def show_exception(self, kind: type[BaseException], error: BaseException, where: TracebackType | None) -> None:
        """Print a stack trace, as sys.excepthook does."""
        trace = "".join(traceback.format_exception(kind, error, where))
        if self.is_json:
            message = f"{kind.__name__}: {error}"
            trace = json_line(time.time(), _ERROR, self.logger, message, {"exception": trace}) + "\n"
        getattr(sys.stderr, "terminal", sys.stderr).write(_safe(trace))


class Stream:
    """A stream that guards what is written to it. `terminal` is the stream itself, for progress bars.

    Args:
      stream: the stream itself.
      console: determines the form of messages.
      level: level of messages that do not begin with theirs.
    """

    def __init__(self, stream: IO[str], console: Console, level: str) -> None:
        self.terminal = stream
        self._console, self._level = console, level
        # What a thread has written of a message that has not ended. `print` writes the end of a line by itself.
        self._begun = threading.local()

    def write(self, text: str) -> int:
        if not (self._console.is_quiet or self._console.is_json):
            self.terminal.write(_safe(text))
            return len(text)
        message = getattr(self._begun, "text", "") + text
        is_whole = message.endswith("\n")
        self._begun.text = "" if is_whole else message
        if is_whole:
            self.put(message[:-1])
        return len(text)

    def writelines(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.write(line)

    def isatty(self) -> bool:
        """Return whether progress bars may be drawn: not if they are to be left out, or would break lines of JSON."""
        return self.terminal.isatty() and not (self._console.is_quiet or self._console.is_json)

    def put(self, message: str, is_work: bool = False, fields: Mapping[str, Any] | None = None) -> None:
        """Write a message, unless it is to be left out.

        Args:
          message: the message, without the end of its last line.
          is_work: whether it is of the work under way.
          fields: its figures by name, for JSON.
        """
        level = self._level_of(message)
        is_detail = level == _INFO and (is_work or _LEVEL.match(message) is not None)
        if not (self._console.is_quiet and is_detail):
            self.terminal.write(self._formed(message, level, fields or {}))

    def pass_on(self, line: str, worker: int) -> None:
        """Write a line that a worker has printed, which has left out what it should."""
        if self._console.is_json:
            message = line.rstrip("\n")
            self.terminal.write(self._formed(message, self._level_of(message), {"worker": worker}))
        else:
            self.terminal.write(_safe(f"[{worker}] {line}"))

    def formed(self, message: str) -> str:
        """Return a message as it is written."""
        return self._formed(message, self._level, {})

    def end(self) -> None:
        """Write what is left of a last message without an end."""
        if message := getattr(self._begun, "text", ""):
            self._begun.text = ""
            self.put(message)

    def _level_of(self, message: str) -> str:
        match = _LEVEL.match(message)
        return _LEVELS[match[1]] if match else self._level

    def _formed(self, message: str, level: str, fields: Mapping[str, Any]) -> str:
        if not self._console.is_json:
            return _safe(f"{message}\n")
        if not message.strip():
            return ""
        values = _values_of(message)
        if values is not None:  # the server and workers write such lines themselves
            return _safe(json.dumps({**values, **fields}, ensure_ascii=False)) + "\n"
        return json_line(time.time(), level, self._console.logger, message.strip("\n"), fields) + "\n"

    def __getattr__(self, name: str) -> Any:
        return getattr(self.terminal, name)


def say(message: str, **fields: Any) -> None:
    """Print a message of the work under way to stdout, with its figures for --json_logs."""
    _put(message, True, fields)


def tell_result(message: str, **fields: Any) -> None:
    """Print a result to stdout, with its figures for --json_logs."""
    _put(message, False, fields)


def warn(message: str) -> None:
    """Print a message about a problem to stderr; it begins with its level."""
    print(message if isinstance(sys.stderr, Stream) else _safe(message), file=sys.stderr)


def say_at_once(message: str) -> None:
    """Write a message to stderr without waiting for a thread that is printing."""
    text = sys.stderr.formed(message) if isinstance(sys.stderr, Stream) else f"{message}\n"
    with suppress(OSError):
        os.write(2, text.encode())


def pass_on(line: str, worker: int, target: IO[str]) -> None:
    """Print a line of a worker so that its number can be seen."""
    if isinstance(target, Stream):
        target.pass_on(line, worker)
    else:
        target.write(f"[{worker}] {line}")
    target.flush()


def _put(message: str, is_work: bool, fields: Mapping[str, Any]) -> None:
    if isinstance(sys.stdout, Stream):
        sys.stdout.put(message, is_work, fields)
        sys.stdout.flush()
    else:
        print(_safe(message), flush=True)


def _safe(text: str) -> str:
    return printable(hide_secrets(text))


def _values_of(text: str) -> dict[str, Any] | None:
    """Return the values of a line that json_line has made; None of another text."""
    if not text.startswith('{"time": '):
        return None
    try:
        values = json.loads(text)
    except ValueError:
        return None
    return values if isinstance(values, dict) and {"level", "message"} <= set(values) else None


def _finite(value: Any) -> Any:
    """Return a value in which NaN and infinite numbers are None, because JSON has none."""
    if isinstance(value, dict):
        return {name: _finite(inner) for name, inner in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value
