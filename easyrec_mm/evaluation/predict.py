"""Prediction: runs a model over whole files, and writes its outputs for each sample."""

from __future__ import annotations

import csv
from collections.abc import Iterable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import tensorflow as tf

from easyrec_mm import __version__
from easyrec_mm.data.bad_records import BadRecords
from easyrec_mm.data.input import Input
from easyrec_mm.errors import UserError
from easyrec_mm.evaluation.evaluator import batch_outputs
from easyrec_mm.network.model import MultimodalModel
from easyrec_mm.protos.pipeline_pb2 import EasyRecConfig
from easyrec_mm.schema import Schema
from easyrec_mm.store.feature_vectors import VectorStores
from easyrec_mm.tasks import Task

# First characters of a text that a spreadsheet takes for a formula.
_FORMULA_STARTS = ("=", "+", "-", "@", "\t", "\r")


def prediction_input(
    config: EasyRecConfig,
    schema: Schema,
    path: str,
    reserved_columns: tuple[str, ...],
    bad_records: BadRecords,
    vectors: VectorStores | None = None,
    task: Task | None = None,
) -> Input:
    """Return the input of a prediction.

    Args:
      config: how to read the files.
      schema: meaning of a row.
      path: the files.
      reserved_columns: input fields to copy into the output.
      bad_records: counts the records that cannot be read.
      vectors: see evaluator.vectors_of.
      task: the task whose part of the files is predicted; by default all.

    Raises:
      DataError: if the files cannot be read.
    """
    return Input(
        config.data_config,
        schema,
        path,
        "--predict_input_path",
        bad_records,
        labels=(),
        kept_fields=reserved_columns,
        vectors=vectors,
        task=task or Task(0, 1),
    )


def predict(model: MultimodalModel, inputs: Input, path: str, is_csv: bool, quote_formulas: bool = False) -> int:
    """Write one row per sample in input order, with reserved fields and all outputs; return the number of rows.

    Args:
      model: the model.
      inputs: result of prediction_input.
      path: file of this machine to write, Parquet or CSV.
      is_csv: whether to write CSV.
      quote_formulas: whether texts in CSV that a spreadsheet would compute begin with a quote.

    Raises:
      DataError: if the files cannot be read or hold too many bad records.
      OSError: if the output cannot be written.
      UserError: if a reserved column is not exact.
    """
    model.predictions.banks()  # which the function takes
    function: Any = model.predictions.function(inputs.spec())
    specs = {**inputs.kept_specs(), **function.get_concrete_function().structured_outputs}
    columns = pa.schema([(name, type_of(spec)) for name, spec in specs.items()])
    batches = ((kept_fields, outputs) for _, kept_fields, outputs in batch_outputs(model, inputs, "predict"))
    return write_predictions(batches, columns, path, is_csv, quote_formulas)


def write_predictions(
    batches: Iterable[tuple[dict[str, tf.Tensor], dict[str, Any]]],
    columns: pa.Schema,
    path: str,
    is_csv: bool,
    quote_formulas: bool,
) -> int:
    """Write the rows of batches; return their number.

    Args:
      batches: fields and outputs of each batch, by name; fields without a column are left out.
      columns: names and types of the columns, which a part without samples has as well.
      path, is_csv, quote_formulas: see predict.

    Raises:
      OSError: if the output cannot be written.
      UserError: if a field is not exact.
    """
    num_rows = 0
    writer = _CsvWriter(path, columns, quote_formulas) if is_csv else _ParquetWriter(path, columns)
    try:
        for fields, outputs in batches:
            values = {**fields, **outputs}
            for name in fields.keys() & set(columns.names):
                _require_exact(name, fields[name])
            rows = {name: _column(values[name]) for name in columns.names}
            writer.write(rows)
            num_rows += len(next(iter(rows.values())))
    finally:
        writer.close()
    return num_rows


def type_of(spec: tf.TensorSpec) -> pa.DataType:
    """Return the type of the column of a tensor."""
    if spec.dtype == tf.string:
        return pa.string()
    if spec.shape.rank == 1:
        return pa.from_numpy_dtype(spec.dtype.as_numpy_dtype)
    return pa.list_(pa.float64() if spec.dtype.is_floating else pa.int64())


def _require_exact(field: str, tensor: tf.Tensor) -> None:
    """Check that no value of a FLOAT field is a whole number that 32 bits do not hold exactly, as ids may be."""
    if tensor.dtype == tf.float32:
        numbers = tensor.numpy()
        is_inexact = (np.abs(numbers) >= 2**24) & (numbers == np.round(numbers))
        if is_inexact.any():
            raise UserError(
                f"--reserved_columns: '{field}' is a FLOAT or DOUBLE, kept with 32 bits, in which whole numbers such "
                f"as {numbers[is_inexact][0]:.0f} are not exact; set its input_type to INT64 or STRING"
            )


def _column(tensor: tf.Tensor | np.ndarray) -> np.ndarray | list[Any]:
    values = np.asarray(tensor)
    if values.dtype == object:
        return [value.decode("utf-8", "replace") for value in values]
    return values if values.ndim == 1 else [row.tolist() for row in values]


class _CsvWriter:
    def __init__(self, path: str, columns: pa.Schema, quote_formulas: bool) -> None:
        self._quotes = quote_formulas
        self._file = open(path, "w", newline="", encoding="utf-8")  # noqa: SIM115
        self._writer = csv.writer(self._file)
        self._writer.writerow(map(_quoted, columns.names) if quote_formulas else columns.names)

    def write(self, columns: dict[str, np.ndarray | list[Any]]) -> None:
        rows: Iterable[Iterable[Any]] = zip(*columns.values(), strict=True)
        if self._quotes:
            rows = (map(_quoted, row) for row in rows)
        self._writer.writerows(rows)

    def close(self) -> None:
        self._file.close()


def _quoted(value: Any) -> Any:
    """Return a value for a spreadsheet: a text that it would take for a formula begins with a quote."""
    return f"'{value}" if isinstance(value, str) and value.startswith(_FORMULA_STARTS) else value


class _ParquetWriter:
    def __init__(self, path: str, columns: pa.Schema) -> None:
        self._columns = columns.with_metadata({"easyrec_mm": __version__})
        self._writer = pq.ParquetWriter(path, self._columns)

    def write(self, columns: dict[str, np.ndarray | list[Any]]) -> None:
        self._writer.write_table(pa.table(columns, schema=self._columns))

    def close(self) -> None:
        self._writer.close()
