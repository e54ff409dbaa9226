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
# Shell -> what its script does last. Bash hands over `--flag=value` as three words, or as one where `=` does not part
# words; the function of the script takes flag and value as two.
_LAST = {
    "bash": r"""
_easyrec_mm_complete() {
  local -a words=()
  local word head own_head="" i place=0
  for i in "${!COMP_WORDS[@]}"; do
    word="${COMP_WORDS[i]}" head=""
    if [[ $word == --?*=* ]]; then
      head="${word%%=*}="
      words+=("${word%%=*}")
      word="${word#*=}"
    elif [[ $word == "=" && $i -gt 0 && ${COMP_WORDS[i-1]} == --?* ]]; then
      if ((i != COMP_CWORD)); then continue; fi
      word=""
    fi
    words+=("$word")
    if ((i == COMP_CWORD)); then place=$((${#words[@]} - 1)) own_head="$head"; fi
  done
  local -a COMP_WORDS=("${words[@]}")
  local COMP_CWORD=$place
  _shtab_easyrec_mm
  [[ -z $own_head ]] || COMPREPLY=("${COMPREPLY[@]/#/$own_head}")
}
complete -o bashdefault -F _easyrec_mm_complete easyrec-mm"""
}


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("shell", choices=SHELLS, help='the shell; such as: eval "$(easyrec-mm completion bash)"')


def run(flags: f.Flags) -> int:
    """Print the script."""
    from shtab import complete

    from easyrec_mm.cli.main import make_parser

    script = complete(make_parser(_CompletedParser), flags.shell, preamble=_FIRST.get(flags.shell, ""))
    print(script + _LAST.get(flags.shell, ""))
    return 0


class _CompletedParser(argparse.ArgumentParser):
    """A parser with what is offered for values: names of weights where they are taken, files for other texts."""

    def add_argument(self, *names: Any, **settings: Any) -> argparse.Action:
        """Add an argument, as its base class does."""
        from shtab import FILE

        from easyrec_mm.weights.catalog import CATALOG

        action = super().add_argument(*names, **settings)
        if action.dest == "preset" or (action.dest == "name" and not action.option_strings):
            action.choices = list(CATALOG)
        if action.nargs != 0 and action.choices is None and action.type in (None, plain):
            action.complete = FILE  # type: ignore[attr-defined]  # shtab reads it
        return action
