"""Groups as a table holds them, a row each: checked value by value, and laid out sample behind sample.

A column of lists has an entry a sample; any other column has one value for the whole group. A null is a missing value:
it takes the field's default, but a label that is missing needs a default_val. What is refused is refused as a whole
group, so that no sample is taught another one's picture.
"""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import tensorflow as tf
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.text_patterns import VALUE_PATTERNS, text_patterns
from easyrec_mm.formats.source import GroupRows, Problem, TextGroup
from easyrec_mm.schema import Dtype, Field, Schema

# Columns in which a reader says the number of a row, and what is wrong with it; null for a good one.
ROW, PROBLEM = "easyrec_mm:row", "easyrec_mm:problem"
_KINDS: dict[Dtype, str] = {"int64": "whole numbers", "bool": "bool", "float32": "numbers", "string": "text"}


@dataclass
class TypedRows:
    """The good ones of N groups: G groups of S samples.

    fields      field name -> [S]: int64, float32, or an Arrow array of bytes
    image_path  bytes as objects [G]
    group_size  int64 [G]
    kept        int64 [G]: which of the N groups each is
    problems    group -> what is wrong with it, for the others
    """

    fields: dict[str, NDArray[np.generic] | pa.Array]
    image_path: NDArray[np.object_]
    group_size: NDArray[np.int64]
    kept: NDArray[np.int64]
    problems: dict[int, Problem]

    def as_arrays(self) -> tuple[Any, ...]:
        """What TypedGroups.rows takes."""
        fields = {name: _joined(one) if isinstance(one, pa.Array) else one for name, one in self.fields.items()}
        refused = np.array(sorted(self.problems), np.int64)
        evidence = np.array([self.problems[i].encode() for i in refused.tolist()], object)
        return fields, self.image_path, self.group_size, self.kept, refused, evidence


@dataclass
class _Flat:
    """Values of samples in a row, and which groups they make."""

    size: NDArray[np.int64]  # [G]
    is_good: NDArray[np.bool_] = field(init=False)  # [G]
    problems: dict[int, Problem] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.is_good = np.ones(len(self.size), bool)
        self.group = np.repeat(np.arange(len(self.size)), self.size)  # [S]
        self.first = np.cumsum(self.size) - self.size  # [G]

    def refuse(self, is_bad: NDArray[np.bool_], where: str, what: Callable[[int], str]) -> None:
        """Refuse the groups of these samples `[S]`; `what` says what is wrong with a sample."""
        for sample in np.flatnonzero(is_bad):
            group = int(self.group[sample])
            if self.is_good[group]:
                self.is_good[group] = False
                number = sample - self.first[group]
                place = f"sample {number}: " if self.size[group] > 1 else ""
                self.problems[group] = Problem(where, f"{place}{what(int(sample))}")


class TypedGroups:
    """Reads tables of groups; TableGroups.

    Args:
      schema: fields and tasks.
      labels: label fields to read.
      fields: other fields to read.
      is_flat: whether a row is a sample; a column of lists then holds several values a sample.
      has_texts: whether numbers may be written as text, as in a CSV file.
    """

    def __init__(
        self,
        schema: Schema,
        labels: tuple[str, ...],
        fields: tuple[str, ...],
        is_flat: bool = False,
        has_texts: bool = False,
    ) -> None:
        self._schema = schema
        self._fields = [schema.field(name) for name in (*labels, *fields)]
        self.labels = set(labels)
        self.is_flat = is_flat
        self._has_texts = has_texts
        self._patterns = text_patterns(schema)
        self.aligned = [lists for lists in schema.aligned_lists() if lists.keys() <= {*labels, *fields}]
        self.columns = tuple(field.name for field in self._fields)
        if schema.image.field:
            self.columns += (schema.image.field,)
        # Of a value that is a list, or a list of lists: what splits them as text.
        self._separators = {
            name: [separator for separator in (f.separator, f.number_separator) if separator]
            for f in schema.features
            for name in f.inputs
            if f.separator
        }
        self._vectors = {name for f in schema.features for name in f.inputs if f.raw_dim > 1 and not f.store}

    @property
    def dtypes(self) -> dict[str, Dtype]:
        """Field name -> dtype of what `read` gives: labels are float32."""
        return {one.name: "float32" if one.name in self.labels else one.dtype for one in self._fields}

    def arrays(self, table: pa.Table) -> tuple[Any, ...]:
        """The groups of a table, for `rows`."""
        return self.read(table).as_arrays()

    def signature(self) -> tuple[Any, ...]:
        """Specs of `arrays`."""
        numbers, texts = tf.TensorSpec([None], tf.int64), tf.TensorSpec([None], tf.string)
        kinds = {"string": tf.string, "float32": tf.float32, "int64": tf.int64, "bool": tf.int64}
        fields = {name: tf.TensorSpec([None], kinds[dtype]) for name, dtype in self.dtypes.items()}
        return fields, texts, numbers, numbers, numbers, texts

    def rows(self, arrays: tuple[Any, ...]) -> GroupRows:
        """`arrays` as tensors -> the groups; within a graph."""
        fields, *others = arrays
        num_samples = tf.reduce_sum(others[1])
        texts = (name for name, dtype in self.dtypes.items() if dtype == "string")
        return GroupRows(fields | {name: _split(fields[name], num_samples) for name in texts}, *others)

    def present(self, place: str, columns: list[str]) -> list[str]:
        """Those of a file's columns that are read.

        Raises:
          DataError: if one is missing.
        """
        for name in self.columns:
            if name not in columns:
                raise DataError(f"{place}: no column '{name}'; {did_you_mean(name, columns)}")
        return [name for name in (*self.columns, self._schema.group_size_field) if name in columns]

    def prepare(self, place: str, table: pa.Table) -> pa.Table:
        """The columns that are read, in one type whatever the file's.

        Args:
          place: the file, for messages.
          table: the columns that are present, as they stand in the file.

        Raises:
          DataError: if a column is of another type.
        """
        missing = pa.chunked_array([pa.nulls(len(table))])
        problems = table[PROBLEM].to_pylist() if PROBLEM in table.column_names else [None] * len(table)
        columns = {}
        for name in self.columns:
            # A row that could not be read has no columns.
            column = table[name] if name in table.column_names else missing
            if self._dtype(name) == "string":
                column, unclear = self._as_texts(name, column)
                for row in unclear:
                    problems[row] = problems[row] or Problem(_column(name), "a value holds its separator").encode()
            column = self._prepare(place, name, column)
            if name in self.dtypes and self.dtypes[name] in ("int64", "bool") and _is_floating(column.type):
                column, bad = _as_whole(column)
                for row, value in bad.items():
                    problems[row] = problems[row] or Problem(_column(name), f"{value} is not whole").encode()
            columns[name] = column
        size = self._schema.group_size_field
        if size in table.column_names and pa.types.is_integer(table[size].type):
            columns[size] = table[size].cast(pa.int64())
        if ROW in table.column_names:
            columns[ROW] = table[ROW]
        columns[PROBLEM] = pa.array(problems, pa.binary())
        return pa.table(columns)

    def _prepare(self, place: str, name: str, column: pa.ChunkedArray) -> pa.ChunkedArray:
        """A column of text, int64 or float64, or of lists of such."""
        dtype, kind = self._dtype(name), column.type
        inner = kind.value_type if _is_list(kind) else kind
        inner = inner.value_type if pa.types.is_dictionary(inner) else inner
        is_text, is_floating = _is_text(inner), pa.types.is_floating(inner)
        target = {"string": pa.large_binary(), "float32": pa.float64()}.get(dtype, pa.int64())
        if self._has_texts:
            target = pa.large_binary()
        elif target == pa.int64() and is_floating:
            # Whole numbers are floating ones where a table could not say otherwise that some are missing.
            target = pa.float64()
        is_number = is_floating or pa.types.is_integer(inner) or pa.types.is_boolean(inner)
        # An id may be told by its number.
        fits = is_text or (is_number and not is_floating) if dtype == "string" else is_number
        if not (fits or self._has_texts or pa.types.is_null(inner)) or (self.is_flat and _is_list(kind)):
            raise DataError(
                f"{place}: column '{name}' is {kind}, and data_config.input_fields says {_KINDS[dtype]}; change the "
                "field's input_type, or write the column so"
            )
        if is_number and target == pa.large_binary():
            column = column.cast(pa.list_(pa.string()) if _is_list(kind) else pa.string())
        if pa.types.is_integer(inner) and target == pa.float64():
            return column.cast(pa.list_(target) if _is_list(kind) else target, safe=False)
        return column.cast(pa.list_(target) if _is_list(kind) else target)

    def _dtype(self, name: str) -> Dtype:
        return "string" if name == self._schema.image.field else self.dtypes[name]

    def _as_texts(self, name: str, column: pa.ChunkedArray) -> tuple[pa.ChunkedArray, list[int]]:
        """Values that are lists as the text of the feature that reads them; the list of a group's samples stays.

        Also the rows whose text would be split elsewhere than the lists are.
        """
        depth, leaf = _depth(column.type)
        separators = self._separators.get(name, ["|"])
        own = depth if self.is_flat else depth - 1
        if name in self._vectors and depth == len(separators) and not _is_text(leaf):
            own = depth  # one vector for a whole group
        if not 0 < own <= len(separators):
            return column, []
        joined = [_join_lists(chunk, separators[:own]) for chunk in column.cast(_text_type(depth)).chunks]
        unclear = np.concatenate([np.zeros(0, bool), *(is_unclear for _, is_unclear in joined)])
        texts = pa.chunked_array([text for text, _ in joined], _text_type(depth - own))
        return texts, np.flatnonzero(unclear).tolist()

    def read(self, table: pa.Table) -> TypedRows:
        """The good groups of a table whose columns were checked."""
        table, kept, problems = self._whole_groups(table)
        size = self._group_sizes(table)
        flat = _Flat(size)
        values = {one.name: self._values(table[one.name], one, flat) for one in self._fields}
        image_path = self._image_path(table, flat)
        for name in self._schema.group_fields:
            if name in values:
                self._require_agreement(name, values[name], flat)
        for lists in self.aligned:
            counts = {name: _count_tags(_bytes(values[name]), separator) for name, separator in lists.items()}
            first, *others = counts
            for name in others:
                flat.refuse(
                    counts[first] != counts[name],
                    _column(first),
                    # Used before the next turn of the loop.
                    lambda i: f"{counts[first][i]} values, and {name} has {counts[name][i]}",  # noqa: B023
                )
        problems |= {int(kept[group]): problem for group, problem in flat.problems.items()}
        if flat.problems:
            of_good = flat.is_good[flat.group]
            values = {
                name: array.filter(pa.array(of_good)) if isinstance(array, pa.Array) else array[of_good]
                for name, array in values.items()
            }
            image_path, size, kept = image_path[flat.is_good], size[flat.is_good], kept[flat.is_good]
        return TypedRows(values, image_path, size, kept, problems)

    def texts(self, table: pa.Table) -> list[TextGroup | Problem]:
        """Each group of a table as texts, or what is wrong with it."""
        rows = self.read(table)
        columns = {name: table[name].to_pylist() for name in self.dtypes}
        groups: dict[int, TextGroup | Problem] = dict(rows.problems)
        for i, size, image in zip(rows.kept.tolist(), rows.group_size.tolist(), rows.image_path, strict=True):
            values = {}
            for name, column in columns.items():
                entries = column[i] if isinstance(column[i], list) else [column[i]] * size
                values[name] = [_text(entry) for entry in entries]
            groups[i] = TextGroup(size, image, values)
        return [groups[i] for i in range(len(table))]

    def _whole_groups(self, table: pa.Table) -> tuple[pa.Table, NDArray[np.int64], dict[int, Problem]]:
        """The groups whose lists have an entry a sample; which they are; what is wrong with others."""
        problems: dict[int, Problem] = {}
        if PROBLEM in table.column_names and table[PROBLEM].null_count < len(table):
            for group in np.flatnonzero(table[PROBLEM].is_valid()):
                problems[int(group)] = Problem.decode(table[PROBLEM][group].as_py())
        size = self._told_size(table)
        for name in self.columns:
            column = table[name]
            if not _is_list(column.type):
                continue
            length = pc.fill_null(pc.list_value_length(column), -1).to_numpy().astype(np.int64)
            size = length if size is None else size
            for group in np.flatnonzero(length != size):
                told = "is null" if length[group] < 0 else f"{length[group]} entries"
                problems.setdefault(int(group), Problem(_column(name), f"{told}, group size {size[group]}"))
        if size is not None:
            for group in np.flatnonzero(size <= 0):
                problems[int(group)] = Problem("row", f"group size {size[group]}, not 1 or more")
        kept = np.setdiff1d(np.arange(len(table)), list(problems))
        return (table.take(pa.array(kept)) if problems else table), kept, problems

    def _told_size(self, table: pa.Table) -> NDArray[np.int64] | None:
        name = self._schema.group_size_field
        return pc.fill_null(table[name], 0).to_numpy() if name in table.column_names else None

    def _group_sizes(self, table: pa.Table) -> NDArray[np.int64]:
        """Sizes of whole groups."""
        size = self._told_size(table)
        lists = (table[name] for name in self.columns if _is_list(table[name].type))
        of_lists = (pc.list_value_length(column).to_numpy().astype(np.int64) for column in lists)
        return next(of_lists, np.ones(len(table), np.int64)) if size is None else size

    def _values(self, column: pa.ChunkedArray, field: Field, flat: _Flat) -> NDArray[np.generic] | pa.Array:
        """A column's values `[S]`, missing ones replaced by the default."""
        values = _flatten(column, flat)
        if field.dtype == "string":
            return self._texts(values, field, flat)
        where = _column(field.name)
        values = self._parse(values, field, flat) if _is_text(values.type) else values
        if values.null_count:
            if field.name in self.labels and not field.optional:
                is_missing = values.is_null().to_numpy(zero_copy_only=False)
                flat.refuse(is_missing, where, lambda i: "the label is missing, and its field has no default_val")
            values = pc.fill_null(values, pa.scalar(field.default_value).cast(values.type, safe=False))
        array = values.to_numpy(zero_copy_only=False)
        if field.name in self.labels:
            return self._label(array, field, flat)
        if field.dtype == "float32":
            with np.errstate(over="ignore"):
                numbers = array.astype(np.float32)
            flat.refuse(~np.isfinite(numbers), where, lambda i: f"{array[i]} is no finite number")
            return numbers
        if field.dtype == "bool":
            flat.refuse((array != 0) & (array != 1), where, lambda i: f"{array[i]} is no bool")
        return array

    def _label(self, array: NDArray[np.generic], field: Field, flat: _Flat) -> NDArray[np.float32]:
        with np.errstate(over="ignore"):
            numbers = array.astype(np.float32)
        low, high, whole = self._schema.label_range(field.name)
        is_bad = ~(np.isfinite(numbers) & (numbers >= low) & (numbers <= high))
        if whole:
            is_bad |= numbers != np.round(numbers)
        kind = f"{'a class ' if whole else ''}from {low:g} to {high:g}" if np.isfinite(high) else "a finite number"
        flat.refuse(is_bad, _column(field.name), lambda i: f"label {array[i]} is not {kind}")
        return numbers

    def _parse(self, texts: pa.Array, field: Field, flat: _Flat) -> pa.Array:
        """Texts -> numbers; "" is missing."""
        texts = pc.if_else(pc.equal(pc.binary_length(texts), 0), None, texts)
        # A label may be a whole number or another, whatever its field says; a BOOL may be written out.
        dtype: Dtype = "float32" if field.name in self.labels and field.dtype != "bool" else field.dtype
        is_good = pc.fill_null(pc.match_substring_regex(texts, f"^(?:{VALUE_PATTERNS[dtype]})$"), True)
        kind = "bool" if dtype == "bool" else "number"
        is_bad = ~is_good.to_numpy(zero_copy_only=False)
        flat.refuse(is_bad, _column(field.name), lambda i: f"{_shown(texts[i].as_py())} is no {kind}")
        plain = pc.utf8_trim(pc.if_else(is_good, texts, None).cast(pa.string()), " \t")
        if dtype == "bool":
            return pc.or_(pc.equal(plain, "1"), pc.equal(pc.utf8_lower(plain), "true")).cast(pa.int64())
        plain = pc.replace_substring_regex(plain, r"^\+", "")
        return plain.cast(pa.int64() if dtype == "int64" else pa.float64())

    def _texts(self, values: pa.Array, field: Field, flat: _Flat) -> pa.Array:
        patterns = self._patterns.get(field.name, [])
        for pattern in patterns:
            matches = pc.match_substring_regex(values, f"^(?:{pattern})$")
            is_good = pc.or_(pc.fill_null(matches, True), pc.fill_null(pc.equal(pc.binary_length(values), 0), True))
            flat.refuse(
                ~is_good.to_numpy(zero_copy_only=False),
                _column(field.name),
                lambda i: f"{_shown(values[i].as_py())} is no value of the form its feature needs",
            )
        if field.default:
            is_empty = pc.fill_null(pc.equal(pc.binary_length(values), 0), True)
            values = pc.if_else(is_empty, pa.scalar(field.default).cast(values.type), values)
        return pc.fill_null(values.cast(pa.large_binary()), b"")

    def _image_path(self, table: pa.Table, flat: _Flat) -> NDArray[np.object_]:
        if not self._schema.image.field:
            return np.full(len(flat.first), b"", object)
        column = table[self._schema.image.field]
        if not _is_list(column.type):
            return _bytes(column.combine_chunks())
        paths = _bytes(_flatten(column, flat))
        self._require_agreement(self._schema.image.field, paths, flat)
        of_groups: NDArray[np.object_] = paths[flat.first]
        return of_groups

    def _require_agreement(self, name: str, values: NDArray[np.generic] | pa.Array, flat: _Flat) -> None:
        values = _bytes(values) if isinstance(values, pa.Array) else values
        of_first = values[flat.first[flat.group]]
        flat.refuse(
            values != of_first,
            _column(name),
            lambda i: (
                f"{_shown(values[i])}, but {_shown(of_first[i])} in sample 0 of the group; it must be the same for all"
            ),
        )


def _flatten(column: pa.ChunkedArray, flat: _Flat) -> pa.Array:
    """Values of samples `[S]`, as text where they are that, and numbers elsewhere."""
    values = column.combine_chunks()
    if _is_list(values.type):
        values = values.flatten()
    elif flat.size.max(initial=1) > 1:
        values = values.take(pa.array(flat.group))
    return values


def _bytes(values: pa.Array) -> NDArray[np.object_]:
    """Texts as bytes objects; b"" for a missing one."""
    texts: NDArray[np.object_] = pc.fill_null(values.cast(pa.large_binary()), b"").to_numpy(zero_copy_only=False)
    return texts


def _joined(values: pa.Array) -> NDArray[np.object_]:
    """All texts in one, and what separates them: [2].

    An object for every text, and its way into a tensor, would take longer than all else, and hold Python's lock.
    """
    separator = b"\x1f"
    while True:
        lists = pa.LargeListArray.from_arrays(pa.array([0, len(values)], pa.int64()), values)
        joined = pc.binary_join(lists, pa.scalar(separator, pa.large_binary()))[0].as_py()
        if joined.count(separator) == max(len(values) - 1, 0):
            return np.array([joined, separator], object)
        separator += secrets.token_bytes(4)  # some text contains it


def _split(joined: tf.Tensor, number: tf.Tensor) -> tf.Tensor:
    """The texts of `_joined`, string `[number]`."""
    return tf.raw_ops.StringSplitV2(input=joined[:1], sep=joined[1]).values[:number]


def _as_whole(column: pa.ChunkedArray) -> tuple[pa.Array, dict[int, float]]:
    """A column of floating numbers, or of lists of such, as int64; and row -> number, of those that are not whole."""
    whole = column.combine_chunks()
    values = whole.values if _is_list(whole.type) else whole
    numbers = values.to_numpy(zero_copy_only=False)  # missing ones are NaN
    is_missing = values.is_null().to_numpy(zero_copy_only=False)
    is_bad = ~is_missing & (~(np.abs(numbers) < 2**63) | (numbers != np.round(numbers)))
    integers = pa.array(np.where(is_bad | is_missing, 0, numbers).astype(np.int64), mask=is_missing)
    rows = np.flatnonzero(is_bad)
    if _is_list(whole.type):
        offsets = whole.offsets.to_numpy()
        rows = np.searchsorted(offsets, rows, side="right") - 1
        integers = pa.ListArray.from_arrays(whole.offsets.cast(pa.int32()), integers, mask=whole.is_null())
    return integers, dict(zip(rows.tolist(), numbers[is_bad].tolist(), strict=True))


def _is_floating(kind: pa.DataType) -> bool:
    return bool(pa.types.is_floating(kind.value_type if _is_list(kind) else kind))


def _depth(kind: pa.DataType) -> tuple[int, pa.DataType]:
    """Lists within each other, and what they hold."""
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
    """The innermost lists of texts, joined by the separators, the last of which is for the innermost.

    A null among the texts is an empty one. Also in which rows a text holds the separator that joins it.
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


def _is_text(kind: pa.DataType) -> bool:
    types = pa.types
    is_string = types.is_string(kind) or types.is_large_string(kind)
    return bool(is_string or types.is_binary(kind) or types.is_large_binary(kind))


def _count_tags(values: Iterable[bytes], separator: str) -> NDArray[np.int64]:
    part = separator.encode()
    return np.array([sum(map(bool, value.split(part))) for value in values], np.int64)


def _column(name: str) -> str:
    return f"column '{name}'"


def _shown(value: object) -> str:
    return repr(value.decode("utf-8", "replace")) if isinstance(value, bytes) else str(value)


def _text(value: object) -> str:
    if value is None:
        return ""
    return value.decode("utf-8", "replace") if isinstance(value, bytes) else str(value)
