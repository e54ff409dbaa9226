"""`easyrec-mm apply-delta`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f

HELP = "make a new rec model of an earlier export and a delta"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--delta", metavar="D", required=True, help="folder that export --delta_from has written")
    add("--base", metavar="R", required=True, help="folder of the earlier rec model that the delta was made from")
    add("--output_dir", metavar="N", required=True, help="folder of the new rec model")


def run(flags: f.Flags) -> int:
    """Write the model and report."""
    from easyrec_mm.delta.apply import apply_delta

    delta = apply_delta(flags.delta, flags.base, flags.output_dir)
    num_changed = sum(table.changed for table in delta.tables)
    parts = f"{flags.base} ({delta.base.checkpoint}) and {num_changed:,} rows of tables"
    print(f"{flags.output_dir}: rec model {delta.result}, made of {parts}; its files are those of the export")
    return 0
