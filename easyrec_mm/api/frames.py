"""pandas DataFrames in place of files: what is read of them, and the Parquet files that hold it."""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, cast

from easyrec_mm.errors import DataError, UserError, first_line
from easyrec_mm.files import is_remote, join, plain
from easyrec_mm.files.written_file import written_file

if TYPE_CHECKING:
    import pandas as pd
    import pyarrow as pa
    from typing_extensions import TypeIs

    from easyrec_mm.config.pipeline import Pipeline as CheckedPipeline
    from easyrec_mm.features.field import Kind
    from easyrec_mm.schema import Schema

Paths: TypeAlias = "str | os.PathLike[str] | Sequence[str | os.PathLike[str]]"
Data: TypeAlias = "Paths | pd.DataFrame"
# Folder of model_dir with the DataFrames that trained and evaluated the model.
DATA_FOLDER = "data"


def is_frame(data: object) -> TypeIs[pd.DataFrame]:
    """Return whether data are a DataFrame; pandas is not imported for the answer."""
    pandas = sys.modules.get("pandas")
    return pandas is not None and isinstance(data, pandas.DataFrame)


def path_of(paths: Paths, name: str) -> str:
    """Return paths as one text, as settings of the config and flags of commands have them.

    Args:
      paths: files, folders or globs.
      name: name of the argument, for messages.

    Raises:
      DataError: if it is not a path or a list of paths.
    """
    if isinstance(paths, str | os.PathLike):
        return os.fspath(paths)
    is_list = isinstance(paths, Sequence)
    if not is_list or not all(isinstance(path, str | os.PathLike) for path in paths):
        kind = f"{'list of other values' if is_list else type(paths).__name__}"
        raise DataError(f"{name}: is a {kind}; give the path of a file, a folder or a glob, or a list of paths")
    return ",".join(os.fspath(path) for path in paths)


def table_of(frame: pd.DataFrame, name: str, fields: Iterable[str]) -> pa.Table:
    """Return the columns of a DataFrame that have the names of fields.

    A missing value (None, NaN, NaT, NA) becomes null, and a categorical column one of its values.

    Args:
      frame: the DataFrame; its index and its other columns are left out.
      name: name of the argument, for messages.
      fields: the names.

    Raises:
      DataError: if it has no row, two columns have the same name, or the values of a column are of several types.
    """
    import pyarrow as pa

    if not len(frame):
        raise DataError(f"{name}: the DataFrame has no rows; give one that has")
    columns: dict[str, pa.Array] = {}
    for field in dict.fromkeys(fields):
        places = [place for place, column in enumerate(frame.columns) if column == field]
        if len(places) > 1:
            raise DataError(f"{name}: {len(places)} columns are named '{field}'; leave one of them")
        if places:
            columns[field] = _array_of(frame.iloc[:, places[0]], f"{name}: column '{field}'")
    if not columns:
        names = ", ".join(str(column) for column in frame.columns[:20])
        raise DataError(f"{name}: no column has the name of a field of the config; the DataFrame has {names}")
    return pa.table(columns)


def fields_of(frame: pd.DataFrame, name: str, dtypes: Mapping[str, str]) -> pa.Table:
    """Return the columns of a DataFrame that are fields, with times and decimals as `easyrec-mm group` writes them.

    So a log that was grouped can be predicted as it is: a time is a text, a decimal a number.

    Args:
      frame: the DataFrame.
      name: name of the argument, for messages.
      dtypes: name of a field -> its dtype; "" if it has none.

    Raises:
      DataError: as table_of.
    """
    import pyarrow as pa

    from easyrec_mm.formats.columns import to_kind

    table = table_of(frame, name, dtypes)
    for place, column in enumerate(table.column_names):
        kind, dtype = table[column].type, dtypes[column]
        if dtype == "string" and pa.types.is_floating(kind) and table[column].null_count == len(table):
            # pandas has a column without a value as NaN.
            table = table.set_column(place, column, pa.nulls(len(table), pa.string()))
        is_time = pa.types.is_temporal(kind) and not pa.types.is_duration(kind) and dtype == "string"
        if (is_time or pa.types.is_decimal(kind)) and dtype:
            values, is_bad = to_kind(table[column].combine_chunks(), cast("Kind", dtype))
            if is_bad is None or not is_bad.any():
                table = table.set_column(place, column, values)
    return table


def dtypes_of(schema: Schema) -> dict[str, str]:
    """Return the name of each field -> its dtype."""
    return {field.name: field.dtype for field in schema.fields}


def _array_of(series: pd.Series[Any], place: str) -> pa.Array:
    import pandas as pd
    import pyarrow as pa

    if isinstance(series.dtype, pd.SparseDtype):
        series = series.sparse.to_dense()
    try:
        array = pa.Array.from_pandas(series)
    except (pa.ArrowException, OverflowError, TypeError, ValueError) as error:
        advice = "convert the column to one type, as by astype"
        raise DataError(f"{place}: cannot be read: {first_line(error)}; {advice}") from error
    if isinstance(array, pa.ChunkedArray):
        array = array.combine_chunks()
    return array.dictionary_decode() if pa.types.is_dictionary(array.type) else array


def input_settings(pipeline: CheckedPipeline, table: pa.Table) -> dict[str, str]:
    """Return the settings with which a config reads a table: one row per group, or one per sample.

    It has one row per group if the config reads groups and its labels are lists; without labels, if any column is one.
    """
    import pyarrow as pa

    from easyrec_mm.protos.data_pb2 import DatasetConfig

    def is_list(name: str) -> bool:
        kind = table[name].type
        return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))

    data = pipeline.config.data_config
    labels = [name for name in pipeline.schema.labels if name in table.column_names]
    reads_groups = data.input_type not in (DatasetConfig.CSVInput, DatasetConfig.ParquetInput)
    is_grouped = reads_groups and any(map(is_list, labels or table.column_names))
    settings = {"data_config.input_type": "GroupParquetInput" if is_grouped else "ParquetInput"}
    # What only files of other formats have.
    not_of_tables = {"selected_cols": "", "packed_images": "false", "with_header": "false"}
    return settings | {f"data_config.{name}": value for name, value in not_of_tables.items() if data.HasField(name)}


def kept_in(model_dir: str, table: pa.Table, name: str) -> str:
    """Write a table into model_dir, if it is not there yet; return its path.

    Equal tables have the same path, so that a training that is started again with them goes on.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="easyrec_mm_") as folder:
        file = os.path.join(folder, "data.parquet")
        pq.write_table(table, file)
        digest = hashlib.sha256(Path(file).read_bytes()).hexdigest()[:16]
        path = join(model_dir, f"{DATA_FOLDER}/{name}-{digest}.parquet")
        if not is_remote(path):
            os.makedirs(os.path.dirname(plain(path)), exist_ok=True)
        with written_file(path) as target:
            shutil.copyfile(file, target)
    return path


@contextmanager
def as_file(table: pa.Table, name: str) -> Iterator[str]:
    """Yield the path of a Parquet file with a table, which is removed at the end; messages have `name` in its place.

    Raises:
      UserError: as the block does.
    """
    import pyarrow.parquet as pq

    with tempfile.TemporaryDirectory(prefix="easyrec_mm_") as folder:
        path = str(Path(folder, "data.parquet"))
        pq.write_table(table, path)
        with naming({path: name}):
            yield path


@contextmanager
def naming(names: Mapping[str, str]) -> Iterator[None]:
    """Let messages of errors have other names for files.

    Args:
      names: path of a file -> its name in messages.
    """
    try:
        yield
    except UserError as error:
        message, *more = error.args
        for path, name in names.items():
            message = message.replace(path, name)
        error.args = (message, *more)
        raise
