"""Flags that several commands have, and the values that flags take."""

from __future__ import annotations

import argparse
from dataclasses import dataclass, fields
from typing import Generic, TypeVar

from easyrec_mm import ranges
from easyrec_mm.api.training import Workers
from easyrec_mm.errors import UserError
from easyrec_mm.files import plain
from easyrec_mm.ranges import Limit, Parsed
from easyrec_mm.tasks import Task

Parser = argparse.ArgumentParser
Flags = argparse.Namespace
Options = TypeVar("Options")


def options_of(kind: type[Options], flags: Flags, **values: object) -> Options:
    """Create a dataclass of options; each field takes the value in `values`, or else that of the flag with its name."""
    names = [field.name for field in fields(kind)]  # type: ignore[arg-type]
    return kind(**{name: values[name] if name in values else getattr(flags, name) for name in names})


# --- Flags


def add_config_flag(parser: Parser) -> None:
    """Add the required flag for the pipeline config."""
    parser.add_argument(
        "--pipeline_config", "--pipeline_config_path", metavar="C", required=True, help="pipeline config file"
    )


def add_console_flags(parser: Parser) -> None:
    """Add the flags of all commands for what they print; see console.py."""
    add = parser.add_argument
    add("--quiet", action="store_true", help="print only results, warnings and errors")
    add("--json_logs", action="store_true", help="print each message as a line of JSON: time, level, message, figures")


def add_setting_flags(parser: Parser) -> None:
    """Add the flags that change settings of the config."""
    parser.add_argument(
        "--set",
        metavar="FIELD=VALUE",
        action="append",
        default=[],
        help="change a setting of the config, such as train_config.num_steps=100; may be repeated",
    )
    parser.add_argument(
        "--ignore_unsupported",
        action="store_true",
        help="skip EasyRec settings that are not supported, and list them",
    )


def add_checkpoint_flag(parser: Parser) -> None:
    """Add the flag that chooses a checkpoint."""
    parser.add_argument(
        "--checkpoint_path",
        metavar="K",
        help="checkpoint, or folder of checkpoints; by default the newest in model_dir, or the best where the config's "
        "exporter_type is best",
    )


def add_store_flag(parser: Parser) -> None:
    """Add the required flag for the store of image vectors."""
    parser.add_argument(
        "--store",
        metavar="URI",
        required=True,
        help="store of the vectors: lmdb://path, redis://host:port/db, postgresql://user@host/db",
    )


def add_workers_flags(parser: Parser) -> None:
    """Add the flags of a command that several workers may run together."""
    add = parser.add_argument
    add(
        "--workers",
        metavar="HOST:PORT,...",
        type=names,
        default=(),
        help="addresses of all workers, in place of TF_CONFIG; equal on all of them",
    )
    add("--worker_index", metavar="I", type=not_negative, help="number of this worker among --workers, from 0")
    add(
        "--wait_for_workers_s",
        type=positive_seconds,
        default=300.0,
        help="seconds to wait until all workers have started; default: 300",
    )


def workers_of(flags: Flags) -> Workers:
    """Return the workers that the flags name."""
    return Workers(flags.workers, flags.worker_index, flags.wait_for_workers_s)


def add_precision_flag(parser: Parser) -> None:
    """Add the flag for the number format of the computation."""
    parser.add_argument(
        "--precision",
        choices=["FLOAT32", "AUTO", "BFLOAT16", "FLOAT16"],
        default="FLOAT32",
        help="number format, as train_config.precision; FLOAT32 (default) computes as exported models do",
    )


def add_share_flag(parser: Parser) -> None:
    """Add the flag of a run that writes a part of a generation."""
    parser.add_argument(
        "--share",
        metavar="I/N",
        type=part_of,
        help="this run writes the I-th of N parts of the vectors, each with an --input of its own; they become current "
        "when all N are written",
    )


def add_task_flags(parser: Parser, work: str) -> None:
    """Add the flags of a process that is one of several which divide the work; see task_of."""
    add = parser.add_argument
    add("--task_num", metavar="N", type=positive, help=f"number of processes, on any machines, that divide {work}")
    add("--task_index", metavar="I", type=not_negative, help="number of this process among them, from 0")


def add_engine_flags(parser: Parser) -> None:
    """Add the flags that choose between this machine and Spark."""
    add = parser.add_argument
    add("--engine", choices=["local", "spark"], default="local", help="this machine (default), or Spark")
    master = "Spark's cluster, such as local[4] (default: as Spark is configured)"
    add("--spark_master", metavar="M", default="", help=master)


def task_of(flags: Flags) -> Task | None:
    """Return the task that the flags name; None without them.

    Raises:
      UserError: if only one of them is given, or the index is out of range.
    """
    index, num = flags.task_index, flags.task_num
    if index is None and num is None:
        return None
    if num is None:
        raise UserError(f"--task_index {index}: is without --task_num; give the number of all tasks as well")
    if index is None:
        raise UserError(f"--task_num {num}: is without --task_index; give each process its own, from 0 to {num - 1}")
    if index >= num:
        raise UserError(f"--task_index {index}: is out of range; the indices of {num} tasks are 0 to {num - 1}")
    return Task(index, num)


def add_image_root_flag(parser: Parser) -> None:
    """Add the flag for the folder of the pictures."""
    parser.add_argument("--image_root", metavar="R", default="", help="folder in which relative picture paths start")


def add_vector_store_flag(parser: Parser) -> None:
    """Add --vector_store."""
    parser.add_argument(
        "--vector_store",
        metavar="FEATURE=URI",
        action="append",
        default=[],
        help="store of a feature's vectors, in place of the config's vector_store; may be repeated",
    )


def vector_stores_of(flags: Flags) -> dict[str, str]:
    """Return feature -> store, the values of --vector_store."""
    stores: dict[str, str] = {}
    for text in flags.vector_store:
        name, equals, uri = text.partition("=")
        if not (name and equals and uri):
            raise UserError(f"--vector_store {text}: give a feature and its store, as in title=lmdb://titles")
        if name in stores:
            raise UserError(f"--vector_store {text}: '{name}' has a store already; give it once")
        stores[name] = uri
    return stores


def add_output_flags(parser: Parser) -> None:
    """Add the flags for the output of `group` and `convert`."""
    add = parser.add_argument
    add("--output", metavar="D", required=True, type=plain, help="folder to create")
    add("--format", choices=["parquet", "tfrecord", "rtp"], default="parquet", help="file format (default parquet)")
    add(
        "--rtp_separator",
        metavar="S",
        default="|",
        type=rtp_separator,
        help="separator of the columns of RTP lines (default |)",
    )
    add("--overwrite", action="store_true", help="replace the folder if it is not empty")
    add(
        "--max_bad_share",
        metavar="R",
        type=share,
        default=0.01,
        help="stop if a larger share of the rows, items or pictures is invalid (default 0.01)",
    )


def state_of(generation: str, waits_for: str) -> str:
    """Describe whether a generation that was written is current."""
    return f"{generation} is not current yet: {waits_for}" if waits_for else f"{generation} is current"


# --- Values


@dataclass(frozen=True)
class Value(Generic[Parsed]):
    """A parser of the values of a flag, which takes what the argument of the same name takes in Python."""

    limit: Limit[Parsed]

    def __call__(self, text: str) -> Parsed:
        """Parse a value."""
        try:
            return self.limit.parsed(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error


positive = Value(ranges.POSITIVE)
not_negative = Value(ranges.NOT_NEGATIVE)
share = Value(ranges.SHARE)
gib = Value(ranges.GIB)
seconds = Value(ranges.SECONDS)
positive_seconds = Value(ranges.POSITIVE_SECONDS)
minutes = Value(ranges.MINUTES)
separator = Value(ranges.SEPARATOR)
rtp_separator = Value(ranges.RTP_SEPARATOR)


def part_of(text: str) -> tuple[int, int]:
    """Parse which of how many parts, as in 2/3."""
    part, slash, number = text.partition("/")
    is_valid = bool(slash) and part.isdecimal() and number.isdecimal() and 1 <= int(part) <= int(number)
    if not is_valid:
        raise argparse.ArgumentTypeError(f"{text!r} is not a part of a number of parts, as in 2/3")
    return int(part), int(number)


def names(text: str) -> tuple[str, ...]:
    """Parse names separated by commas."""
    return tuple(name.strip() for name in text.split(",") if name.strip())
