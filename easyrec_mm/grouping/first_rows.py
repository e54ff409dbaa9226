"""Reads the first rows of data that may be grouped already, as rows of a flat log, to infer a config from them."""

from __future__ import annotations

import os
import re
from collections.abc import Collection
from dataclasses import dataclass
from itertools import islice

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError
from easyrec_mm.features.field import Kind
from easyrec_mm.files import join, plain
from easyrec_mm.files.data_names import is_picture
from easyrec_mm.files.opening import open_binary, opened_at
from easyrec_mm.formats.columns import kind_of, to_kind
from easyrec_mm.formats.parquet import is_parquet
from easyrec_mm.formats.tfrecord import DOUBLES, MISSING, is_tfrecord, records
from easyrec_mm.grouping.find_files import find_inputs, is_folder, is_grouped, is_log
from easyrec_mm.grouping.flat_files import pieces, plan_file, unreadable
from easyrec_mm.grouping.inference import is_label_name
from easyrec_mm.grouping.log_plan import plan_columns
from easyrec_mm.grouping.options import GROUP_SIZE
from easyrec_mm.protos.example_pb2 import Example

# Number of rows, or of groups, that are read.
NUM_READ = 1 << 13
_CSV_ENDINGS = (".csv", ".tsv")
# Maximum share of values in a column of numbers that are not numbers.
_MAX_BAD_SHARE = 0.01


@dataclass(frozen=True)
class FirstRows:
    """The first rows of some data.

    table        a column for each field but the group size, in its kind [N]
    kinds        field -> kind
    per_group    fields that have one value per group
    input_type   the format of the files, as configs name it
    size_field   field of the group size; "" if there is none
    path         the files as a config names them
    num_groups   number of groups in all files, estimated by the first one
    """

    table: pa.Table
    kinds: dict[str, Kind]
    per_group: frozenset[str]
    input_type: str
    size_field: str
    path: str
    num_groups: int
    num_groups_read: int

    @property
    def num_rows(self) -> int:
        """Return the estimated number of rows of all files."""
        return max(1, round(len(self.table) * self.num_groups / self.num_groups_read))

    def pictures(self) -> str:
        """Return the first column of which most values are paths of pictures; "" if there is none."""
        for name, kind in self.kinds.items():
            texts = self.table[name].drop_null().to_pylist() if kind == "string" else []
            if texts and 2 * sum(map(is_picture, texts)) > len(texts):
                return name
        return ""


def read_first_rows(paths: str, separator: str, labels: Collection[str]) -> FirstRows:
    """Read the first rows of Parquet, TFRecord or CSV files.

    Args:
      paths: files, folders and globs, separated by commas.
      separator: separator of the values in a CSV file.
      labels: names of labels, by whose lists groups are recognised; () to recognise labels by their names.

    Raises:
      DataError: if there is no such file, or it cannot be read.
    """
    files = find_inputs(paths, lambda path: is_grouped(path) or is_log(path)).files
    first = files[0]
    try:
        here = opened_at(first)
        if is_parquet(here):
            table, num_rows = _parquet(here)
            input_type = "GroupParquetInput" if _holds_groups(table, labels) else "ParquetInput"
        elif is_tfrecord(here):
            table, num_rows = _tfrecord(here, first)
            input_type = "GroupTFRecordInput"
        else:
            table, num_rows = _csv(here, first, separator)
            input_type = "CSVInput"
    except (OSError, EOFError, pa.ArrowException) as error:
        raise unreadable(first, error) from error
    if not len(table):
        raise DataError(f"{first}: no row of data; give files that hold rows")
    num_read, size_field, per_group = len(table), "", frozenset[str]()
    if input_type.startswith("Group"):
        size_field = GROUP_SIZE if GROUP_SIZE in table.column_names else ""
        table, per_group = _rows_of_groups(table, first)
        kinds = {field.name: _kind(field, first) for field in table.schema}
    else:
        kinds = plan_columns([here], [first], separator, _MAX_BAD_SHARE)
    columns = {name: to_kind(table[name].combine_chunks(), kind).values for name, kind in kinds.items()}
    path = _as_setting(paths, files)
    return FirstRows(pa.table(columns), kinds, per_group, input_type, size_field, path, num_rows * len(files), num_read)


def sides_of(folder: str) -> tuple[str, str]:
    """Return the folders of training and evaluation in what `group --split_by` writes; the path itself and "" else."""
    train, evaluation = join(folder, "train"), join(folder, "eval")
    return (train, evaluation) if is_folder(train) and is_folder(evaluation) else (folder, "")


def _parquet(path: str) -> tuple[pa.Table, int]:
    with pq.ParquetFile(path) as opened:
        batches = list(islice(opened.iter_batches(NUM_READ), 1))
        return pa.Table.from_batches(batches, opened.schema_arrow), opened.metadata.num_rows


def _csv(path: str, name: str, separator: str) -> tuple[pa.Table, int]:
    if not name.lower().removesuffix(".gz").endswith(_CSV_ENDINGS):
        raise DataError(
            f"{name}: is neither Parquet nor TFRecord nor .csv; lines of GroupRTPInput do not name their columns: "
            "convert them, or describe the data by flags instead of --input"
        )
    plan = plan_file(0, path, separator)
    tables: list[pa.Table] = []
    num_rows = 0
    for split in plan.splits:
        for piece in pieces(split, list(plan.columns), separator):
            tables += [piece.table.slice(0, NUM_READ)] if not tables else []
            num_rows += piece.num_rows
    return (tables[0] if tables else pa.table({})), num_rows


def _tfrecord(path: str, name: str) -> tuple[pa.Table, int]:
    """Return Examples as a table of lists, in which a column of single values stands for one of groups."""
    examples, num_rows = [], 0
    with open_binary(path) as stream:
        for record in records(stream, name):
            num_rows += 1
            if num_rows <= NUM_READ:
                examples.append(Example.FromString(record).features.feature)
    names = [field for field in (examples[0] if examples else {}) if field not in (MISSING, DOUBLES)]
    lists = {field: [_values(example[field]) for example in examples] for field in names}
    sizes = [max(len(values) for values in group) for group in zip(*lists.values(), strict=True)]
    columns = {}
    for field, values in lists.items():
        is_single = max(sizes) > 1 and all(len(value) == 1 for value in values)
        columns[field] = pa.array([value[0] for value in values] if is_single or field == GROUP_SIZE else values)
    return pa.table(columns), num_rows


def _values(feature: object) -> list[object]:
    return list(getattr(feature, feature.WhichOneof("kind")).value)  # type: ignore[attr-defined]


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _holds_groups(table: pa.Table, labels: Collection[str]) -> bool:
    """Return whether a row of a table is a group: it has its size, or a list of labels."""
    lists = [field.name for field in table.schema if _is_list(field.type)]
    return GROUP_SIZE in table.column_names or any(name in labels if labels else is_label_name(name) for name in lists)


def _rows_of_groups(table: pa.Table, file: str) -> tuple[pa.Table, frozenset[str]]:
    """Return the rows of groups, and the columns that have one value per group.

    Raises:
      DataError: if a list has another length than its group.
    """
    lists = [field.name for field in table.schema if _is_list(field.type)]
    if GROUP_SIZE in table.column_names:
        sizes = table[GROUP_SIZE].to_numpy()
    elif lists:
        sizes = pc.fill_null(pc.list_value_length(table[lists[0]]), 0).to_numpy()
    else:
        sizes = np.ones(len(table), np.int64)
    group = pa.array(np.repeat(np.arange(len(table)), sizes))
    columns = {}
    for name in table.column_names:
        column = table[name].combine_chunks()
        if name in lists:
            lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy()
            for row in np.flatnonzero(lengths != sizes)[:1]:
                raise DataError(
                    f"{file}: row {row + 1}: column '{name}': {lengths[row]} values, group size {sizes[row]}; "
                    "correct the file, or give another one"
                )
            columns[name] = column.flatten()
        elif name != GROUP_SIZE:
            columns[name] = column.take(group)
    return pa.table(columns), frozenset(set(columns) - set(lists))


def _kind(field: pa.Field, file: str) -> Kind:
    try:
        return kind_of(field.type) or "string"
    except ValueError as error:
        raise DataError(f"{file}: column '{field.name}' {error}; write it with another type") from error


def _as_setting(paths: str, files: list[str]) -> str:
    """Return paths as a config may name them, in which a folder is a pattern."""
    settings: list[str] = []
    for path in (part.strip() for part in paths.split(",")):
        if path in files or re.search(r"[*?\[]", path):
            settings.append(path)
        else:
            inside = [file for file in files if file.startswith(plain(path))]
            settings += [join(os.path.dirname(file), f"*{_ending(file)}") for file in inside]
    return ",".join(dict.fromkeys(settings))


def _ending(file: str) -> str:
    name = os.path.basename(file)
    whole = name.removesuffix(".gz")
    return os.path.splitext(whole)[1] + name[len(whole) :]
