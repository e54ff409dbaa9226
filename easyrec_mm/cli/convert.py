"""`easyrec-mm convert`."""

from __future__ import annotations

import os

from easyrec_mm.cli import flags as f
from easyrec_mm.files import plain

HELP = "write grouped samples in another format"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    add = parser.add_argument
    add("--input", metavar="P", default="", help="files in place of the config's train_input_path")
    f.add_output_flags(parser)
    add("--pipeline_config_template", metavar="F", default="", type=plain, help="write the config for the new files")
    add("--num_workers", metavar="N", type=f.not_negative, default=0, help="processes (default: one per core)")


def run(flags: f.Flags) -> int:
    """Convert the files."""
    from easyrec_mm.config.pipeline import load_pipeline
    from easyrec_mm.grouping.convert import ConvertOptions, convert
    from easyrec_mm.grouping.output_folder import check_output
    from easyrec_mm.grouping.work_place import work_place

    pipeline = load_pipeline(flags.pipeline_config, flags.set, flags.ignore_unsupported)
    num_workers = flags.num_workers or len(os.sched_getaffinity(0))
    check_output(flags.output, flags.overwrite)
    with work_place(flags.output) as work:
        print(convert(pipeline, f.options_of(ConvertOptions, flags, num_workers=num_workers), work))
    return 0
