"""`easyrec-mm store load`: writes vectors that other programs have computed, from tables into a store.

`origin` names what computed the vectors. It has the role that the fingerprint of an image tower has for the vectors of
pictures: vectors of another origin make a new generation.
"""

from __future__ import annotations

import glob
import time
from collections.abc import Iterator
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files.arrow_csv import csv as pa_csv
from easyrec_mm.store.base import Store
from easyrec_mm.store.generations import Generation, VectorDtype
from easyrec_mm.store.records import Record, content_hash

_ROWS_AT_A_TIME = 5_000


class Columns(NamedTuple):
    """Names of the columns of keys and vectors; `separator` is between the numbers of a vector given as text."""

    key: str
    vector: str
    separator: str


class Loaded(NamedTuple):
    """The number of vectors written, their generation, and what it waits for until it becomes current, or ""."""

    number: int
    generation: Generation
    waits_for: str


def load(
    store: Store, paths: str, columns: Columns, origin: str, dtype: VectorDtype, share: tuple[int, int] | None = None
) -> Loaded:
    """Write the vectors of files, and make their generation the current one when all are written.

    An existing key gets the new vector; if the files contain a key twice, the last vector counts.

    Args:
      store: a store that is open for writing.
      paths: .parquet and .csv files, separated by commas, each may be a glob.
      columns: the columns of keys and vectors.
      origin: name of what computed the vectors.
      dtype: number format in the store.
      share: which of how many shares of the vectors this is, as (2, 3), if several runs write them.

    Raises:
      DataError: if a file cannot be read, or a row has no key or no valid vector of the same length as the others.
      StoreError: if the store cannot be written.
    """
    number, generation = 0, None
    for path in _files(paths):
        row = 1
        try:
            for table in _tables(path, columns):
                keys, vectors = _rows(path, row, table, columns)
                width = vectors.shape[1]
                if generation is None:
                    generation = store.begin(origin, width, dtype)
                if width != generation.width:
                    raise DataError(
                        f"{path}: row {row}: the vector has {width} numbers, but earlier ones have {generation.width}"
                    )
                now = int(time.time())
                store.put_many(
                    generation,
                    [
                        Record(key, vector, content_hash(vector.tobytes()), now)
                        for key, vector in zip(keys, vectors, strict=True)
                    ],
                )
                number += len(keys)
                row += len(keys)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    if generation is None:
        raise DataError(f"--input {paths}: holds no rows; give files with keys and vectors")
    return Loaded(number, generation, store.complete(generation, share))


def _files(paths: str) -> list[str]:
    files: list[str] = []
    for part in filter(None, (part.strip() for part in paths.split(","))):
        matches = sorted(glob.glob(part, recursive=True))
        if not matches:
            raise DataError(f"--input: '{part}' matches no file; check the path")
        files += matches
    for path in files:
        if not path.endswith((".parquet", ".csv")):
            raise DataError(f"--input: {path}: is neither .parquet nor .csv; write one of these")
    return files


def _tables(path: str, columns: Columns) -> Iterator[pa.Table]:
    """Yield the two columns of a file, several rows at a time."""
    names = [columns.key, columns.vector]
    if path.endswith(".parquet"):
        with pq.ParquetFile(path) as file:
            _require_columns(path, file.schema_arrow.names, names)
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=names):
                yield pa.Table.from_batches([batch])
        return
    with pa_csv.open_csv(path) as reader:
        _require_columns(path, reader.schema.names, names)
    # Read as text, so that a key of digits keeps its leading zeros, and "NA" is a key.
    convert = pa_csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    with pa_csv.open_csv(path, convert_options=convert) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _require_columns(path: str, names: list[str], required: list[str]) -> None:
    for name in required:
        if name not in names:
            flags = "name the columns with --key_column and --vector_column"
            raise DataError(f"{path}: no column '{name}'; {did_you_mean(name, names)} Or {flags}.")


def _rows(path: str, first: int, table: pa.Table, columns: Columns) -> tuple[list[str], NDArray[np.float32]]:
    """Return the keys, and the vectors float32 `[rows, D]`; `first` is the number of the first row."""
    kind = table[columns.key].type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise DataError(f"{path}: column '{columns.key}' is {kind}; keys are text or whole numbers")
    keys = table[columns.key].cast(pa.string()).to_pylist()
    for row, key in enumerate(keys, first):
        if not key:
            raise DataError(f"{path}: row {row}: '{columns.key}' is empty; give every vector a key")
    values = table[columns.vector].to_pylist()
    vectors = [_vector(f"{path}: row {row}", value, columns) for row, value in enumerate(values, first)]
    for row, vector in enumerate(vectors, first):
        if len(vector) != len(vectors[0]):
            raise DataError(
                f"{path}: row {row}: the vector has {len(vector)} numbers, but earlier ones have {len(vectors[0])}"
            )
    return keys, np.stack(vectors)


def _vector(place: str, value: Any, columns: Columns) -> NDArray[np.float32]:
    parts = value.split(columns.separator) if isinstance(value, str) else value
    try:
        with np.errstate(over="ignore"):
            vector = np.array([float(part) for part in parts], np.float64).astype(np.float32)
    except (TypeError, ValueError):
        vector = np.array([np.nan], np.float32)
    if not len(vector) or not np.isfinite(vector).all():
        text = repr(value)
        shown = text if len(text) <= 60 else f"{text[:57]}..."
        raise DataError(f"{place}: '{columns.vector}' is {shown}, not a vector of finite numbers")
    return vector
