"""`easyrec-mm quantize`."""

from __future__ import annotations

import sys

from easyrec_mm.api.quantizing import quantize
from easyrec_mm.cli import flags as f
from easyrec_mm.files import plain

HELP = "give semantic IDs to the vectors of a store: codes that similar items share"
_MOST_KEYS_SHOWN = 5


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_store_flag(parser)
    add = parser.add_argument
    codes = "levels and codes per level (default: those of the store's codebooks, or 4x256)"
    add("--codes", metavar="LxK", default="", help=codes)
    add(
        "--refit",
        action="store_true",
        help="make new codebooks where some exist, and keep the names of codes for as many items as possible",
    )
    add("--seed", metavar="N", type=f.not_negative, default=0, help="seed of new codebooks (default 0)")
    sample = "most vectors of which codebooks are made (default 262144)"
    add("--sample", metavar="N", type=f.positive, default=1 << 18, help=sample)
    output = "also write the codes to this file, .parquet or .csv: key, code_1, code_2, ..., semantic_id"
    add("--output", metavar="F", type=plain, default="", help=output)


def run(flags: f.Flags) -> int:
    """Code the vectors and report."""
    from easyrec_mm.codes.report import lines

    report = quantize(
        flags.store,
        codes=flags.codes,
        refit=flags.refit,
        seed=flags.seed,
        sample=flags.sample,
        output=flags.output,
    )
    print("\n".join(lines(report)))
    if report.left_out:
        keys = ", ".join(map(repr, report.left_out[:_MOST_KEYS_SHOWN]))
        reason = "contain halves of surrogate pairs, which no table can hold"
        print(f"{len(report.left_out)} keys are left out of {flags.output}: they {reason}: {keys}", file=sys.stderr)
    return 0
