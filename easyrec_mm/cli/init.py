"""`easyrec-mm init`."""

from __future__ import annotations

import sys
from collections.abc import Mapping, Sequence

from easyrec_mm.cli import flags as f
from easyrec_mm.errors import UserError
from easyrec_mm.files import plain

HELP = "write a config to start with, with comments, from data or from a description of its fields"

# Defaults without data.
_FEATURES = "user_id:id:100000,item_id:id:10000,category:id:100,price:number"
_DESCRIPTION = {"features": _FEATURES, "image_field": "img_path", "label_fields": "click"}
_FILES = {"train_input_path": "data/train/*", "eval_input_path": "data/eval/*"}
_SIZES: Mapping[str, str | int] = {"input_type": "GroupParquetInput", "num_rows": 1_000_000, "group_size": 8}
_OPTIONAL = {"image_root": "", "preset": ""}
# Flag -> the question by which it is asked for on a terminal.
QUESTIONS = {
    "input": "file or folder of data from which the fields are inferred, if there is one",
    "features": "features as NAME:KIND, with commas; KIND is id, number, tags or text, with the number of values",
    "image_field": "column of the path of the picture",
    "label_fields": "columns of the labels, separated by commas",
    "group_by": "column of the item",
    "user_field": "column of the user",
    "train_input_path": "files of the training data",
    "eval_input_path": "files of the evaluation data",
    "image_root": "folder in which relative paths of pictures start",
    "preset": "pretrained backbone, such as efficientnet_lite0 (easyrec-mm weights list)",
}


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    add = parser.add_argument
    output = "the config to write (default pipeline.config)"
    add("--output", metavar="F", default="pipeline.config", type=plain, help=output)
    add("--overwrite", action="store_true", help="replace the file if it exists")
    files = "files, folders and globs, separated by commas"
    add("--input", metavar="P", help=f"data from which the fields are inferred, Parquet, TFRecord or .csv: {files}")
    add("--image_field", metavar="C", help="column of the path of the picture (default: by its values, or img_path)")
    add("--label_fields", metavar="A,B", help="columns of the labels (default: by names and values, or click)")
    add("--group_by", metavar="C", help="column of the item (default: by its name, such as item_id)")
    add("--user_field", metavar="C", help="column of the user (default: by its name, such as user_id)")
    add("--train_input_path", metavar="P", help="training data (default: --input, or data/train/*)")
    evaluation = "evaluation data (default: the folder eval beside train in --input, or data/eval/*)"
    add("--eval_input_path", metavar="P", help=evaluation)
    add("--model_dir", metavar="D", default="model", help="folder for the training (default: model)")
    add("--image_root", metavar="R", help="folder in which relative picture paths start")
    add("--image_size", metavar="WxH", default="", help="size of pictures in the network (default 64x64)")
    add("--preset", metavar="NAME", help="pretrained backbone for img_model (see weights list); default: no backbone")
    separator = "separator of the values in a CSV file (default ,)"
    add("--separator", metavar="S", type=f.separator, default=",", help=separator)
    _add_description_flags(parser)


def _add_description_flags(parser: f.Parser) -> None:
    """Add the flags that describe data which is not at hand."""
    add = parser.add_argument
    features = "features and what they are, id, number, tags or text, with the number of values"
    add("--features", metavar="NAME:KIND,...", help=f"without --input: {features} (default {_FEATURES})")
    formats = ["GroupParquetInput", "GroupTFRecordInput", "CSVInput", "ParquetInput"]
    add("--input_type", choices=formats, help="without --input: format of the files (default GroupParquetInput)")
    rows = "without --input: about how many rows will train (default 1000000)"
    add("--num_rows", metavar="N", type=f.positive, help=rows)
    group_size = "without --input: about how many rows a group has (default 8)"
    add("--group_size", metavar="N", type=f.positive, help=group_size)


def run(flags: f.Flags) -> int:
    """Ask for what is missing if a person is there, and write the config."""
    from easyrec_mm.grouping.first_rows import read_first_rows, sides_of
    from easyrec_mm.grouping.options import parse_image_size
    from easyrec_mm.grouping.starter import StarterOptions, item_in, require_new, user_in, write_starter

    require_new(flags.output, flags.overwrite)
    image_size = parse_image_size(flags.image_size)
    _complete(flags, {"input": ""})
    rows = None
    if flags.input:
        _require_no_description(flags)
        train, evaluation = sides_of(flags.input)
        rows = read_first_rows(train, flags.separator, f.names(flags.label_fields or ""))
        names: Sequence[str] = list(rows.kinds)
        evaluated = read_first_rows(evaluation, flags.separator, ()).path if evaluation else ""
        files: Mapping[str, str] = {"train_input_path": rows.path, "eval_input_path": evaluated}
        _complete(flags, {"image_field": rows.pictures(), "label_fields": ""})
    else:
        _complete(flags, _DESCRIPTION)
        names = [feature.partition(":")[0] for feature in f.names(flags.features)]
        files = _FILES
    _complete(flags, {"group_by": item_in(names), "user_field": user_in(names)})
    _complete(flags, files)
    _complete(flags, _OPTIONAL)
    _complete(flags, _SIZES)
    lists = {name: f.names(getattr(flags, name) or "") for name in ("label_fields", "features")}
    write_starter(f.options_of(StarterOptions, flags, image_size=image_size, **lists), rows)
    print(f"written: {flags.output}\nnext: easyrec-mm check --pipeline_config {flags.output}")
    return 0


def _require_no_description(flags: f.Flags) -> None:
    for name in ("features", *_SIZES):
        if getattr(flags, name) is not None:
            raise UserError(f"--{name}: has no effect with --input, from which this is inferred; remove it")


def _complete(flags: f.Flags, defaults: Mapping[str, str | int]) -> None:
    """Give each flag without a value its default, or the answer of the person at the terminal."""
    can_ask = sys.stdin.isatty() and sys.stdout.isatty()
    for name, default in defaults.items():
        if getattr(flags, name) is None:
            setattr(flags, name, _ask(name, str(default)) if can_ask and name in QUESTIONS else default)


def _ask(name: str, default: str) -> str:
    """Return an answer, which is the default for an empty one and at the end of the input."""
    shown = default or ("guessed" if name == "label_fields" else "none")
    try:
        return input(f"{QUESTIONS[name]} [{shown}]: ").strip() or default
    except EOFError:
        return default
