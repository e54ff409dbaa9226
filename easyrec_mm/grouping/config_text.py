"""The text format of configs: messages, values and comments."""

from __future__ import annotations

import textwrap
from collections.abc import Iterable
from typing import Any

from google.protobuf import text_encoding


def block(name: str, lines: Iterable[str]) -> list[str]:
    """Return a message of the text format, with its lines."""
    return [f"{name} {{", *(f"  {line}" if line else "" for line in lines), "}"]


def comment(lines: Iterable[str]) -> list[str]:
    """Return lines as comments of limited width."""

    def wrap(line: str) -> list[str]:
        # Paths and commands are not broken into two lines.
        return textwrap.wrap(line, 112, subsequent_indent="  ", break_long_words=False, break_on_hyphens=False) or [""]

    return [f"# {part}" for line in lines for part in wrap(line)]


def quoted(value: str) -> str:
    """Return a text in quotes."""
    return f'"{text_encoding.CEscape(value.encode(), as_utf8=True)}"'


def setting(value: Any) -> str:
    """Return the value of a setting."""
    if isinstance(value, list):
        return f"[{', '.join(setting(entry) for entry in value)}]"
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, float):
        return f"{value:g}" if float(f"{value:g}") == value else repr(value)
    return quoted(value) if isinstance(value, str) else str(value)
