"""Grouped samples as Parquet: one row per group, with sample-level fields as lists."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files.opening import opened_at
from easyrec_mm.formats.checks import GroupProblems, Ints, SampleChecks, column_place, refuse_kind
from easyrec_mm.formats.columns import ARROW_TYPES, join_kinds, kind_of, to_kind
from easyrec_mm.formats.grouped_table import (
    READ_GROUPS,
    GroupFields,
    Groups,
    GroupsPiece,
    joined,
    offsets,
    one_a_group,
)

# Number of groups per Parquet row group. Fixed, because it determines the bytes of a file.
ROW_GROUP = 1 << 14


class ParquetWriter:
    """A GroupWriter of Parquet files."""

    def __init__(self, path: str, fields: GroupFields) -> None:
        self._fields = fields
        self._schema = _schema(fields)
        self._writer = pq.ParquetWriter(path, self._schema, compression="zstd", compression_level=1)
        self._waiting: list[Groups] = []
        self._num_waiting = 0

    def write(self, groups: Groups) -> None:
        """See GroupWriter.write."""
        start = 0
        while start < len(groups.size):
            end = min(start + ROW_GROUP - self._num_waiting, len(groups.size))
            part = groups.slice(start, end, self._fields)
            start = end
            self._waiting.append(part)
            self._num_waiting += len(part.size)
            if self._num_waiting == ROW_GROUP:
                self._flush()

    def close(self) -> None:
        """See GroupWriter.close."""
        if self._waiting:
            self._flush()
        self._writer.close()

    def _flush(self) -> None:
        self._writer.write_table(_table(joined(self._waiting), self._fields, self._schema), row_group_size=ROW_GROUP)
        self._waiting, self._num_waiting = [], 0


def _schema(fields: GroupFields) -> pa.Schema:
    kinds = {name: ARROW_TYPES[kind] for name, kind in fields.kinds.items()}
    columns = [(name, kind if name in fields.per_group else pa.list_(kind)) for name, kind in kinds.items()]
    return pa.schema([*columns, (fields.size, pa.int64())])


def _table(groups: Groups, fields: GroupFields, schema: pa.Schema) -> pa.Table:
    of_lists = offsets(groups.size)
    columns = [
        column if name in fields.per_group else pa.ListArray.from_arrays(of_lists, column)
        for name, column in ((name, groups.columns[name]) for name in fields.kinds)
    ]
    return pa.Table.from_arrays([*columns, pa.array(groups.size)], schema=schema)


def read_parquet(path: str, fields: GroupFields, checks: SampleChecks | None = None) -> Iterator[GroupsPiece]:
    """Yield the groups of a file.

    Args:
      path: path of the file.
      fields: fields of the groups.
      checks: checks the values as training does; None to check only that they are of their kinds.

    Raises:
      DataError: if the file cannot be read, or a column is missing or of another type.
    """
    try:
        with pq.ParquetFile(opened_at(path)) as opened:
            names = opened.schema_arrow.names
            for name, kind in fields.kinds.items():
                if name not in names:
                    raise DataError(f"{path}: no column '{name}'; {did_you_mean(name, names)}")
                _check_type(path, name, opened.schema_arrow.field(name).type, kind)
            wanted = [name for name in (*fields.kinds, fields.size) if name in names]
            first = 1
            for batch in opened.iter_batches(READ_GROUPS, columns=wanted):
                yield _piece(pa.Table.from_batches([batch]), fields, first + np.arange(len(batch)), checks)
                first += len(batch)
    except (OSError, pa.ArrowException) as error:
        raise DataError(f"{path}: cannot be read as Parquet: {error}") from error


def _check_type(path: str, name: str, found: pa.DataType, kind: str) -> None:
    inner = found.value_type if pa.types.is_list(found) or pa.types.is_large_list(found) else found
    try:
        if not pa.types.is_nested(inner):
            known = kind_of(inner)
            if kind != "string":
                join_kinds(known, kind)  # type: ignore[arg-type]
            return
    except ValueError:
        pass
    raise DataError(
        f"{path}: column '{name}' is {found}, and its input field {kind}; change the field's input_type, or write the "
        "column with that type"
    )


def _piece(table: pa.Table, fields: GroupFields, rows: Ints, checks: SampleChecks | None) -> GroupsPiece:
    is_list = {name: pa.types.is_nested(table[name].type) for name in fields.kinds}
    lengths = {
        name: pc.fill_null(pc.list_value_length(table[name]), -1).to_numpy().astype(np.int64)
        for name in fields.kinds
        if is_list[name]
    }
    size = next(iter(lengths.values()), np.ones(len(table), np.int64))
    if fields.size in table.column_names:
        size = pc.fill_null(table[fields.size].cast(pa.int64()), 0).to_numpy()
    whole = GroupProblems(np.ones(len(table), np.int64))
    for name, length in lengths.items():
        whole.refuse(length < 0, column_place(name), lambda i: "is null")
    place = column_place(fields.size) if fields.size in table.column_names else "row"
    whole.refuse(size <= 0, place, lambda i: f"group size {size[i]} is not 1 or more")
    for name, length in lengths.items():
        whole.refuse(length != size, column_place(name), lambda i, n=length: f"{n[i]} entries, group size {size[i]}")  # type: ignore[misc]
    refused = whole.at_rows(rows)
    if refused:
        good = ~whole.is_bad
        table, size, rows = table.filter(pa.array(good)), size[good], rows[good]

    problems = GroupProblems(size)
    columns: dict[str, pa.Array] = {}
    for name, kind in fields.kinds.items():
        column = table[name].combine_chunks()
        column = column.flatten() if is_list[name] else column.take(pa.array(problems.group))
        typed = to_kind(column, kind, strict=True)
        refuse_kind(typed.is_bad, column, name, kind, problems.refuse_samples)
        columns[name] = pc.fill_null(typed.values, "") if name == fields.image else typed.values
    if checks is not None:
        checks.check(columns, problems)
    for name in filter(fields.per_group.__contains__, fields.kinds):
        columns[name] = one_a_group(name, columns[name], fields, problems)
    good = ~problems.is_bad
    return GroupsPiece(Groups(size, columns).select(good, fields), rows[good], sorted(refused + problems.at_rows(rows)))


def count_parquet(path: str, fields: GroupFields) -> tuple[int, int]:
    """Return the number of groups and samples of a ParquetWriter's file, from a sample-level column if it has one."""
    name = next((name for name in fields.kinds if name not in fields.per_group), fields.size)
    num_groups = num_samples = 0
    with pq.ParquetFile(path) as opened:
        for batch in opened.iter_batches(columns=[name]):
            column = batch.column(0)
            num_groups += len(column)
            num_samples += len(column.flatten()) if pa.types.is_list(column.type) else pc.sum(column).as_py()
    return num_groups, num_samples
