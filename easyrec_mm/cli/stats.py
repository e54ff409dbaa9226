"""`easyrec-mm stats`."""

from __future__ import annotations

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import load_config
from easyrec_mm.errors import UserError
from easyrec_mm.tensorflow_import import import_tensorflow

HELP = "show what an input holds, as text and as a page with pictures"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    add("--pipeline_config", metavar="F", default="", help="config whose input is read; without it, a flat log is read")
    f.add_setting_flags(parser)
    add("--input", metavar="P", default="", help="files in place of train_input_path, or the log: .csv or .parquet")
    add("--output", metavar="F", default="stats.html", help="the page (default stats.html)")
    add("--json", metavar="F", default="", help="also write the figures as JSON")
    add("--num_pictures", metavar="N", type=f.not_negative, default=2000, help="pictures to open (default 2000)")
    add("--image_field", metavar="C", default="", help="of a log: column of the path of the picture")
    add("--label_fields", metavar="A,B", type=f.names, default=(), help="of a log: label columns")
    separator = "of a log: separator of the values in a CSV file (default ,)"
    add("--separator", metavar="S", type=f.separator, default=",", help=separator)
    f.add_image_root_flag(parser)


def run(flags: f.Flags) -> int:
    """Read the input and report."""
    if not flags.pipeline_config and not flags.input:
        raise UserError("--input: is missing; give a log, or a config with --pipeline_config")
    pipeline = None
    if flags.pipeline_config:
        for name in ("image_field", "label_fields"):
            if getattr(flags, name):
                raise UserError(
                    f"--{name}: has no effect with --pipeline_config, because the config sets it; remove it"
                )
        pipeline = load_config(flags)
    else:
        for name in ("set", "ignore_unsupported"):
            if getattr(flags, name):
                raise UserError(f"--{name}: has no effect without --pipeline_config; give a config, or remove it")
        import_tensorflow()
    from easyrec_mm.stats.stats import StatsOptions, stats

    print(stats(pipeline, f.options_of(StatsOptions, flags)))
    return 0
