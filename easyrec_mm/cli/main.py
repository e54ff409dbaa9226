"""The command line. Each command is a module with its flags, actions and output.

Commands import what they need only when they run, so that a command without TensorFlow does not wait for its import.
"""

from __future__ import annotations

import argparse
import atexit
import os
import signal
import sys
from collections.abc import Sequence
from difflib import get_close_matches
from itertools import takewhile
from types import ModuleType
from typing import Any, NoReturn

from easyrec_mm import __version__
from easyrec_mm.cli import (
    apply_delta,
    check,
    completion,
    convert,
    deploy,
    embed,
    evaluate,
    export,
    extract,
    group,
    init,
    predict,
    pretrain,
    quantize,
    replay,
    report,
    search,
    serve,
    stats,
    store,
    train,
    tune,
    weights,
    worth,
)  # fmt: skip
from easyrec_mm.cli.flags import add_console_flags
from easyrec_mm.console import Console
from easyrec_mm.errors import UserError, advice_for, out_of_memory
from easyrec_mm.exit_status import FAILURE, MEANINGS, SUCCESS, after_signal
from easyrec_mm.files.folders import shown
from easyrec_mm.files.waiting import stalls_told

# Name -> module with HELP, `add_flags(parser)`, and `run(flags)`, which returns the exit status.
COMMANDS: dict[str, ModuleType] = {
    "init": init,
    "group": group,
    "convert": convert,
    "check": check,
    "stats": stats,
    "pretrain": pretrain,
    "train": train,
    "tune": tune,
    "replay": replay,
    "deploy": deploy,
    "eval": evaluate,
    "predict": predict,
    "report": report,
    "worth": worth,
    "export": export,
    "apply-delta": apply_delta,
    "embed": embed,
    "extract": extract,
    "store": store,
    "quantize": quantize,
    "search": search,
    "weights": weights,
    "serve": serve,
    "completion": completion,
}


def run() -> NoReturn:
    """Run the command that this process was started with, and end with its exit status."""
    status = FAILURE

    def end() -> None:
        # Without taking the interpreter apart: threads that still read a file ahead would fail in the middle of it, and
        # tensorflow-io aborts a process that has used s3:// when it destroys its objects.
        try:
            sys.stdout.flush()
            sys.stderr.flush()
        except OSError:
            return  # Python tries again, and tells it
        os._exit(status)

    atexit.register(end)  # registered first, so that it runs last
    console = Console()
    sys.excepthook = console.show_exception
    try:
        status = main(console=console)
    except SystemExit as error:  # of argparse: after --help and --version, and for invalid flags
        if error.code is None or isinstance(error.code, int):
            status = error.code or SUCCESS
        raise
    sys.exit(status)


def main(arguments: Sequence[str] | None = None, console: Console | None = None) -> int:
    """Run a command; return its exit status, see exit_status.py."""
    console = console or Console()
    with console.guarded():
        return _main(list(sys.argv[1:] if arguments is None else arguments), console)


def _main(arguments: list[str], console: Console) -> int:
    try:
        given = list(takewhile(lambda argument: argument != "--", arguments))
        console.use("--quiet" in given, "--json_logs" in given)  # for what the parser itself prints
        flags = make_parser().parse_args(arguments)
        console.use(flags.quiet, flags.json_logs, flags.command)
        flags.arguments = arguments
        with stalls_told(lambda message: print(shown(message), file=sys.stderr, flush=True)):
            status: int = COMMANDS[flags.command].run(flags)
        return status
    except UserError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return FAILURE
    except OSError as error:
        advice = f"; {advice_for(error)}" if advice_for(error) else ""
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}{advice}", file=sys.stderr)
        return FAILURE
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return after_signal(signal.SIGINT)
    except Exception as error:
        if (reason := out_of_memory(error)) is None:
            raise
        advice = "make the batch (data_config.batch_size), the layers or the tables smaller"
        print(f"error: memory ran out: {reason}; {advice}", file=sys.stderr)
        return FAILURE


class _CommandParser(argparse.ArgumentParser):
    """A parser that says of an unknown flag what it may have been, below the usage of the command."""

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> tuple[Any, list[str]]:
        """Parse arguments, as its base class does, but end the process if some are unknown."""
        flags, unknown = super().parse_known_args(args, namespace)
        if unknown:
            known = [name for action in self._actions for name in action.option_strings]
            near = get_close_matches(unknown[0].partition("=")[0], known, n=1, cutoff=0.8)
            advice = f"; did you mean {near[0]}?" if near else ""
            self.error(f"unrecognized arguments: {' '.join(unknown)}{advice}")
        return flags, unknown


def make_parser(kind: type[argparse.ArgumentParser] = _CommandParser) -> argparse.ArgumentParser:
    """Return the parser of all commands and their flags, of a class of parsers."""
    parser = kind(
        prog="easyrec-mm",
        description="Train click models on item pictures, end to end, from one config file.",
        epilog="exit status: " + "; ".join(f"{status}: {meaning}" for status, meaning in MEANINGS.items()),
    )
    parser.add_argument("--version", action="version", version=f"easyrec-mm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, module in COMMANDS.items():
        description = module.HELP[0].upper() + module.HELP[1:] + "."
        of_command = commands.add_parser(name, help=module.HELP, description=description)
        module.add_flags(of_command)
        add_console_flags(of_command)
    return parser
