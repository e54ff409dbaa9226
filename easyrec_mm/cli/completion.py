"""`easyrec-mm completion`."""

from __future__ import annotations

import argparse
from typing import Any

from easyrec_mm.cli import flags as f
from easyrec_mm.files import plain

HELP = "print the script by which a shell completes commands, flags and their values"

SHELLS = ("bash", "zsh", "fish")
# Shell -> what its script does first: zsh has `compdef`, which the script calls, only after `compinit`.
_FIRST = {"zsh": "(( $+functions[compdef] )) || { autoload -Uz compinit && compinit }"}


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("shell", choices=SHELLS, help='the shell; such as: eval "$(easyrec-mm completion bash)"')


def run(flags: f.Flags) -> int:
    """Print the script."""
    from shtab import complete

    from easyrec_mm.cli.main import make_parser

    print(complete(make_parser(_ParserOfFiles), flags.shell, preamble=_FIRST.get(flags.shell, "")))
    return 0


class _ParserOfFiles(argparse.ArgumentParser):
    """A parser whose flags with a text as their value complete names of files, which many of them take."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument, as its base class does."""
        from shtab import FILE

        action = super().add_argument(*names, **settings)
        if action.nargs != 0 and action.choices is None and action.type in (None, plain):
            action.complete = FILE  # type: ignore[attr-defined]  # shtab reads it
        return action
