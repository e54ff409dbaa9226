"""Reads any input as tables of samples: grouped files of every format, tables of MaxCompute, and flat logs."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from easyrec_mm.config.pipeline import Pipeline
from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.field import KINDS, Kind
from easyrec_mm.files.local_copies import local_copies
from easyrec_mm.formats.checks import BadGroup, GroupProblems, Ints, SampleChecks, refuse_bytes, refuse_kind
from easyrec_mm.formats.columns import ORDER, ROW_BITS, Typed, is_text, to_kind
from easyrec_mm.formats.data_files import DataFiles
from easyrec_mm.formats.grouped_table import GroupFields, GroupsPiece, piece_of
from easyrec_mm.formats.odps_tables import LINE, OdpsTables
from easyrec_mm.formats.rtp import read_lines
from easyrec_mm.formats.typed_groups import ROW
from easyrec_mm.grouping.convert import source_format
from easyrec_mm.grouping.flat_files import Split, pieces, plan_file
from easyrec_mm.grouping.log_plan import plan_columns
from easyrec_mm.protos.data_pb2 import DatasetConfig
from easyrec_mm.schema import Schema

_FLAT = (DatasetConfig.CSVInput, DatasetConfig.ParquetInput)


class Samples(NamedTuple):
    """Some groups of a file.

    size     int64 [G], number of samples of each group
    image    text [G], "" where there is no picture
    columns  field -> values [S] of its kind, null where a value is missing
    refused  groups that training would skip
    """

    size: Ints
    image: pa.Array
    columns: dict[str, pa.Array]
    refused: list[BadGroup]


@dataclass(frozen=True)
class Fields:
    """The fields that are read.

    kinds       field -> kind, in order; without the picture's path and the group size
    labels      fields that are labels
    image       field of the picture's path; "" if there is none
    is_flat     whether each row is one sample
    separators  field -> separator, for texts that hold several values
    """

    kinds: dict[str, Kind]
    labels: tuple[str, ...]
    image: str
    is_flat: bool
    separators: dict[str, str] = field(default_factory=dict)


class SampleReader(Protocol):
    """Reads the samples of an input."""

    fields: Fields
    files: list[str]

    def read(self, file: str) -> Iterator[Samples]:
        """Read the samples of one of the files, some groups at a time.

        Raises:
          DataError: if it cannot be read, or lacks a column.
        """


def config_samples(pipeline: Pipeline, path: str, setting: str) -> SampleReader:
    """Return a reader of the samples in a config's input.

    Args:
      pipeline: the config.
      path: files or tables, in the form of train_input_path.
      setting: the setting that `path` is from, for messages.

    Raises:
      DataError: if there is no such file.
    """
    data, schema = pipeline.config.data_config, pipeline.schema
    types = {
        input_field.input_name: DatasetConfig.FieldType.Name(input_field.input_type)
        for input_field in data.input_fields
    }
    kinds: dict[str, Kind] = {
        name: KINDS[kind] for name, kind in types.items() if name not in (schema.image.field, schema.group_size_field)
    }
    separators = {name: f.separators[0] for f in schema.features for name in f.inputs if f.separators}
    fields = Fields(kinds, schema.labels, schema.image.field, data.input_type in _FLAT, separators)
    if data.input_type == DatasetConfig.OdpsGroupRTPInput:
        columns = [name.strip() for name in data.selected_cols.split(",")]
        return _TableSamples(fields, OdpsTables(path, setting, columns, schema.layout.column_separator), pipeline)
    files = DataFiles(path, setting, local_copies(data.file_cache_dir, data.file_cache_gib))
    if not fields.is_flat:
        return _GroupedSamples(fields, files, pipeline)
    has_names = data.input_type == DatasetConfig.ParquetInput or data.with_header
    names = () if has_names else tuple(input_field.input_name for input_field in data.input_fields)
    return _FlatSamples(fields, files, data.separator, names, schema)


def log_samples(
    path: str, separator: str = ",", image: str = "", labels: tuple[str, ...] = (), max_bad_share: float = 0.01
) -> SampleReader:
    """Return a reader of a flat log, CSV with a header or Parquet, whose types are inferred from its values.

    Raises:
      DataError: if a file cannot be read, or lacks a column.
    """
    files = DataFiles(path, "--input")
    columns = plan_columns([files.opened_at(name) for name in files.names], files.names, separator, max_bad_share)
    for flag, name in (("--image_field", image), *(("--label_fields", label) for label in labels)):
        if name and name not in columns:
            raise DataError(f"{flag}: {files.names[0]} has no column '{name}'; {did_you_mean(name, columns)}")
    for label in labels:
        if columns[label] == "string":
            raise DataError(f"--label_fields: column '{label}' is text, and a label must be a number; correct the data")
    kinds = {name: kind for name, kind in columns.items() if name != image}
    return _FlatSamples(Fields(kinds, labels, image, is_flat=True), files, separator)


class _GroupedSamples:
    """Reads the samples of files of groups."""

    def __init__(self, fields: Fields, files: DataFiles, pipeline: Pipeline) -> None:
        self.fields = fields
        self.files = files.names
        self._data_files = files
        self._source = source_format(pipeline)

    def read(self, file: str) -> Iterator[Samples]:
        """See SampleReader.read."""
        for piece in self._source.read(self._data_files.opened_at(file)):
            yield _of_groups(piece, self._source.fields, self.fields)


class _TableSamples:
    """Reads the samples of tables of MaxCompute, whose slices are the files."""

    def __init__(self, fields: Fields, tables: OdpsTables, pipeline: Pipeline) -> None:
        self.fields = fields
        self.files = list(tables.slices)
        self._tables = tables
        self._source = source_format(pipeline)

    def read(self, file: str) -> Iterator[Samples]:
        """See SampleReader.read."""
        then = self.files.index(file) + 1
        self._tables.ahead(self.files[then : then + 2])
        for table in self._tables.read(file):
            groups, num_columns = self._source.fields, len(self.fields.labels) + 3
            rows = read_lines(table[LINE].to_pylist(), num_columns, self._source.groups)
            piece = piece_of(rows, groups, table[ROW].to_numpy())
            yield _of_groups(piece, groups, self.fields)


def _of_groups(piece: GroupsPiece, groups: GroupFields, fields: Fields) -> Samples:
    columns = {name: piece.groups.samples(name, groups) for name in fields.kinds}
    no_pictures = pa.array([""] * len(piece.groups.size))
    image = piece.groups.columns[groups.image] if groups.image else no_pictures
    return Samples(piece.groups.size, image, columns, piece.refused)


class _FlatSamples:
    """Reads the rows of a log.

    Args:
      fields: the fields that are read.
      files: CSV or Parquet files.
      separator: separator of the values of CSV.
      names: names of the columns of CSV without a header.
      schema: schema of a config, with which training would refuse some rows; None for a log without a config.
    """

    def __init__(
        self,
        fields: Fields,
        files: DataFiles,
        separator: str,
        names: Sequence[str] = (),
        schema: Schema | None = None,
    ) -> None:
        self.fields = fields
        self.files = files.names
        self._data_files = files
        self._separator = separator
        self._names = tuple(names)
        self._schema = schema

    def read(self, file: str) -> Iterator[Samples]:
        """See SampleReader.read."""
        path = self._data_files.opened_at(file)
        if self._names:
            splits = [Split(0, path, "csv", 0, -1, names=self._names)]
        else:
            plan = plan_file(0, path, self._separator)
            splits = plan.splits
            for name in (*self.fields.kinds, self.fields.image):
                if name and splits and name not in plan.columns:
                    raise DataError(f"{file}: no column '{name}'; {did_you_mean(name, plan.columns)}")
        row = splits[0].first_row if splits else 1
        for split in splits:
            names = list(filter(None, (*self.fields.kinds, self.fields.image)))
            for piece in pieces(replace(split, first_row=row), names, self._separator):
                numbers = np.bitwise_and(piece.table[ORDER].to_numpy(), (1 << ROW_BITS) - 1)
                yield self._checked(
                    piece.table, numbers, [BadGroup(r, "row", problem) for r, problem in piece.malformed]
                )
                row += piece.num_rows

    def _checked(self, table: pa.Table, rows: Ints, refused: list[BadGroup]) -> Samples:
        problems = GroupProblems(np.ones(len(table), np.int64))
        raw = {name: table[name].combine_chunks() for name in self.fields.kinds}
        typed = {name: to_kind(raw[name], kind, self._schema is not None) for name, kind in self.fields.kinds.items()}
        if self._schema is not None:
            self._check(self._schema, raw, typed, problems)
        for name, kind in self.fields.kinds.items():
            refuse_kind(typed[name].is_bad, raw[name], name, kind, problems.refuse)
        columns = {name: converted.values for name, converted in typed.items()}
        image = pa.array([""] * len(table))
        if self.fields.image:
            paths = table[self.fields.image].combine_chunks()
            refuse_bytes(paths, self.fields.image, problems.refuse)
            image = pc.fill_null(to_kind(paths, "string").values, "")
        if problems.by_group:
            good = pa.array(~problems.is_bad)
            columns = {name: column.filter(good) for name, column in columns.items()}
            image = image.filter(good)
        return Samples(np.ones(len(image), np.int64), image, columns, sorted(refused + problems.at_rows(rows)))

    def _check(
        self, schema: Schema, raw: dict[str, pa.Array], typed: dict[str, Typed], problems: GroupProblems
    ) -> None:
        """Refuse rows as training does; the checks themselves parse numbers in text, and report invalid ones."""
        # Lists are not checked, because here they are joined with another separator than in training.
        fields = [name for name in schema.fields_read() if not pa.types.is_nested(raw[name].type)]
        columns = {}
        for name in (*self.fields.labels, *fields):
            is_number_in_text = is_text(raw[name].type) and self.fields.kinds[name] != "string"
            columns[name] = raw[name] if is_number_in_text else typed[name].values
            if not is_number_in_text:
                refuse_kind(typed[name].is_bad, raw[name], name, self.fields.kinds[name], problems.refuse)
        SampleChecks(schema, self.fields.labels, fields).check(columns, problems)
