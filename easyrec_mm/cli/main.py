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
from types import ModuleType
from typing import NoReturn

from easyrec_mm import __version__
from easyrec_mm.cli import (
    apply_delta,
    check,
    convert,
    deploy,
    embed,
    evaluate,
    export,
    group,
    predict,
    replay,
    search,
    serve,
    stats,
    store,
    train,
    weights,
    worth,
)  # fmt: skip
from easyrec_mm.cli.console import guarded_console, show_exception
from easyrec_mm.errors import UserError, advice_for, out_of_memory
from easyrec_mm.exit_status import after_signal
from easyrec_mm.files.folders import shown
from easyrec_mm.files.waiting import stalls_told

# Name -> module with HELP, `add_flags(parser)`, and `run(flags)`, which returns the exit status.
COMMANDS: dict[str, ModuleType] = {
    "group": group,
    "convert": convert,
    "check": check,
    "stats": stats,
    "train": train,
    "replay": replay,
    "deploy": deploy,
    "eval": evaluate,
    "predict": predict,
    "worth": worth,
    "export": export,
    "apply-delta": apply_delta,
    "embed": embed,
    "store": store,
    "search": search,
    "weights": weights,
    "serve": serve,
}


def run() -> NoReturn:
    """Run the command that this process was started with, and end with its exit status."""
    status = 1

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
    sys.excepthook = show_exception
    status = main()
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; return its exit status, see exit_status.py."""
    with guarded_console():
        return _main(arguments)


def _main(arguments: Sequence[str] | None) -> int:
    try:
        flags = make_parser().parse_args(arguments)
        flags.arguments = list(sys.argv[1:] if arguments is None else arguments)
        with stalls_told(lambda message: print(shown(message), file=sys.stderr, flush=True)):
            status: int = COMMANDS[flags.command].run(flags)
        return status
    except UserError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return error.exit_status
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        advice = f"; {advice_for(error)}" if advice_for(error) else ""
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}{advice}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return after_signal(signal.SIGINT)
    except Exception as error:
        if (reason := out_of_memory(error)) is None:
            raise
        advice = "make the batch (data_config.batch_size), the layers or the tables smaller"
        print(f"error: memory ran out: {reason}; {advice}", file=sys.stderr)
        return 1


def make_parser() -> argparse.ArgumentParser:
    """Return the parser of all commands and their flags."""
    parser = argparse.ArgumentParser(
        prog="easyrec-mm", description="Train click models on item pictures, end to end, from one config file."
    )
    parser.add_argument("--version", action="version", version=f"easyrec-mm {__version__}")
    commands = parser.add_subparsers(required=True, metavar="command", dest="command")
    for name, module in COMMANDS.items():
        description = module.HELP[0].upper() + module.HELP[1:] + "."
        module.add_flags(commands.add_parser(name, help=module.HELP, description=description))
    return parser
