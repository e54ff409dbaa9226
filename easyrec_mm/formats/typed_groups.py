"""Groups in tables with one row per group: checks every value, and concatenates the samples of all groups.

A column of lists has one entry per sample; any other column has one value for the whole group. A null is a missing
value: it is replaced by the field's default, but a missing label requires a default_val. A group is always refused as a
whole, so that no sample is trained with the picture of another one.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.field import Dtype
from easyrec_mm.formats.checks import (
    GroupProblems,
    Ints,
    Problem,
    SampleChecks,
    as_bytes,
    column_place,
    not_whole,
    refuse_bytes,
    require_one_value,
)
from easyrec_mm.formats.columns import as_signed, is_text
from easyrec_mm.schema import Schema

# Columns in which a reader provides the number of a row, and its problem; the problem of a valid row is null.
ROW, PROBLEM = "easyrec_mm:row", "easyrec_mm:problem"
_KINDS: dict[Dtype, str] = {"int64": "whole numbers", "bool": "bool", "float32": "numbers", "string": "text"}


@dataclass
class TypedRows:
    """The valid groups among N groups: G groups of S samples.

    fields      field name -> [S] as training reads it: int64, float32, or an Arrow array of bytes
    columns     field name -> [S] as the file has it, null where a value is missing
    image_path  bytes as objects [G]
    group_size  int64 [G]
    kept_groups int64 [G]: index of each valid group among the N groups
    problems    index -> what is wrong, for the invalid groups
    """

    fields: dict[str, NDArray[np.generic] | pa.Array]
    columns: dict[str, pa.Array]
    image_path: NDArray[np.object_]
    group_size: Ints
    kept_groups: Ints
    problems: dict[int, Problem]


class TextGroup(NamedTuple):
    """One group as texts: one entry per sample for each label and field; "" for a missing value."""

    size: int
    image: bytes
    values: dict[str, list[str]]


class TypedGroups:
    """Reads groups from tables: the rules for valid groups, whatever the format of their file.

    Args:
      schema: fields and tasks.
      labels: label fields to read.
      fields: other fields to read.
      is_flat: whether a row is one sample; a column of lists then contains several values per sample.
      has_texts: whether numbers may be written as text, as in a CSV file.
      is_exact: whether labels keep the 64 bits of whole numbers, which training reads as float32.
    """

    def __init__(
        self,
        schema: Schema,
        labels: tuple[str, ...],
        fields: tuple[str, ...],
        is_flat: bool = False,
        has_texts: bool = False,
        is_exact: bool = False,
    ) -> None:
        self.schema = schema
        self._fields = [schema.field(name) for name in (*labels, *fields)]
        self.labels = set(labels)
        self.is_flat = is_flat
        self._has_texts = has_texts
        self.is_exact = is_exact
        self.checks = SampleChecks(schema, labels, fields)
        self.columns = tuple(field.name for field in self._fields)
        if schema.image.field:
            self.columns += (schema.image.field,)
        # Field -> separators that split its values as text, for values that may be lists or lists of lists.
        self._separators = {name: [*f.separators] for f in schema.all_features() for name in f.inputs if f.separators}
        self._vectors = {name for f in schema.all_features() for name in f.inputs if f.num_numbers > 1 and not f.stored}

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """Return field name -> dtype of what `read` returns: labels are float32."""
        is_float = self.labels if not self.is_exact else set()
        return {field.name: "float32" if field.name in is_float else field.dtype for field in self._fields}

    def present(self, place: str, columns: list[str]) -> list[str]:
        """Return the columns of a file that are read.

        Raises:
          DataError: if a column is missing.
        """
        for name in self.columns:
            if name not in columns:
                raise DataError(f"{place}: no column '{name}'; {did_you_mean(name, columns)}")
        return [name for name in (*self.columns, self.schema.group_size_field) if name in columns]

    def prepare(self, place: str, table: pa.Table) -> pa.Table:
        """Return the columns that are read, converted to types that do not depend on the file.

        Args:
          place: the file, for messages.
          table: the columns that are present, with their types in the file.

        Raises:
          DataError: if the type of a column does not match its field.
        """
        missing = pa.chunked_array([pa.nulls(len(table))])
        problems = table[PROBLEM].to_pylist() if PROBLEM in table.column_names else [None] * len(table)
        columns = {}
        for name in self.columns:
            # Rows that could not be read have no columns.
            column = table[name] if name in table.column_names else missing
            if self._dtype(name) == "string":
                column, unclear = self._as_texts(name, column)
                for row in unclear:
                    problems[row] = (
                        problems[row]
                        or Problem(column_place(name), "an element contains the separator of the elements").encode()
                    )
            bad: dict[int, Any] = {}
            if self._dtype(name) != "string" and pa.types.is_uint64(_inner(column.type)):
                column, bad = _as_signed(column)
            column = self._prepare(place, name, column)
            if self._dtype(name) in ("int64", "bool") and _is_floating(column.type):
                column, bad = _as_whole(column)
            for row, value in bad.items():
                problems[row] = problems[row] or Problem(column_place(name), not_whole(value)).encode()
            columns[name] = column
        size = self.schema.group_size_field
        if size in table.column_names and pa.types.is_integer(table[size].type):
            columns[size] = table[size].cast(pa.int64())
        if ROW in table.column_names:
            columns[ROW] = table[ROW]
        columns[PROBLEM] = pa.array(problems, pa.binary())
        return pa.table(columns)

    def _prepare(self, place: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """Convert a column to text, int64 or float64, or to lists of these."""
        dtype, kind = self._dtype(name), column.type
        inner = _inner(kind)
        has_text, is_floating = is_text(inner), pa.types.is_floating(inner)
        target = {"string": pa.large_binary(), "float32": pa.float64()}.get(dtype, pa.int64())
        if self._has_texts:
            target = pa.large_binary()
        elif target == pa.int64() and is_floating:
            # Whole numbers are stored as floats by writers that cannot represent missing ones otherwise.
            target = pa.float64()
        is_number = is_floating or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
        # A text may be an id that is stored as a whole number.
        fits = has_text or (is_number and not is_floating) if dtype == "string" else is_number
        if not (fits or self._has_texts or pa.types.is_null(inner)) or (self.is_flat and _is_list(kind)):
            raise DataError(
                f"{place}: column '{name}' is {kind}, and data_config.input_fields says {_KINDS[dtype]}; change the "
                "field's input_type, or write the column with that type"
            )
        if is_number and target == pa.large_binary():
            column = column.cast(pa.list_(pa.string()) if _is_list(kind) else pa.string())
        if pa.types.is_integer(inner) and target == pa.float64():
            return column.cast(pa.list_(target) if _is_list(kind) else target, safe=False)
        return column.cast(pa.list_(target) if _is_list(kind) else target)

    def _dtype(self, name: str) -> Dtype:
        return "string" if name == self.schema.image.field else self.dtypes[name]

    def _as_texts(self, name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
        """Join values that are lists to the text that their feature reads; the list of a group's samples stays a list.

        Also return the rows whose text would not be split back into the same lists.
        """
        depth, leaf = _depth(column.type)
        separators = self._separators.get(name, ["|"])
        own = depth if self.is_flat else depth - 1
        if name in self._vectors and depth == len(separators) and not is_text(leaf):
            own = depth  # one vector for a whole group
        if not 0 < own <= len(separators):
            return column, []
        joined = [_join_lists(chunk, separators[:own]) for chunk in column.cast(_text_type(depth)).chunks]
        unclear = np.concatenate([np.zeros(0, bool), *(is_unclear for _, is_unclear in joined)])
        texts = pa.chunked_array([text for text, _ in joined], _text_type(depth - own))
        return texts, np.flatnonzero(unclear).tolist()

    def read(self, table: pa.Table) -> TypedRows:
        """Return the valid groups of a table that `prepare` returned."""
        table, kept_groups, problems = self._whole_groups(table)
        value_problems = GroupProblems(self._group_sizes(table))
        columns = {field.name: _flatten(table[field.name], value_problems) for field in self._fields}
        fields = self.checks.check(columns, value_problems)
        rows = valid_rows(fields, columns, self._image_path(table, value_problems), value_problems)
        problems |= {int(kept_groups[group]): problem for group, problem in rows.problems.items()}
        return replace(rows, kept_groups=kept_groups[rows.kept_groups], problems=problems)

    def _whole_groups(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.int64], dict[int, Problem]]:
        """Return the groups whose lists have one entry per sample, their indices, and the problems of other groups."""
        problems: dict[int, Problem] = {}
        if PROBLEM in table.column_names and table[PROBLEM].null_count < len(table):
            for group in np.flatnonzero(table[PROBLEM].is_valid()):
                problems[int(group)] = Problem.decode(table[PROBLEM][group].as_py())
        declared_size = self._declared_size(table)
        lengths = {
            name: pc.fill_null(pc.list_value_length(table[name]), -1).to_numpy().astype(np.int64)
            for name in self.columns
            if _is_list(table[name].type)
        }
        size = next(iter(lengths.values()), np.ones(len(table), np.int64)) if declared_size is None else declared_size
        length_problems = GroupProblems(np.ones(len(table), np.int64))
        for name, length in lengths.items():
            length_problems.refuse(length < 0, column_place(name), lambda i: "is null")
        place = "row" if declared_size is None else column_place(self.schema.group_size_field)
        length_problems.refuse(size <= 0, place, lambda i: f"group size {size[i]} is not 1 or more")
        for name, length in lengths.items():
            where = column_place(name)
            length_problems.refuse(length != size, where, lambda i, n=length: f"{n[i]} entries, group size {size[i]}")  # type: ignore[misc]
        problems = length_problems.by_group | problems
        kept_groups = np.setdiff1d(np.arange(len(table)), list(problems))
        return (table.take(pa.array(kept_groups)) if problems else table), kept_groups, problems

    def _declared_size(self, table: pa.Table) -> NDArray[np.int64] | None:
        name = self.schema.group_size_field
        return pc.fill_null(table[name], 0).to_numpy() if name in table.column_names else None

    def _group_sizes(self, table: pa.Table) -> NDArray[np.int64]:
        """Return the sizes of whole groups."""
        size = self._declared_size(table)
        lists = (table[name] for name in self.columns if _is_list(table[name].type))
        of_lists = (pc.list_value_length(column).to_numpy().astype(np.int64) for column in lists)
        return next(of_lists, np.ones(len(table), np.int64)) if size is None else size

    def _image_path(self, table: pa.Table, problems: GroupProblems) -> NDArray[np.object_]:
        if not self.schema.image.field:
            return np.full(len(problems.first), b"", object)
        name = self.schema.image.field
        paths = table[name].combine_chunks()
        if _is_list(paths.type):
            paths = _flatten(table[name], problems)
            require_one_value(name, paths, problems)
            paths = paths.take(pa.array(problems.first))
        refuse_bytes(paths, name, problems.refuse)
        return as_bytes(paths)


def valid_rows(
    fields: dict[str, NDArray[np.generic] | pa.Array],
    columns: dict[str, pa.Array],
    image_path: NDArray[np.object_],
    problems: GroupProblems,
) -> TypedRows:
    """Return the groups without a problem among G groups of S samples; see TypedRows for the arguments."""
    size, kept_groups = problems.size, np.arange(len(problems.size))
    if problems.by_group:
        of_good = ~problems.is_bad[problems.group]
        mask = pa.array(of_good)
        fields = {
            name: values.filter(mask) if isinstance(values, pa.Array) else values[of_good]
            for name, values in fields.items()
        }
        columns = {name: column.filter(mask) for name, column in columns.items()}
        kept_groups = np.flatnonzero(~problems.is_bad)
        image_path, size = image_path[kept_groups], size[kept_groups]
    return TypedRows(fields, columns, image_path, size, kept_groups, problems.by_group)


def text_groups(rows: TypedRows) -> Iterator[TextGroup | Problem]:
    """Yield all groups, in their order: the valid ones as texts, and the problems of the others."""
    columns = {name: [_text(value) for value in column.to_pylist()] for name, column in rows.columns.items()}
    ends = np.cumsum(rows.group_size)
    place = dict(zip(rows.kept_groups.tolist(), range(len(rows.kept_groups)), strict=True))
    for group in range(len(rows.kept_groups) + len(rows.problems)):
        if group in rows.problems:
            yield rows.problems[group]
            continue
        i = place[group]
        size, end = int(rows.group_size[i]), int(ends[i])
        values = {name: texts[end - size : end] for name, texts in columns.items()}
        yield TextGroup(size, bytes(rows.image_path[i]), values)


def _flatten(column: pa.ChunkedArray, problems: GroupProblems) -> pa.Array:
    """Return the values of a column, one per sample `[S]`, with their type unchanged."""
    values = column.combine_chunks()
    if _is_list(values.type):
        values = values.flatten()
    elif problems.size.max(initial=1) > 1:
        values = values.take(pa.array(problems.group))
    return values


def _as_whole(column: pa.ChunkedArray) -> tuple[pa.Array, dict[int, float]]:
    """Convert a column of floats, or of lists of floats, to int64; also return row -> number for fractional numbers."""
    combined = column.combine_chunks()
    values = combined.values if _is_list(combined.type) else combined
    numbers = values.to_numpy(zero_copy_only=False)  # missing numbers are NaN
    is_missing = values.is_null().to_numpy(zero_copy_only=False)
    is_bad = ~is_missing & (~(np.abs(numbers) < 2**63) | (numbers != np.round(numbers)))
    integers = pa.array(np.where(is_bad | is_missing, 0, numbers).astype(np.int64), mask=is_missing)
    return _like(combined, integers), _rows_of(combined, numbers, is_bad)


def _as_signed(column: pa.ChunkedArray) -> tuple[pa.Array, dict[int, int]]:
    """Convert a column of uint64, or of lists of these, to int64; also return row -> number for too large numbers."""
    combined = column.combine_chunks()
    values = combined.values if _is_list(combined.type) else combined
    values = values.dictionary_decode() if pa.types.is_dictionary(values.type) else values
    signed, is_bad = as_signed(values)
    numbers = pc.fill_null(values, 0).to_numpy(zero_copy_only=False)
    return _like(combined, signed), {} if is_bad is None else _rows_of(combined, numbers, is_bad)


def _like(column: pa.Array, values: pa.Array) -> pa.Array:
    """Return a column whose values, or values in lists, are replaced."""
    if not _is_list(column.type):
        return values
    return pa.ListArray.from_arrays(column.offsets.cast(pa.int32()), values, mask=column.is_null())


def _rows_of(column: pa.Array, numbers: NDArray[np.generic], is_bad: NDArray[np.bool_]) -> dict[int, Any]:
    """Return row -> number for the numbers marked as bad; of a row with several of them, the last."""
    rows = np.flatnonzero(is_bad)
    if _is_list(column.type):
        rows = np.searchsorted(column.offsets.to_numpy(), rows, side="right") - 1
    return dict(zip(rows.tolist(), numbers[is_bad].tolist(), strict=True))


def _inner(kind: pa.DataType) -> pa.DataType:
    """Return the type of the values of a column, or of the values in its lists."""
    inner = kind.value_type if _is_list(kind) else kind
    return inner.value_type if pa.types.is_dictionary(inner) else inner


def _is_floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if _is_list(kind) else kind))


def _depth(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """Return the nesting depth of lists, and the type of their innermost values."""
    depth = 0
    while _is_list(kind) or pa.types.is_fixed_size_list(kind):
        depth, kind = depth + 1, kind.value_type
    return depth, kind


def _text_type(depth: int) -> pa.DataType:
    kind = pa.string()
    for _ in range(depth):
        kind = pa.list_(kind)
    return kind


def _join_lists(lists: pa.Array, separators: list[str]) -> tuple[pa.Array, NDArray[np.bool_]]:
    """Join the innermost lists of texts by the separators, of which the last is for the innermost lists.

    A null among the texts becomes an empty text. Also return in which rows a text contains the separator that joins it.
    """
    depth, _ = _depth(lists.type)
    stays = depth > len(separators)
    offsets, is_null = lists.offsets.to_numpy(), lists.is_null()
    texts, is_unclear = lists.values, np.zeros(len(lists.values), bool)
    if stays or len(separators) > 1:
        texts, is_unclear = _join_lists(texts, separators if stays else separators[1:])
    num_unclear = np.concatenate([[0], np.cumsum(is_unclear)])
    is_unclear = num_unclear[offsets[1:]] > num_unclear[offsets[:-1]]
    texts = texts if stays else pc.fill_null(texts, "")
    lists = pa.ListArray.from_arrays(pa.array(offsets), texts, mask=is_null)
    if stays:
        return lists, is_unclear
    joined = pc.binary_join(lists, separators[0])
    num_found = pc.fill_null(pc.count_substring(joined, separators[0]), 0).to_numpy(zero_copy_only=False)
    return joined, is_unclear | (num_found > np.maximum(np.diff(offsets) - 1, 0))


def _is_list(kind: pa.DataType) -> bool:
    return bool(pa.types.is_list(kind) or pa.types.is_large_list(kind))


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
