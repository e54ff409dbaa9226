"""`easyrec-mm store dump` and `store get`: the records of a store as a table or as JSON.

`store load` reads such a table again, with everything that a record has, so that the two stores are equal.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm import __version__
from easyrec_mm.errors import StoreError, UserError
from easyrec_mm.files.arrow_csv import csv as pa_csv
from easyrec_mm.files.written_file import written_file
from easyrec_mm.store.base import Store, records_of
from easyrec_mm.store.generations import Generation, VectorDtype, require_generation
from easyrec_mm.store.keys import is_text
from easyrec_mm.store.records import Record

KEY, VECTOR, STATE, CONTENT_HASH, WRITTEN_S = "key", "vector", "state", "content_hash", "written_s"
PRESENT, ABSENT = "present", "absent"
# Columns of a dump; a table that has all of them is read as one.
COLUMNS = (KEY, VECTOR, STATE, CONTENT_HASH, WRITTEN_S)
# Separator of the numbers of a vector in CSV, the default of `store load`.
SEPARATOR = ","
# Number of records of a row group, which are in memory together.
RECORDS_AT_A_TIME = 5_000
# Name of a Parquet file's metadata with the generation.
_METADATA = b"easyrec_mm.generation"


class Origin(NamedTuple):
    """What a Parquet dump tells of its generation beside the records."""

    origin: str
    width: int
    dtype: VectorDtype


class Dumped(NamedTuple):
    """The number of vectors and of absent keys written; the keys left out, because no table can hold them."""

    num_present: int
    num_absent: int
    left_out: list[str]


def chosen_generation(store: Store, number: int | None) -> Generation:
    """Return the generation of that number; without one, the current generation.

    Raises:
      StoreError: if the store has no such generation, or it is not complete.
    """
    meta = store.meta()
    if number is None:
        return require_generation(meta, None, store.uri)
    complete = {n: generation for n, generation in sorted(meta.generations.items()) if generation.completed_s}
    if number not in complete:
        state = "is not complete" if number in meta.generations else "does not exist"
        choices = ", ".join(map(str, complete)) or "none"
        raise StoreError(f"--generation {number}: {state} in {store.uri}; complete generations: {choices}")
    return complete[number]


def dump(store: Store, generation: Generation, output: str) -> Dumped:
    """Write all records of a generation to a .parquet or .csv file, which appears when it is complete.

    Few records are in memory at a time. The generation is kept from `prune` meanwhile, if this process may do so.

    Raises:
      StoreError: if the store cannot be read, or the generation was removed meanwhile.
      UserError: if the file cannot be written.
    """
    num_present = num_absent = 0
    left_out: list[str] = []
    records = store.scan(generation)
    store.keep(generation)
    with written_file(output) as path, _writer(output, path, generation) as write:
        while portion := list(islice(records, RECORDS_AT_A_TIME)):
            store.keep(generation)  # renews it
            left_out += [record.key for record in portion if not is_text(record.key)]
            portion = [record for record in portion if is_text(record.key)]
            absent = sum(record.vector is None for record in portion)
            num_absent += absent
            num_present += len(portion) - absent
            write(portion)
    return Dumped(num_present, num_absent, left_out)


def lines(store: Store, generation: Generation, keys: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return a line of JSON for each of the keys that the generation has, and the keys that it does not have.

    Raises:
      StoreError: if the store cannot be read, or the generation was removed meanwhile.
    """
    records = records_of(store, generation, keys)
    present = [_line(record, generation) for record in records if record is not None]
    return present, [key for key, record in zip(keys, records, strict=True) if record is None]


def origin_of(schema: pa.Schema) -> Origin | None:
    """Return what a Parquet file tells of the generation that was dumped into it; None if it does not."""
    text = (schema.metadata or {}).get(_METADATA)
    return None if text is None else Origin(**json.loads(text))


def _line(record: Record, generation: Generation) -> str:
    values = _values(record, None if record.vector is None else record.vector.tolist())
    vector = values.pop(VECTOR)  # it is long, and comes last
    values |= {"generation": generation.number, "origin": generation.fingerprint, VECTOR: vector}
    return json.dumps(values, ensure_ascii=False)


def _values(record: Record, vector: Any) -> dict[str, Any]:
    state = ABSENT if record.vector is None else PRESENT
    return dict(zip(COLUMNS, (record.key, vector, state, record.content_hash.hex(), record.written_s), strict=True))


@contextmanager
def _writer(output: str, path: str, generation: Generation) -> Iterator[Callable[[Iterable[Record]], None]]:
    """Yield a function that appends records to a file at `path`, whose format is that of the output's ending."""
    is_parquet = output.endswith(".parquet")
    vectors = pa.list_(pa.float32()) if is_parquet else pa.string()
    origin = Origin(generation.fingerprint, generation.width, generation.dtype)
    schema = pa.schema(
        {KEY: pa.string(), VECTOR: vectors, STATE: pa.string(), CONTENT_HASH: pa.string(), WRITTEN_S: pa.int64()},
        metadata={"easyrec_mm": __version__, _METADATA: json.dumps(origin._asdict())},
    )

    def vector_of(record: Record) -> Any:
        if record.vector is None or is_parquet:
            return record.vector
        return SEPARATOR.join(map(repr, record.vector.tolist()))

    def write(records: Iterable[Record]) -> None:
        rows = [_values(record, vector_of(record)) for record in records]
        writer.write_table(pa.Table.from_pylist(rows, schema))

    if is_parquet:
        writer = pq.ParquetWriter(path, schema, compression="zstd", compression_level=1)
    elif output.endswith(".csv"):
        writer = pa_csv.CSVWriter(path, schema)
    else:
        raise UserError(f"--output {output}: is neither .parquet nor .csv; write one of these")
    with writer:
        yield write
