"""`easyrec-mm group`."""

from __future__ import annotations

from easyrec_mm.api.grouping import Engine
from easyrec_mm.api.grouping import run as run_group
from easyrec_mm.cli import flags as f
from easyrec_mm.files import plain

HELP = "pack the rows of a click log into grouped samples"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    _add_log_flags(parser)
    _add_group_flags(parser)
    _add_picture_flags(parser)
    add = parser.add_argument
    f.add_engine_flags(parser)
    add("--memory_gib", metavar="N", type=f.gib, default=4.0, help="memory limit of the local engine (default 4)")
    workers = "threads of the local engine (default: one per core)"
    add("--num_workers", metavar="N", type=f.not_negative, default=0, help=workers)


def _add_log_flags(parser: f.Parser) -> None:
    """Add the flags for the log, and for the meaning of its columns."""
    add = parser.add_argument
    files = "files, folders and globs, separated by commas"
    add("--input", metavar="P", required=True, help=f"the log, .csv or .parquet, gzip or not: {files}")
    add("--group_by", metavar="C", required=True, help="column of the item")
    add("--image_field", metavar="C", required=True, help="column of the path of the item's picture")
    add("--label_fields", metavar="A,B", type=f.names, default=(), help="label columns (default: guessed)")
    add("--user_field", metavar="C", default="", help="column of the user")
    add(
        "--time_field",
        metavar="C",
        default="",
        help="column of the time of the impression: its hour and weekday become features, the time itself does not",
    )
    add(
        "--group_fields",
        metavar="A,B",
        type=f.names,
        default=(),
        help="columns that must have the same value in all rows of an item",
    )
    add(
        "--columns",
        metavar="A,B",
        default="",
        help="read only these columns, and those that other flags name; +A,+B: read them in addition to all others. "
        "They become features even if they look like leaks or row numbers",
    )
    add(
        "--types",
        metavar="C=TYPE",
        default="",
        help="column types, in place of the detected ones: a=STRING,b=INT64",
    )
    add(
        "--separator",
        metavar="S",
        type=f.separator,
        default=",",
        help="separator of the values in a CSV file (default ,)",
    )


def _add_group_flags(parser: f.Parser) -> None:
    """Add the flags for the output, and for how rows are grouped and set apart."""
    add = parser.add_argument
    f.add_output_flags(parser)
    template = "write a training config, inferred from the data"
    add("--pipeline_config_template", metavar="F", default="", type=plain, help=template)
    add("--max_group_size", metavar="N", type=f.positive, default=16, help="most rows in a group (default 16)")
    add(
        "--split_by",
        metavar="S",
        default="",
        help="which rows to keep for evaluation: item or user: those of a share of the items or users; "
        "time:<column>: the last rows; time:<column>:<time>: the rows from that time on",
    )
    add(
        "--eval_share",
        metavar="R",
        type=f.share,
        default=0.1,
        help="share that --split_by keeps for evaluation (default 0.1)",
    )
    add("--num_shards", metavar="N", type=f.not_negative, default=0, help="files to write (default: by their size)")
    add("--seed", metavar="N", type=f.not_negative, default=2020, help="seed for the order of groups (default 2020)")


def _add_picture_flags(parser: f.Parser) -> None:
    """Add the flags for the pictures."""
    add = parser.add_argument
    add("--embed_images", action="store_true", help="pack the pictures of each shard into a tar file beside it")
    add(
        "--image_size",
        metavar="WxH",
        default="",
        help="size of pictures in the config, and of packed ones (default: 64x64 in the config; packed as they are)",
    )
    add(
        "--preset",
        metavar="NAME",
        default="",
        help="pretrained backbone for img_model, such as efficientnet_lite0 (see weights fetch); default: no backbone",
    )
    f.add_image_root_flag(parser)
    add(
        "--allow_missing_pictures",
        action="store_true",
        help="continue if most of the first pictures cannot be read, for example because they are on another machine",
    )


def run(flags: f.Flags) -> int:
    """Group the log on the chosen engine."""
    from easyrec_mm.grouping.options import GroupOptions, parse_columns, parse_image_size, parse_split_by, parse_types

    columns, only_columns = parse_columns(flags.columns)
    options = f.options_of(
        GroupOptions,
        flags,
        columns=columns,
        only_columns=only_columns,
        types=parse_types(flags.types),
        split_by=parse_split_by(flags.split_by),
        image_size=parse_image_size(flags.image_size),
    )
    engine = Engine(flags.engine, flags.spark_master, flags.memory_gib, flags.num_workers)
    print(run_group(options, engine))
    return 0
