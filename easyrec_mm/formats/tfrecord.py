"""Grouped samples as TFRecords: one tf.train.Example per group, written and read without TensorFlow.

    int64, bool        int64_list
    float32, float64   float_list, 32 bits
    string             bytes_list

A list contains one value per sample, or the one value of a group-level field. A list of numbers cannot represent a
missing number: it contains the field's default instead, and MISSING, a bytes_list, contains for each such field the
text "0,3,7 field" with the positions of the missing values. Missing texts are empty. If a writer is to keep numbers
that 32 bits cannot represent, it writes them to DOUBLES as well: a bytes_list of "field", a zero byte, and 64 bits per
value. Training does not read DOUBLES.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.checks import BadGroup, GroupProblems, Ints, Mask, SampleChecks, column_place, refuse_kind
from easyrec_mm.formats.columns import ARROW_TYPES, Kind, to_kind
from easyrec_mm.formats.grouped_table import (
    READ_GROUPS,
    GroupFields,
    Groups,
    GroupsPiece,
    empty_groups,
    one_a_group,
    pieces,
)
from easyrec_mm.protos.example_pb2 import Example, Feature

MISSING = "easyrec_mm/missing"
DOUBLES = "easyrec_mm/doubles"


class _List(NamedTuple):
    """The list of a Feature that contains the values of a kind, and the type of the values in it."""

    name: str
    arrow_type: pa.DataType

    def of(self, feature: Feature) -> Any:
        """Return the values of a feature, to be read or extended."""
        return getattr(feature, self.name).value


_LISTS: dict[Kind, _List] = {
    "string": _List("bytes_list", pa.binary()),
    "float32": _List("float_list", pa.float32()),
    "float64": _List("float_list", pa.float32()),
    "int64": _List("int64_list", pa.int64()),
    "bool": _List("int64_list", pa.int64()),
}
_CRC_MASK = 0xA282EAD8


class TfRecordWriter:
    """A GroupWriter of TFRecord files; `keep_doubles` also writes all 64 bits of the numbers that training rounds."""

    def __init__(self, path: str, fields: GroupFields, keep_doubles: bool = False) -> None:
        self._fields = fields
        self._keep_doubles = keep_doubles
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, groups: Groups) -> None:
        """See GroupWriter.write."""
        for start, end in pieces(len(groups.size)):
            some = groups.slice(start, end, self._fields)
            for record in encode(some, self._fields, self._keep_doubles):
                write_record(self._file, record)

    def close(self) -> None:
        """See GroupWriter.close."""
        self._file.close()


def write_record(stream: IO[bytes], record: bytes) -> None:
    """Write a record as TensorFlow frames it: length, its checksum, the record, its checksum."""
    length = struct.pack("<Q", len(record))
    stream.write(length + _checksum(length) + record + _checksum(record))


def _checksum(data: bytes) -> bytes:
    crc = google_crc32c.value(data)
    return struct.pack("<I", ((crc >> 15 | crc << 17) + _CRC_MASK) & 0xFFFFFFFF)


def encode(groups: Groups, fields: GroupFields, keep_doubles: bool = False) -> Iterator[bytes]:
    """Yield one serialized Example per group; the same groups result in the same bytes."""
    columns = [_Column(name, kind, groups.columns[name], fields, keep_doubles) for name, kind in fields.kinds.items()]
    ends = np.cumsum(groups.size)
    for group, (size, end) in enumerate(zip(groups.size.tolist(), ends.tolist(), strict=True)):
        example = Example()
        features = example.features.feature
        features[fields.size].int64_list.value.append(size)
        for column in columns:
            first, last = (group, group + 1) if column.is_per_group else (end - size, end)
            _LISTS[column.kind].of(features[column.name]).extend(column.values[first:last])
            missing = column.missing_places(first, last)
            if missing:
                features[MISSING].bytes_list.value.append(f"{missing} {column.name}".encode())
            doubles = column.doubles(first, last)
            if doubles:
                features[DOUBLES].bytes_list.value.append(column.name.encode() + b"\0" + doubles)
        yield example.SerializeToString(deterministic=True)


class _Column:
    """The values of a field as an Example contains them, with the default in place of a missing value."""

    def __init__(self, name: str, kind: Kind, column: pa.Array, fields: GroupFields, keep_doubles: bool) -> None:
        self.name, self.kind = name, kind
        self.is_per_group = name in fields.per_group
        self._is_missing: Mask | None = None
        if column.null_count:
            default = "" if kind == "string" else fields.defaults.get(name, 0)
            if kind != "string":
                self._is_missing = column.is_null().to_numpy(zero_copy_only=False)
            column = pc.fill_null(column, pa.scalar(default).cast(ARROW_TYPES[kind]))
        self._numbers: NDArray[np.float64] | None = None
        if keep_doubles and kind == "float64":
            self._numbers = column.to_numpy(zero_copy_only=False).astype("<f8")
        self.values: list[Any] = column.cast(_LISTS[kind].arrow_type).to_pylist()
        if self._numbers is not None:
            self._is_rounded = np.array(self.values) != self._numbers

    def missing_places(self, first: int, last: int) -> str:
        """Return the positions of the missing values, counted from `first`: "0,3,7"."""
        if self._is_missing is None:
            return ""
        return ",".join(map(str, np.flatnonzero(self._is_missing[first:last]).tolist()))

    def doubles(self, first: int, last: int) -> bytes:
        """Return these numbers in 64 bits; b"" if 32 bits can represent all of them, or they are not to be kept."""
        if self._numbers is None or not self._is_rounded[first:last].any():
            return b""
        return bytes(self._numbers[first:last].tobytes())


# --- Reading


def records(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """Yield the records of a TFRecord file.

    Raises:
      DataError: if a checksum is wrong, or the file is truncated.
    """
    row = 0
    while head := stream.read(12):
        row += 1
        length, crc = head[:8], head[8:]
        if len(head) < 12 or _checksum(length) != crc:
            what = "is truncated" if len(head) < 12 else "has a length whose checksum is wrong"
            raise DataError(f"{path}: record {row} {what}; write the file again")
        (size,) = struct.unpack("<Q", length)
        record, crc = stream.read(size), stream.read(4)
        if len(record) < size or len(crc) < 4 or _checksum(record) != crc:
            what = "is truncated" if len(crc) < 4 else "has a wrong checksum"
            raise DataError(f"{path}: record {row} {what}; write the file again")
        yield record


def is_tfrecord(path: str) -> bool:
    """Return whether a file begins like a TFRecord file, with a length and its checksum."""
    with open_binary(path) as stream:
        head = stream.read(12)
    return len(head) == 12 and _checksum(head[:8]) == head[8:]


def first_values(path: str) -> Iterator[dict[str, Any]]:
    """Yield, for each Example of a file, the first value of each feature that is not empty.

    Raises:
      DataError: if a record is damaged or is not an Example.
    """
    with open_binary(path) as stream:
        for row, record in enumerate(records(stream, path), 1):
            try:
                feature = Example.FromString(record).features.feature
            except DecodeError as error:
                raise DataError(f"{path}: record {row} is not a tf.train.Example; write the file again") from error
            found = {name: getattr(one, one.WhichOneof("kind") or "bytes_list").value for name, one in feature.items()}
            yield {name: values[0] for name, values in found.items() if values}


def read_tfrecord(path: str, fields: GroupFields, checks: SampleChecks | None = None) -> Iterator[GroupsPiece]:
    """Yield the groups of a file; `checks` as for `decode`.

    Raises:
      DataError: if the file cannot be read.
    """
    try:
        with open_binary(path) as stream:
            found: list[bytes] = []
            first = 1
            for record in records(stream, path):
                found.append(record)
                if len(found) == READ_GROUPS:
                    yield decode(found, first, fields, checks)
                    first += len(found)
                    found = []
            if found:
                yield decode(found, first, fields, checks)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def decode(
    examples: list[bytes], first_row: int, fields: GroupFields, checks: SampleChecks | None = None
) -> GroupsPiece:
    """Decode serialized tf.train.Examples to groups.

    Args:
      examples: serialized Examples.
      first_row: row of the first Example.
      fields: fields of the groups.
      checks: checks the values as training does; None to check only that they are of their kinds.
    """
    refused: list[BadGroup] = []
    values: dict[str, list[Any]] = {name: [] for name in fields.kinds}
    sizes, rows = [], []
    for row, data in enumerate(examples, first_row):
        problem, size, group = _group(data, fields)
        if problem:
            refused.append(BadGroup(row, *problem))
            continue
        sizes.append(size)
        rows.append(row)
        for name, some in group.items():
            values[name] += some
    size_array: Ints = np.array(sizes, np.int64)
    row_array: Ints = np.array(rows, np.int64)
    if not sizes:
        return GroupsPiece(empty_groups(fields), row_array, refused)
    problems = GroupProblems(size_array)
    columns: dict[str, pa.Array] = {}
    for name, kind in fields.kinds.items():
        column = _column(name, kind, values[name], problems)
        columns[name] = pc.fill_null(column, "") if name == fields.image else column
    if checks is not None:
        checks.check(columns, problems)
    for name in filter(fields.per_group.__contains__, fields.kinds):
        columns[name] = one_a_group(name, columns[name], fields, problems)
    refused += problems.at_rows(row_array)
    good = ~problems.is_bad
    return GroupsPiece(Groups(size_array, columns).select(good, fields), row_array[good], sorted(refused))


def _column(name: str, kind: Kind, values: list[Any], problems: GroupProblems) -> pa.Array:
    """Convert the values of samples to their kind; groups with invalid values are refused."""
    if kind in ("float32", "float64"):
        column = pa.array(values, ARROW_TYPES[kind])
        is_bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False)
        problems.refuse_samples(is_bad, column_place(name), lambda i: f"{values[i]} is not a finite number")
        return column
    column = pa.array(values, pa.binary() if kind == "string" else pa.int64())
    if kind != "string":
        typed = to_kind(column, kind, strict=True)
        refuse_kind(typed.is_bad, column, name, kind, problems.refuse_samples)
        return typed.values
    typed = to_kind(column, "string")
    refuse_kind(typed.is_bad, column, name, kind, problems.refuse_samples)
    return pc.if_else(pc.equal(typed.values, ""), None, typed.values)


def _group(data: bytes, fields: GroupFields) -> tuple[tuple[str, str] | None, int, dict[str, list[Any]]]:
    """Return what is wrong with an Example, or its size and the values of its samples, None for a missing value."""
    nothing: dict[str, list[Any]] = {}
    try:
        feature = Example.FromString(data).features.feature
    except DecodeError:
        return ("record", "is not a tf.train.Example"), 0, nothing
    lists: dict[str, list[Any]] = {}
    for name, kind in fields.kinds.items():
        if name not in feature:
            return (column_place(name), f"is missing; {did_you_mean(name, feature)}"), 0, nothing
        which = _LISTS[kind].name
        found = feature[name].WhichOneof("kind")
        if found not in (which, None):
            return (column_place(name), f"is a {found}, not a {which}"), 0, nothing
        lists[name] = list(_LISTS[kind].of(feature[name]))
    for entry in feature[DOUBLES].bytes_list.value if DOUBLES in feature else ():
        told, _, numbers = entry.partition(b"\0")
        name = told.decode()
        if len(numbers) == 8 * len(lists.get(name, ())):
            lists[name] = np.frombuffer(numbers, "<f8").tolist()
    for text in feature[MISSING].bytes_list.value if MISSING in feature else ():
        places, _, name = text.decode().partition(" ")
        for place in places.split(",") if name in lists else ():
            lists[name][int(place)] = None
    sizes = list(feature[fields.size].int64_list.value) if fields.size in feature else []
    of_samples = (len(some) for name, some in lists.items() if name not in fields.per_group)
    size = sizes[0] if len(sizes) == 1 else next(of_samples, 1)
    if size <= 0:
        return (column_place(fields.size), f"group size {size} is not 1 or more"), 0, nothing
    for name, some in lists.items():
        if len(some) == 1:
            lists[name] = some * size
        elif len(some) != size:
            return (column_place(name), f"{len(some)} entries, group size {size}"), 0, nothing
    return None, size, lists


def count_tfrecord(path: str, fields: GroupFields) -> tuple[int, int]:
    """Return the number of groups and samples of a file that TfRecordWriter wrote."""
    num_groups = num_samples = 0
    with open(path, "rb") as stream:
        for record in records(stream, path):
            num_groups += 1
            num_samples += Example.FromString(record).features.feature[fields.size].int64_list.value[0]
    return num_groups, num_samples
