"""Keeps tables on disk between steps, sorted by bucket, so that one bucket can be read again without the others."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from easyrec_mm.files import naming

# Maximum number of rows of a batch; a bucket has one or more batches.
_MAX_BATCH_ROWS = 1 << 16


@dataclass(frozen=True)
class SpillFile:
    """A file of a table. For each bucket, `batches` gives the batches of the file, and `rows` the number of rows."""

    path: str
    num_rows: int
    batches: dict[int, range]
    rows: dict[int, int]


def write_spill(path: str, table: pa.Table, buckets: NDArray[np.integer] | None = None) -> SpillFile:
    """Write a table; rows keep their order within a bucket.

    Args:
      path: the file.
      table: `[N]`.
      buckets: the bucket of each row, `[N]`, from 0; by default all rows are in bucket 0.
    """
    bucket_numbers, starts = np.zeros(1, np.int64), np.zeros(1, np.int64)
    if buckets is not None:
        order = np.argsort(buckets, kind="stable")
        table = table.take(pa.array(order))
        bucket_numbers, starts = np.unique(buckets[order], return_index=True)
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    batches: dict[int, range] = {}
    rows: dict[int, int] = {}
    num_batches = 0
    with naming(path), pa.OSFile(path, "wb") as sink, pa.ipc.new_file(sink, table.schema, options=options) as writer:
        table = table.combine_chunks()
        for bucket, start, end in zip(
            bucket_numbers.tolist(), starts.tolist(), [*starts[1:].tolist(), len(table)], strict=True
        ):
            parts = table.slice(start, end - start).to_batches(max_chunksize=_MAX_BATCH_ROWS)
            for part in parts:
                writer.write_batch(part)
            batches[bucket] = range(num_batches, num_batches + len(parts))
            num_batches += len(parts)
            rows[bucket] = end - start
    return SpillFile(path, len(table), batches, rows)


def read_spill(file: SpillFile, bucket: int = 0, columns: list[str] | None = None) -> list[pa.RecordBatch]:
    """Read the rows of a bucket, or some columns of them.

    A file may consist of a single batch, which is then as large as the file with all columns; read few at a time.
    """
    batches = file.batches.get(bucket, range(0))
    if not batches:
        return []
    with pa.OSFile(file.path) as source:
        schema = pa.ipc.open_file(source).schema
        names = columns or schema.names
        options = pa.ipc.IpcReadOptions(included_fields=[schema.get_field_index(name) for name in names])
        reader = pa.ipc.open_file(source, options=options)
        return [reader.get_batch(i).select(names) for i in batches]


def read_bucket(files: Iterable[SpillFile], bucket: int, columns: list[str] | None = None) -> pa.Table | None:
    """Return the rows of a bucket in all files, in the order of the files; None if there are no rows."""
    batches = [batch for file in files for batch in read_spill(file, bucket, columns)]
    return pa.Table.from_batches(batches) if batches else None
