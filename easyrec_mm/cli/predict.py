"""`easyrec-mm predict`."""

from __future__ import annotations

import os
from contextlib import AbstractContextManager, closing
from pathlib import Path
from typing import TYPE_CHECKING

from easyrec_mm.cli import flags as f
from easyrec_mm.cli.loading import Trained, load_config, load_trained
from easyrec_mm.errors import ConfigError, UserError, did_you_mean
from easyrec_mm.files import plain
from easyrec_mm.files.folders import shown
from easyrec_mm.tasks import Task

if TYPE_CHECKING:
    from easyrec_mm.data.input import Input

HELP = "write the model's outputs for every sample of some files"


def add_flags(parser: f.Parser) -> None:
    """Add the flags of the command."""
    f.add_config_flag(parser)
    f.add_setting_flags(parser)
    f.add_checkpoint_flag(parser)
    f.add_precision_flag(parser)
    add = parser.add_argument
    add("--predict_input_path", metavar="P", required=True, help="files to predict")
    output = "file to write, .parquet or .csv; or folder, with / at the end, for a part of each task"
    add("--output", metavar="F", required=True, help=output)
    add("--format", choices=["parquet", "csv"], help="format of the parts in a folder (default parquet)")
    f.add_task_flags(parser, "the samples: each writes the part of its own to the folder --output")
    add("--reserved_columns", metavar="A,B", type=f.names, default=(), help="input fields to copy into the output")
    formulas = "in .csv, put ' before texts that begin with = + - @, which spreadsheets would compute"
    add("--quote_formulas", action="store_true", help=formulas)


def run(flags: f.Flags) -> int:
    """Predict every sample."""
    pipeline = load_config(flags)
    field_names = [field.name for field in pipeline.schema.fields]
    for name in flags.reserved_columns:
        if name not in field_names:
            raise ConfigError(f"--reserved_columns: no input field '{name}'; {did_you_mean(name, field_names)}")
    task, ending = f.task_of(flags), _ending(flags)
    if flags.quote_formulas and ending != ".csv":
        raise UserError(f"--quote_formulas: has no effect on {ending}; write .csv, or remove the flag")
    from easyrec_mm.evaluation.predict import predict, prediction_input
    from easyrec_mm.runs.model_dir import PREDICT_BAD_RECORDS

    bad_records = PREDICT_BAD_RECORDS
    if task is not None:
        # Files of several processes in one folder, which may be remote.
        bad_records = task.file_name(*os.path.splitext(PREDICT_BAD_RECORDS))
    trained = load_trained(pipeline, flags, bad_records)
    with trained.folder.logs_put(), closing(trained.vectors):
        inputs = prediction_input(
            pipeline.config,
            pipeline.schema,
            flags.predict_input_path,
            flags.reserved_columns,
            trained.bad_records,
            trained.vectors,
            task,
        )
        output, written = _output(flags, task, ending, trained, inputs)
        with written as path:
            num_rows = predict(trained.model, inputs, path, ending == ".csv", flags.quote_formulas)
    print(f"{num_rows} rows by {trained.name} in {output}")
    if trained.bad_records.summary():
        print(shown(trained.bad_records.summary()))
    return 0


def _ending(flags: f.Flags) -> str:
    """Return the ending of the file or of the parts.

    Raises:
      UserError: if the output is neither a file nor a folder, or several tasks would write one file.
    """
    output, ending = flags.output, Path(flags.output).suffix
    is_folder = output.endswith("/") or os.path.isdir(plain(output))
    if not is_folder and ending in (".parquet", ".csv"):
        if (flags.task_num or 1) > 1:
            raise UserError(
                f"--output {output}: is one file, and {flags.task_num} tasks write; give a folder, such as "
                f"{output.removesuffix(ending)}/"
            )
        if flags.format:
            raise UserError(f"--format: has no effect on {output}, whose ending says the format; remove the flag")
        return ending
    if not is_folder and flags.task_num is None:
        raise UserError(
            f"--output {output}: write to a file that ends in .parquet or .csv, or to a folder, with / at the end"
        )
    return f".{flags.format or 'parquet'}"


def _output(
    flags: f.Flags, task: Task | None, ending: str, trained: Trained, inputs: Input
) -> tuple[str, AbstractContextManager[str]]:
    """Return the file that is written, and what yields the path at which to write it."""
    from easyrec_mm.evaluation.parts import PartsFolder, written_file

    if flags.output.endswith(ending) and not os.path.isdir(plain(flags.output)):
        return flags.output, written_file(flags.output)
    in_common = {
        "--predict_input_path": f"{inputs.fingerprint():08x}, {len(inputs.source.files)} files",
        "checkpoint": trained.name.rpartition("/")[2],
        "--precision": flags.precision,
        "--reserved_columns": list(flags.reserved_columns),
        "--quote_formulas": flags.quote_formulas,
        "batch size": inputs.batch_size,
    }
    folder = PartsFolder(flags.output, task or Task(0, 1), ending, in_common)
    return folder.path, folder.written_part()
