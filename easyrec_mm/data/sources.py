"""Input types of the config -> sources."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from easyrec_mm.data.group_rtp import GroupRtpSource
from easyrec_mm.data.source import Order, Source
from easyrec_mm.data.table_files import TableSource
from easyrec_mm.data.typed_groups import TypedGroups
from easyrec_mm.errors import DataError
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema

# Rows of a file that are read at once.
READ_GROUPS, READ_SAMPLES = 1 << 10, 1 << 14


@dataclass(frozen=True)
class What:
    """What to read of some files: label fields, other fields, in which order."""

    files: list[str]
    labels: tuple[str, ...]
    fields: tuple[str, ...]
    order: Order


def open_source(data: DatasetConfig, schema: Schema, what: What) -> Source:
    """The source of a config's input type.

    Raises:
      DataError: if a file cannot be read or does not hold what the config says.
    """
    return SOURCES[data.input_type](data, schema, what)


def _group_rtp(data: DatasetConfig, schema: Schema, what: What) -> Source:
    return GroupRtpSource(what.files, schema, what.labels, what.fields, what.order)


def _group_parquet(data: DatasetConfig, schema: Schema, what: What) -> Source:
    groups = TypedGroups(schema, what.labels, what.fields)
    return TableSource(what.files, schema, groups, what.order, _read_parquet(groups, READ_GROUPS), _count_parquet)


def _parquet(data: DatasetConfig, schema: Schema, what: What) -> Source:
    groups = TypedGroups(schema, what.labels, what.fields, is_flat=True)
    reader = _read_parquet(groups, READ_SAMPLES)
    return TableSource(what.files, schema, groups, what.order, reader, _count_parquet, is_flat=True)


def _read_parquet(groups: TypedGroups, num_rows: int) -> Callable[[str], Iterator[pa.Table]]:
    def read(file: str) -> Iterator[pa.Table]:
        try:
            with pq.ParquetFile(file) as opened:
                columns = groups.present(file, opened.schema_arrow.names)
                for batch in opened.iter_batches(num_rows, columns=columns):
                    yield pa.Table.from_batches([batch])
        except (OSError, pa.ArrowException) as error:
            raise DataError(f"{file}: cannot be read as Parquet: {error}") from error

    return read


def _count_parquet(file: str) -> int:
    return int(pq.read_metadata(file).num_rows)


SOURCES: dict[int, Callable[[DatasetConfig, Schema, What], Source]] = {
    DatasetConfig.GroupRTPInput: _group_rtp,
    DatasetConfig.GroupParquetInput: _group_parquet,
    DatasetConfig.ParquetInput: _parquet,
}
