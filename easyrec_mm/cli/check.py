"""`easyrec-mm check`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_config
from easyrec_mm.errors import UserError

HELP = "check the config and show how it reads the data"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    parser.add_argument(
        "--num_groups", metavar="N", type=f.positive, default=1000, help="groups to read (default 1000)"
    )


def run(flags: f.Flags) -> int:
    """Check config and data."""
    pipeline = load_config(flags)
    from easyrec_mm.stats.check import check

    result = check(pipeline, flags.num_groups)
    print(result.report, flush=True)
    if result.problem:
        raise UserError(result.problem)
    return 0
