"""`easyrec-mm worth`."""

from __future__ import annotations

from easyrec_mm.api.loading import load_config
from easyrec_mm.cli import flags as f
from easyrec_mm.console import say
from easyrec_mm.exit_status import after_signal
from easyrec_mm.worth.names import ARMS

HELP = "test whether the pictures pay: train with and without them"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    add = parser.add_argument
    output = "folder for runs and report; a stopped test continues from it"
    add("--output", metavar="D", required=True, help=output)
    add("--seeds", metavar="N", dest="num_seeds", type=f.positive, default=3, help="trainings per arm (default 3)")
    add(
        "--arms",
        metavar="A,B",
        type=f.names,
        default=(),
        help=f"what to compare with the config as it is: {', '.join(ARMS)} (default: all that make sense for it)",
    )
    add(
        "--budget_minutes",
        metavar="N",
        type=f.minutes,
        default=None,
        help="limit for the whole test; if necessary, all arms train the same smaller number of steps (default: no "
        "limit)",
    )


def run(flags: f.Flags) -> int:
    """Run the test, or continue it."""
    pipeline = load_config(flags)
    from easyrec_mm.worth.runs import Stopped
    from easyrec_mm.worth.worth import Worth, WorthOptions

    try:
        Worth(pipeline, f.options_of(WorthOptions, flags), say).run()
    except Stopped as stopped:
        say("stopped; continue with the same command")
        return after_signal(stopped.signal)
    return 0
