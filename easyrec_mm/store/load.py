"""`easyrec-mm store load`: writes vectors that other programs have computed, from tables into a store.

`origin` names what computed the vectors. It has the role that the fingerprint of an image tower has for the vectors of
pictures: vectors of another origin make a new generation.

A table that `store dump` has written is read with the states, hashes and times of its records.
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
from easyrec_mm.files import is_remote, place_of, plain
from easyrec_mm.files.arrow_csv import csv as pa_csv
from easyrec_mm.files.opening import opened_at
from easyrec_mm.store import dump
from easyrec_mm.store.base import Store
from easyrec_mm.store.generations import Generation, VectorDtype
from easyrec_mm.store.records import HASH_BYTES, Record, content_hash

_ROWS_AT_A_TIME = 5_000


class Columns(NamedTuple):
    """Names of the columns of keys and vectors; `separator` is between the numbers of a vector given as text."""

    key: str
    vector: str
    separator: str


class Loaded(NamedTuple):
    """The number of vectors written, and of keys marked absent; their generation, and what it waits for until it
    becomes current, or "".
    """

    number: int
    num_absent: int
    generation: Generation
    waits_for: str


def load(
    store: Store,
    paths: str,
    columns: Columns,
    origin: str | None,
    dtype: VectorDtype | None,
    share: tuple[int, int] | None = None,
) -> Loaded:
    """Write the vectors of files, and make their generation the current one when all are written.

    An existing key gets the new vector; if the files contain a key twice, the last vector counts.

    Args:
      store: a store that is open for writing.
      paths: .parquet and .csv files, separated by commas, each may be a glob.
      columns: the columns of keys and vectors.
      origin: name of what computed the vectors; None for the one that a dump in Parquet names.
      dtype: number format in the store; None for that of such a dump, or else float32.
      share: which of how many shares of the vectors this is, as (2, 3), if several runs write them.

    Raises:
      DataError: if a file cannot be read, or a row has no key or no valid vector of the same length as the others; or
        if no origin is given and a file names none, or another one than the first.
      StoreError: if the store cannot be written.
    """
    files = _files(paths)
    dumped = _origin(files, origin)
    number, num_absent, generation = 0, 0, None
    waiting: list[Record] = []  # marked absent before the first vector, which tells the width
    for place, records in _portions(files, columns):
        width = next((len(record.vector) for record in records if record.vector is not None), 0)
        if generation is None and (width or dumped.width):
            generation = store.begin(dumped.origin, width or dumped.width, dtype or dumped.dtype)
        if generation is not None and width not in (0, generation.width):
            raise DataError(f"{place}: the vector has {width} numbers, but earlier ones have {generation.width}")
        waiting += records
        if generation is not None:
            store.put_many(generation, waiting)
            waiting = []
        absent = sum(record.vector is None for record in records)
        num_absent += absent
        number += len(records) - absent
    if generation is None:
        missing = "vectors" if waiting else "rows"
        raise DataError(f"--input {paths}: holds no {missing}; give files with keys and vectors")
    return Loaded(number, num_absent, generation, store.complete(generation, share))


def _portions(files: list[str], columns: Columns) -> Iterator[tuple[str, list[Record]]]:
    """Yield the records of files, several at a time, each time with the place of the first."""
    for path in files:
        row = 1
        try:
            for table in _tables(path, columns):
                records = _records(path, row, table, columns)
                yield f"{path}: row {row}", records
                row += len(records)
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error


def _files(paths: str) -> list[str]:
    files: list[str] = []
    for part in filter(None, (part.strip() for part in paths.split(","))):
        if is_remote(part):
            matches = sorted(info.path for info in place_of(part).find(part) if not info.is_folder)
        else:
            matches = sorted(glob.glob(plain(part), recursive=True))
        if not matches:
            raise DataError(f"--input: '{part}' matches no file; check the path")
        files += matches
    for path in files:
        if not path.endswith((".parquet", ".csv")):
            raise DataError(f"--input: {path}: is neither .parquet nor .csv; write one of these")
    return files


def _origin(files: list[str], origin: str | None) -> dump.Origin:
    """Return what computed the vectors of the files, and their width and number format if a dump tells them."""
    dumped: dict[str, dump.Origin | None] = {}
    for path in files:
        try:
            dumped[path] = dump.origin_of(pq.read_schema(opened_at(path))) if path.endswith(".parquet") else None
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{path}: cannot be read: {error}") from error
    first = next(filter(None, dumped.values()), None)
    for path, its_own in dumped.items():
        if origin is None and its_own is None:
            raise DataError(f"{path}: does not tell what computed the vectors; name it with --origin")
        if origin is None and first is not None and its_own is not None and its_own.origin != first.origin:
            raise DataError(
                f"{path}: holds vectors of '{its_own.origin}', but files before it those of '{first.origin}'; load "
                "them one after the other"
            )
    if first is None:
        return dump.Origin(origin or "", 0, "float32")
    return first._replace(origin=origin or first.origin)


def _tables(path: str, columns: Columns) -> Iterator[pa.Table]:
    """Yield the columns of a file that are read, several rows at a time: two, or all of a dump."""
    if path.endswith(".parquet"):
        with pq.ParquetFile(opened_at(path)) as file:
            names = _present(path, file.schema_arrow.names, columns)
            for batch in file.iter_batches(_ROWS_AT_A_TIME, columns=names):
                yield pa.Table.from_batches([batch])
        return
    parse = pa_csv.ParseOptions(newlines_in_values=True)
    with pa_csv.open_csv(opened_at(path), parse_options=parse) as reader:
        names = _present(path, reader.schema.names, columns)
    # Read as text, so that a key of digits keeps its leading zeros, and "NA" is a key.
    convert = pa_csv.ConvertOptions(include_columns=names, column_types=dict.fromkeys(names, pa.string()))
    with pa_csv.open_csv(opened_at(path), parse_options=parse, convert_options=convert) as reader:
        for batch in reader:
            yield pa.Table.from_batches([batch])


def _present(path: str, names: list[str], columns: Columns) -> list[str]:
    """Return the names of the columns to read."""
    for name in (columns.key, columns.vector):
        if name not in names:
            flags = "name the columns with --key_column and --vector_column"
            raise DataError(f"{path}: no column '{name}'; {did_you_mean(name, names)} Or {flags}.")
    is_dump = (columns.key, columns.vector) == dump.COLUMNS[:2] and set(dump.COLUMNS) <= set(names)
    return list(dump.COLUMNS) if is_dump else [columns.key, columns.vector]


def _records(path: str, first: int, table: pa.Table, columns: Columns) -> list[Record]:
    """Return the records of a table; `first` is the number of its first row."""
    kind = table[columns.key].type
    if pa.types.is_floating(kind) or pa.types.is_nested(kind):
        raise DataError(f"{path}: column '{columns.key}' is {kind}; keys are text or whole numbers")
    is_dump = table.column_names == list(dump.COLUMNS)
    records = []
    width = 0
    now = int(time.time())
    for row, (key, value, *others) in enumerate(zip(*_values(table, columns), strict=True), first):
        place = f"{path}: row {row}"
        if not key and not (is_dump and key == ""):  # which a store may hold
            raise DataError(f"{place}: '{columns.key}' is empty; give every vector a key")
        vector = None if is_dump and others[0] == dump.ABSENT else _vector(place, value, columns)
        if vector is not None and width and len(vector) != width:
            raise DataError(f"{place}: the vector has {len(vector)} numbers, but earlier ones have {width}")
        width = width or (0 if vector is None else len(vector))
        if is_dump:
            records.append(Record(key, vector, *_dumped(place, *others)))
        elif vector is not None:
            records.append(Record(key, vector, content_hash(vector.tobytes()), now))
    return records


def _values(table: pa.Table, columns: Columns) -> list[list[Any]]:
    """Return the values of each column; keys as texts."""
    keys = table[columns.key].cast(pa.string()).to_pylist()
    return [keys, *(table[name].to_pylist() for name in table.column_names[1:])]


def _dumped(place: str, state: str, content: str, written_s: str | int) -> tuple[bytes, int]:
    """Return the content hash and the time of a dumped record."""
    if state not in (dump.PRESENT, dump.ABSENT):
        raise DataError(f"{place}: '{dump.STATE}' is {state!r}, not {dump.PRESENT} or {dump.ABSENT}")
    try:
        content_bytes = bytes.fromhex(content)
        if len(content_bytes) != HASH_BYTES:
            raise ValueError
        return content_bytes, int(written_s)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"{place}: '{dump.CONTENT_HASH}' is {content!r} and '{dump.WRITTEN_S}' {written_s!r}, not {2 * HASH_BYTES} "
            "hexadecimal digits and a whole number of seconds, as store dump writes them"
        ) from error


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
