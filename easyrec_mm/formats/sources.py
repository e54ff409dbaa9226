"""Opens the source for the input type of a config."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace

from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.group_tensors import GroupTensors
from easyrec_mm.formats.odps_rtp import OdpsGroupRtpSource
from easyrec_mm.formats.odps_tables import OdpsTables
from easyrec_mm.formats.own_files import own_files
from easyrec_mm.formats.rtp_graph import GroupRtpSource
from easyrec_mm.formats.source import Files, Order, Source
from easyrec_mm.formats.table_files import TableSource
from easyrec_mm.formats.table_readers import CsvReader, ParquetReader
from easyrec_mm.formats.tfrecord_graph import GroupTfRecordSource
from easyrec_mm.formats.typed_groups import TypedGroups
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema

# Rows of a file that are read at once: groups, or samples of a flat log.
READ_GROUPS, READ_SAMPLES = 1 << 10, 1 << 14


@dataclass(frozen=True)
class Selection:
    """What to read.

    labels      label fields
    fields      other fields
    order       order of the groups
    batch_size  number of groups in a batch, of all workers unless each reads files of its own
    worker      number of this worker, and number of all workers, if each reads files of its own
    """

    labels: tuple[str, ...]
    fields: tuple[str, ...]
    order: Order
    batch_size: int = 1
    worker: tuple[int, int] | None = None

    def among(self, files: Files, setting: str) -> Selection:
        """Return the same, with the worker's own files in its order.

        Raises:
          DataError: if there are fewer files than workers that each read files of their own.
        """
        if self.worker is None:
            return self
        own = own_files([info.size for info in files.infos], *self.worker, setting)
        return replace(self, order=replace(self.order, files=own))


def open_source(
    data: DatasetConfig, schema: Schema, path: str, setting: str, selection: Selection
) -> tuple[Source, Files]:
    """Open the source for a config's input type; also return its files.

    Raises:
      DataError: if a file is missing, cannot be read or does not contain what the config says.
    """
    if data.input_type == DatasetConfig.OdpsGroupRTPInput:
        columns = [name.strip() for name in data.selected_cols.split(",")]
        tables = OdpsTables(path, setting, columns, schema.layout.column_separator)
        selection = selection.among(tables, setting)
        source = OdpsGroupRtpSource(tables, schema, selection.labels, selection.fields, selection.order)
        return source, tables
    files = DataFiles(path, setting, local_copies(data.file_cache_dir, data.file_cache_gib))
    return SOURCES[data.input_type](data, schema, files, selection.among(files, setting)), files


def _group_rtp(data: DatasetConfig, schema: Schema, files: DataFiles, selection: Selection) -> Source:
    return GroupRtpSource(files, schema, selection.labels, selection.fields, selection.order)


def _group_tfrecord(data: DatasetConfig, schema: Schema, files: DataFiles, selection: Selection) -> Source:
    return GroupTfRecordSource(files, schema, selection.labels, selection.fields, selection.order)


def _group_parquet(data: DatasetConfig, schema: Schema, files: DataFiles, selection: Selection) -> Source:
    groups = TypedGroups(schema, selection.labels, selection.fields)
    reader = ParquetReader(files, groups, READ_GROUPS)
    return TableSource(files.names, schema, GroupTensors(groups), selection.order, reader)


def _parquet(data: DatasetConfig, schema: Schema, files: DataFiles, selection: Selection) -> Source:
    groups = TypedGroups(schema, selection.labels, selection.fields, is_flat=True)
    reader = ParquetReader(files, groups, READ_SAMPLES)
    return TableSource(files.names, schema, GroupTensors(groups), _of_rows(selection), reader)


def _csv(data: DatasetConfig, schema: Schema, files: DataFiles, selection: Selection) -> Source:
    groups = TypedGroups(schema, selection.labels, selection.fields, is_flat=True, has_texts=True)
    names = () if data.with_header else tuple(field.input_name for field in data.input_fields)
    reader = CsvReader(files, groups, data.separator, names)
    return TableSource(files.names, schema, GroupTensors(groups), _of_rows(selection), reader)


def _of_rows(selection: Selection) -> Order:
    """Return the order of flat rows, because shuffle_buffer_size counts groups."""
    return replace(selection.order, flat_batch=selection.batch_size)


# Input type -> function that opens its source, for all inputs that consist of files.
SOURCES: dict[int, Callable[[DatasetConfig, Schema, DataFiles, Selection], Source]] = {
    DatasetConfig.GroupRTPInput: _group_rtp,
    DatasetConfig.GroupParquetInput: _group_parquet,
    DatasetConfig.GroupTFRecordInput: _group_tfrecord,
    DatasetConfig.CSVInput: _csv,
    DatasetConfig.ParquetInput: _parquet,
}
