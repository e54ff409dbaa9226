"""Writes the predictions of a checkpoint for all samples of some files."""

from __future__ import annotations

import os
from collections.abc import Mapping
from contextlib import closing
from dataclasses import dataclass
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from easyrec_mm.api.loading import NEWEST, Chosen, Trained, load_trained
from easyrec_mm.errors import ConfigError, did_you_mean
from easyrec_mm.tasks import Task

if TYPE_CHECKING:
    from easyrec_mm.config.pipeline import Pipeline
    from easyrec_mm.data.input import Input
    from easyrec_mm.evaluation.parts import PartsFolder
    from easyrec_mm.schema import Schema


@dataclass(frozen=True)
class Output:
    """Where predictions are written, and which columns they have.

    path              a file, or a folder with a part of each task
    ending            .parquet or .csv
    is_folder         whether it is a folder
    reserved_columns  input fields to copy
    quote_formulas    whether texts in CSV that a spreadsheet would compute begin with a quote
    task              the task whose samples are predicted; None for all in one process
    """

    path: str
    ending: str = ".parquet"
    is_folder: bool = False
    reserved_columns: tuple[str, ...] = ()
    quote_formulas: bool = False
    task: Task | None = None


@dataclass(frozen=True)
class Prediction:
    """The result of a prediction: the number of rows, the path, and the checkpoint with its step.

    bad_records  says how many records could not be read; "" if all could
    """

    num_rows: int
    path: str
    name: str
    bad_records: str


def predict(
    pipeline: Pipeline,
    path: str,
    output: Output,
    chosen: Chosen = NEWEST,
    data: Pipeline | None = None,
    names: Mapping[str, str] = MappingProxyType({}),
) -> Prediction:
    """Write the outputs of a checkpoint for every sample, in the order of the input.

    Args:
      pipeline: the config of the training.
      path: the samples.
      output: where to write.
      chosen: which checkpoint, and the number format.
      data: the config with which the data are read, if it is another one.
      names: path of a file -> its name in the list of invalid records.

    Raises:
      UserError: if the data cannot be read, the model cannot be loaded, or the output cannot be written.
    """
    from easyrec_mm.evaluation.predict import predict as predict_all
    from easyrec_mm.evaluation.predict import prediction_input
    from easyrec_mm.files.written_file import require_folder, written_file
    from easyrec_mm.runs.model_dir import PREDICT_BAD_RECORDS

    if not output.is_folder:
        require_folder(output.path, "--output")
    data, columns, task = data or pipeline, output.reserved_columns, output.task
    bad_records = PREDICT_BAD_RECORDS
    if task is not None:
        # Files of several processes in one folder, which may be remote.
        bad_records = task.file_name(*os.path.splitext(PREDICT_BAD_RECORDS))
    trained = load_trained(pipeline, chosen, bad_records, names=names)
    with trained.folder.logs_put(), closing(trained.vectors):
        inputs = prediction_input(data.config, data.schema, path, columns, trained.bad_records, trained.vectors, task)
        folder = _folder(output, chosen, trained, inputs) if output.is_folder else None
        with folder.written_part() if folder else written_file(output.path) as target:
            is_csv = output.ending == ".csv"
            num_rows = predict_all(trained.model, inputs, target, is_csv, output.quote_formulas)
        if folder:
            folder.finish()
    written = folder.path if folder else output.path
    return Prediction(num_rows, written, trained.name, trained.bad_records.summary())


def require_fields(names: tuple[str, ...], schema: Schema) -> None:
    """Check that reserved columns are input fields.

    Raises:
      ConfigError: if one is not.
    """
    fields = [field.name for field in schema.fields]
    for name in names:
        if name not in fields:
            raise ConfigError(f"--reserved_columns: no input field '{name}'; {did_you_mean(name, fields)}")


def in_common(output: Output, model: str, precision: str, inputs: Input) -> dict[str, Any]:
    """Return what all tasks of a prediction have in common."""
    return {
        "--predict_input_path": f"{inputs.fingerprint():08x}, {len(inputs.source.files)} files",
        "checkpoint": model,
        "--precision": precision,
        "--reserved_columns": list(output.reserved_columns),
        "--quote_formulas": output.quote_formulas,
        "batch size": inputs.batch_size,
    }


def _folder(output: Output, chosen: Chosen, trained: Trained, inputs: Input) -> PartsFolder:
    """Return the folder of the parts."""
    from easyrec_mm.evaluation.parts import PartsFolder

    common = in_common(output, trained.name.rpartition("/")[2], chosen.precision, inputs)
    return PartsFolder(output.path, output.task or Task(0, 1), output.ending, common)
