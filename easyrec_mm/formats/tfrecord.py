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
from collections.abc import Iterator, Mapping, Sequence
from typing import IO, Any, NamedTuple

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf.message import DecodeError
from numpy.typing import NDArray

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.features.field import Dtype, Kind
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.checks import Mask, Problem, column_place
from easyrec_mm.formats.columns import ARROW_TYPES
from easyrec_mm.formats.grouped_table import GroupFields, Groups, GroupsPiece, numbered, piece_of, pieces
from easyrec_mm.formats.typed_groups import PROBLEM, TypedGroups, TypedRows
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
# Types in which the values of Examples are read; numbers of 32 bits stay the same in 64.
_TYPES: dict[Dtype, pa.DataType] = {
    "int64": pa.int64(),
    "bool": pa.int64(),
    "float32": pa.float64(),
    "string": pa.binary(),
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
            piece = groups.slice(start, end, self._fields)
            for record in encode(piece, self._fields, self._keep_doubles):
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
            problem = "is truncated" if len(head) < 12 else "has a length whose checksum is wrong"
            raise DataError(f"{path}: record {row} {problem}; write the file again")
        (size,) = struct.unpack("<Q", length)
        record, crc = stream.read(size), stream.read(4)
        if len(record) < size or len(crc) < 4 or _checksum(record) != crc:
            problem = "is truncated" if len(crc) < 4 else "has a wrong checksum"
            raise DataError(f"{path}: record {row} {problem}; write the file again")
        yield record


def is_tfrecord(path: str) -> bool:
    """Return whether a file begins like a TFRecord file, with a length and its checksum."""
    with open_binary(path) as stream:
        head = stream.read(12)
    return len(head) == 12 and _checksum(head[:8]) == head[8:]


def feature_names(path: str, record: bytes) -> list[str]:
    """Return the names of the features of a file's first record.

    Raises:
      DataError: if it is not an Example.
    """
    try:
        return list(Example.FromString(record).features.feature)
    except DecodeError as error:
        raise DataError(f"{path}: record 1 is not a tf.train.Example; write the file again") from error


def read_tfrecord(path: str, fields: GroupFields, groups: TypedGroups) -> Iterator[GroupsPiece]:
    """Yield the groups of a file.

    Args:
      path: path of the file, gzip or not.
      fields: fields of the groups.
      groups: the same fields as training reads them; it checks the values.

    Raises:
      DataError: if the file cannot be read.
    """
    try:
        with open_binary(path) as stream:
            for rows, portion in numbered(records(stream, path)):
                yield piece_of(read_examples(portion, groups), fields, rows)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def read_examples(examples: Sequence[bytes], groups: TypedGroups) -> TypedRows:
    """Return the valid groups among serialized tf.train.Examples, [N]; numbers are as exact as `groups` is."""
    kinds = {name: groups.schema.field(name).dtype for name in groups.dtypes}
    if groups.schema.image.field:
        kinds[groups.schema.image.field] = "string"
    lists: dict[str, list[list[Any] | None]] = {name: [] for name in kinds}
    sizes: list[int] = []
    problems: list[bytes | None] = []
    for data in examples:
        example = _read_example(data, kinds, groups)
        size, values = example if not isinstance(example, Problem) else (1, {})
        problems.append(example.encode() if isinstance(example, Problem) else None)
        sizes.append(size)
        for name, column in lists.items():
            column.append(values.get(name))
    columns = {name: pa.array(lists[name], pa.list_(_TYPES[dtype])) for name, dtype in kinds.items()}
    if groups.schema.group_size_field:
        columns[groups.schema.group_size_field] = pa.array(sizes, pa.int64())
    table = pa.table({**columns, PROBLEM: pa.array(problems, pa.binary())})
    return groups.read(groups.prepare("", table))


def _read_example(data: bytes, kinds: dict[str, Dtype], groups: TypedGroups) -> Problem | tuple[int, dict[str, Any]]:
    """Return the number of samples of an Example, and the lists of their values; or what is wrong with it."""
    try:
        feature = Example.FromString(data).features.feature
    except DecodeError:
        return Problem("record", "is not a tf.train.Example")
    lists: dict[str, list[Any]] = {}
    for name, dtype in kinds.items():
        if name not in feature:
            return Problem(column_place(name), f"is missing; {did_you_mean(name, feature)}")
        kind, written_kind = _LISTS[dtype].name, feature[name].WhichOneof("kind")
        if written_kind not in (kind, None):
            return Problem(column_place(name), f"is a {written_kind}, not a {kind}")
        lists[name] = list(_LISTS[dtype].of(feature[name]))
    if groups.is_exact:
        _restore(feature, lists)
    schema = groups.schema
    per_group = {schema.image.field, *schema.group_fields}
    of_samples = [values for name, values in lists.items() if name not in per_group]
    if schema.group_size_field in feature:
        size = max(feature[schema.group_size_field].int64_list.value, default=0)
    else:
        size = len(of_samples[0]) if of_samples else 1
    return size, {
        name: values * size if len(values) == 1 and name in per_group else values for name, values in lists.items()
    }


def _restore(feature: Mapping[str, Feature], lists: dict[str, list[Any]]) -> None:
    """Put the numbers of DOUBLES and the missing values of MISSING back into the lists."""
    for entry in feature[DOUBLES].bytes_list.value if DOUBLES in feature else ():
        name, _, numbers = entry.partition(b"\0")
        if len(numbers) == 8 * len(lists.get(name.decode(), ())):
            lists[name.decode()] = np.frombuffer(numbers, "<f8").tolist()
    for text in feature[MISSING].bytes_list.value if MISSING in feature else ():
        places, _, field = text.decode().partition(" ")
        for place in places.split(",") if field in lists else ():
            lists[field][int(place)] = None


def count_tfrecord(path: str, fields: GroupFields) -> tuple[int, int]:
    """Return the number of groups and samples of a file that TfRecordWriter wrote."""
    num_groups = num_samples = 0
    with open(path, "rb") as stream:
        for record in records(stream, path):
            num_groups += 1
            num_samples += Example.FromString(record).features.feature[fields.size].int64_list.value[0]
    return num_groups, num_samples
