"""Grouped samples as TFRecords: one tf.train.Example a group, written and read without TensorFlow.

    int64, bool        int64_list
    float32, float64   float_list, 32 bits
    string             bytes_list

A list holds a value a sample, or one value of a group-level field. It has no place for a missing number: the field's
default stands there, and MISSING, a bytes_list, holds for each field with such places the text "0,3,7 field", by which
they are told from real values. Missing texts are empty. Numbers that 32 bits do not hold stand, where a writer is to
keep them, in DOUBLES as well: a bytes_list of "field", a zero byte, and 64 bits a value. Training does not read it.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import IO, Any

import google_crc32c
import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.message import DecodeError

from easyrec_mm.errors import DataError, did_you_mean
from easyrec_mm.files.opening import open_binary
from easyrec_mm.formats.columns import ARROW_TYPES, Kind, to_kind
from easyrec_mm.formats.grouped_table import (
    READ_GROUPS,
    BadGroup,
    GroupFields,
    Groups,
    GroupsPiece,
    Ints,
    Problems,
    empty_groups,
    offsets,
    one_a_group,
    pieces,
)

MISSING = "easyrec_mm/missing"
DOUBLES = "easyrec_mm/doubles"

# Field numbers of tf.train.Feature's lists.
_LISTS: dict[Kind, tuple[str, int]] = {
    "string": ("bytes_list", 1),
    "float32": ("float_list", 2),
    "float64": ("float_list", 2),
    "int64": ("int64_list", 3),
    "bool": ("int64_list", 3),
}
_BINARY = pa.binary()
_NOTHING = pa.scalar(b"", _BINARY)
_CRC_MASK = 0xA282EAD8


class TfRecordWriter:
    """A GroupWriter. `keep_doubles` is whether numbers of 64 bits are written whole, beside what training reads."""

    def __init__(self, path: str, fields: GroupFields, keep_doubles: bool = False) -> None:
        self._fields = fields
        self._keep_doubles = keep_doubles
        self._file = open(path, "wb")  # noqa: SIM115

    def write(self, groups: Groups) -> None:
        """See GroupWriter.write."""
        for start, end in pieces(len(groups.size)):
            some = groups.slice(start, end, self._fields)
            for record in encode(some, self._fields, self._keep_doubles).to_pylist():
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


def encode(groups: Groups, fields: GroupFields, keep_doubles: bool = False) -> pa.Array:
    """Serialized tf.train.Examples, binary [G]. The group size is the first feature."""
    features = [_feature(fields.size, "int64", _packed_whole(pa.array(groups.size), None))]
    of_lists = offsets(groups.size)
    missing, doubles = [], []
    for name, kind in fields.kinds.items():
        column = groups.columns[name]
        limits = None if name in fields.per_group else of_lists
        if column.null_count and kind != "string":
            missing.append(_missing_places(name, column, limits))
        column = _filled(column, name, kind, fields)
        if keep_doubles and kind == "float64":
            doubles.append(_doubles(name, column, limits))
        features.append(_feature(name, kind, _values(column, kind, limits)))
    for name, notes in ((MISSING, missing), (DOUBLES, doubles)):
        if notes:
            entries = _join(*(pc.fill_null(_delimited(1, some), b"") for some in notes))
            feature = _feature(name, "string", entries)
            features.append(pc.if_else(pc.equal(pc.binary_length(entries), 0), _NOTHING, feature))
    return _delimited(1, _join(*features))


def _filled(column: pa.Array, name: str, kind: Kind, fields: GroupFields) -> pa.Array:
    if not column.null_count:
        return column
    default = "" if kind == "string" else fields.defaults.get(name, 0)
    return pc.fill_null(column, pa.scalar(default).cast(ARROW_TYPES[kind]))


def _values(column: pa.Array, kind: Kind, limits: pa.Array | None) -> pa.Array:
    """What stands in a list, binary [G]; `limits` are the lists' offsets, None if each has one value."""
    if kind == "string":
        return _joined_lists(_delimited(1, column.cast(_BINARY)), limits)
    if kind in ("int64", "bool"):
        return _packed_whole(column.cast(pa.int64()), limits)
    data = column.cast(pa.float32()).to_numpy(zero_copy_only=False).astype("<f4")
    ends = 4 * (np.arange(len(column) + 1) if limits is None else limits.to_numpy())
    packed = pa.Array.from_buffers(
        _BINARY, len(ends) - 1, [None, pa.py_buffer(ends.astype(np.int32)), pa.py_buffer(data)]
    )
    return _delimited(1, packed)


def _packed_whole(column: pa.Array, limits: pa.Array | None) -> pa.Array:
    encoded = column.dictionary_encode()
    varints = pa.array([_varint(value) for value in encoded.dictionary.to_pylist()], _BINARY)
    return _delimited(1, _joined_lists(varints.take(encoded.indices), limits))


def _joined_lists(values: pa.Array, limits: pa.Array | None) -> pa.Array:
    return values if limits is None else pc.binary_join(pa.ListArray.from_arrays(limits, values), _NOTHING)


def _feature(name: str, kind: Kind, values: pa.Array) -> pa.Array:
    """An entry of the map of features, with its field number."""
    key = b"\x0a" + _varint(len(name.encode())) + name.encode()
    feature = _delimited(2, _delimited(_LISTS[kind][1], values))
    return _delimited(1, _join(pa.scalar(key, _BINARY), feature))


def _delimited(number: int, content: pa.Array) -> pa.Array:
    """A protobuf field of that number with each content, binary; null stays null."""
    lengths = pc.fill_null(pc.binary_length(content), 0).to_numpy(zero_copy_only=False)
    distinct, which = np.unique(lengths, return_inverse=True)
    heads = pa.array([_varint(number << 3 | 2) + _varint(length) for length in distinct.tolist()], _BINARY)
    return _join(heads.take(pa.array(which)), content)


def _join(*parts: pa.Array | pa.Scalar) -> pa.Array:
    return pc.binary_join_element_wise(*parts, _NOTHING)


def _varint(value: int) -> bytes:
    value &= (1 << 64) - 1  # negative numbers as two's complement
    data = bytearray()
    while value > 127:
        data.append(value & 127 | 128)
        value >>= 7
    data.append(value)
    return bytes(data)


def _missing_places(name: str, column: pa.Array, limits: pa.Array | None) -> pa.Array:
    """The text that tells where values of a field are missing, binary [G]; null where none is."""
    is_null = column.is_null().to_numpy(zero_copy_only=False)
    starts = np.arange(len(column) + 1) if limits is None else limits.to_numpy().astype(np.int64)
    size = np.diff(starts)
    places = pa.array((np.arange(len(column)) - np.repeat(starts[:-1], size))[is_null]).cast(pa.string())
    group = np.repeat(np.arange(len(size)), size)[is_null]
    counts = np.bincount(group, minlength=len(size))
    lists = pa.ListArray.from_arrays(offsets(counts), places)
    texts = pc.binary_join_element_wise(pc.binary_join(lists, ","), name, " ").cast(_BINARY)
    return pc.if_else(pa.array(counts > 0), texts, pa.scalar(None, _BINARY))


def _doubles(name: str, column: pa.Array, limits: pa.Array | None) -> pa.Array:
    """The entry of DOUBLES, binary [G]; null where 32 bits hold all values of a group."""
    numbers = column.to_numpy(zero_copy_only=False).astype("<f8")
    starts = np.arange(len(numbers) + 1) if limits is None else limits.to_numpy().astype(np.int64)
    num_rounded = np.cumsum(np.concatenate([[0], numbers.astype(np.float32) != numbers]))[starts]
    buffers = [None, pa.py_buffer((8 * starts).astype(np.int32)), pa.py_buffer(numbers)]
    entries = _join(pa.scalar(name.encode() + b"\0", _BINARY), pa.Array.from_buffers(_BINARY, len(starts) - 1, buffers))
    return pc.if_else(pa.array(np.diff(num_rounded) > 0), entries, pa.scalar(None, _BINARY))


# --- Reading


def records(stream: IO[bytes], path: str) -> Iterator[bytes]:
    """Records of a TFRecord file.

    Raises:
      DataError: if a checksum is wrong, or the file breaks off.
    """
    row = 0
    while head := stream.read(12):
        row += 1
        length, crc = head[:8], head[8:]
        if len(head) < 12 or _checksum(length) != crc:
            what = "breaks off" if len(head) < 12 else "has a length whose checksum is wrong"
            raise DataError(f"{path}: record {row} {what}; write the file again")
        (size,) = struct.unpack("<Q", length)
        record, crc = stream.read(size), stream.read(4)
        if len(record) < size or len(crc) < 4 or _checksum(record) != crc:
            what = "breaks off" if len(crc) < 4 else "has a wrong checksum"
            raise DataError(f"{path}: record {row} {what}; write the file again")
        yield record


def is_tfrecord(path: str) -> bool:
    """Whether a file begins as a TFRecord does, with a length and its checksum."""
    with open_binary(path) as stream:
        head = stream.read(12)
    return len(head) == 12 and _checksum(head[:8]) == head[8:]


def first_values(path: str) -> Iterator[dict[str, Any]]:
    """The first value of each feature that has one, of each Example of a file.

    Raises:
      DataError: if a record is damaged or no Example.
    """
    with open_binary(path) as stream:
        for row, record in enumerate(records(stream, path), 1):
            try:
                feature = _EXAMPLE.FromString(record).features.feature
            except DecodeError as error:
                raise DataError(f"{path}: record {row} is no tf.train.Example; write the file again") from error
            found = {name: getattr(one, one.WhichOneof("kind") or "bytes_list").value for name, one in feature.items()}
            yield {name: values[0] for name, values in found.items() if values}


def read_tfrecord(path: str, fields: GroupFields) -> Iterator[GroupsPiece]:
    """The groups of a file.

    Raises:
      DataError: if it cannot be read.
    """
    try:
        with open_binary(path) as stream:
            found: list[bytes] = []
            first = 1
            for record in records(stream, path):
                found.append(record)
                if len(found) == READ_GROUPS:
                    yield decode(found, first, fields)
                    first += len(found)
                    found = []
            if found:
                yield decode(found, first, fields)
    except (OSError, EOFError) as error:
        raise DataError(f"{path}: cannot be read: {error}") from error


def decode(examples: list[bytes], first_row: int, fields: GroupFields) -> GroupsPiece:
    """Serialized tf.train.Examples -> groups; `first_row` is the row of the first."""
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
    problems = Problems(size_array)
    columns: dict[str, pa.Array] = {}
    for name, kind in fields.kinds.items():
        column = _column(name, kind, values[name], size_array, problems)
        column = pc.fill_null(column, "") if name == fields.image else column
        columns[name] = one_a_group(name, column, size_array, problems) if name in fields.per_group else column
    refused += problems.bad_groups(row_array)
    good = ~problems.is_bad
    return GroupsPiece(Groups(size_array, columns).select(good, fields), row_array[good], sorted(refused))


def _column(name: str, kind: Kind, values: list[Any], size: Ints, problems: Problems) -> pa.Array:
    """Values of samples in their kind."""
    if kind in ("float32", "float64"):
        column = pa.array(values, ARROW_TYPES[kind])
        is_bad = pc.fill_null(pc.invert(pc.is_finite(column)), False).to_numpy(zero_copy_only=False)
        problems.refuse_samples(is_bad, f"feature '{name}'", lambda i: f"{values[i]} is no finite number")
        return column
    column = pa.array(values, pa.binary() if kind == "string" else pa.int64())
    if kind != "string":
        return column.cast(ARROW_TYPES[kind], safe=False)
    typed = to_kind(column, "string")
    if typed.is_bad is not None:
        problems.refuse_samples(typed.is_bad, f"feature '{name}'", lambda i: f"{values[i]!r} is no UTF-8")
    return pc.if_else(pc.equal(typed.values, ""), None, typed.values)


def _group(data: bytes, fields: GroupFields) -> tuple[tuple[str, str] | None, int, dict[str, list[Any]]]:
    """What is wrong with an Example, or its size and the values of its samples, None where one is missing."""
    nothing: dict[str, list[Any]] = {}
    try:
        feature = _EXAMPLE.FromString(data).features.feature
    except DecodeError:
        return ("record", "is no tf.train.Example"), 0, nothing
    lists: dict[str, list[Any]] = {}
    for name, kind in fields.kinds.items():
        if name not in feature:
            return (f"feature '{name}'", f"is missing; {did_you_mean(name, feature)}"), 0, nothing
        which = _LISTS[kind][0]
        found = feature[name].WhichOneof("kind")
        if found not in (which, None):
            return (f"feature '{name}'", f"is a {found}, not a {which}"), 0, nothing
        lists[name] = list(getattr(feature[name], which).value)
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
        return (f"feature '{fields.size}'", f"group size {size}, not 1 or more"), 0, nothing
    for name, some in lists.items():
        if len(some) == 1:
            lists[name] = some * size
        elif len(some) != size:
            return (f"feature '{name}'", f"{len(some)} entries, group size {size}"), 0, nothing
    return None, size, lists


def count_tfrecord(path: str, fields: GroupFields) -> tuple[int, int]:
    """Groups and samples of a file that TfRecordWriter wrote: by the first feature, the group size."""
    head = b"\x0a" + _varint(len(fields.size.encode())) + fields.size.encode()
    num_groups = num_samples = 0
    with open(path, "rb") as stream:
        for record in records(stream, path):
            num_groups += 1
            # Behind the name: three lengths, each with its tag and below 128, and the number.
            start = record.index(head) + len(head) + 6
            value, shift = 0, 0
            while True:
                byte = record[start]
                value |= (byte & 127) << shift
                if byte < 128:
                    break
                start, shift = start + 1, shift + 7
            num_samples += value
    return num_groups, num_samples


def _example_class() -> Any:
    """The class of tf.train.Example, in a pool of its own, beside which TensorFlow's may be loaded."""
    file = descriptor_pb2.FileDescriptorProto(name="easyrec_mm/example.proto", package="tensorflow", syntax="proto3")

    def message(name: str, *parts: tuple[str, int, int, str]) -> Any:
        added = file.message_type.add(name=name)
        for field, number, kind, type_name in parts:
            one = added.field.add(name=field, number=number, type=kind, type_name=type_name or None)  # type: ignore
            one.label = one.LABEL_REPEATED if field in ("value", "feature") else one.LABEL_OPTIONAL
        return added

    kinds = descriptor_pb2.FieldDescriptorProto
    nested = kinds.TYPE_MESSAGE
    message("BytesList", ("value", 1, kinds.TYPE_BYTES, ""))
    message("FloatList", ("value", 1, kinds.TYPE_FLOAT, ""))
    message("Int64List", ("value", 1, kinds.TYPE_INT64, ""))
    names = (("bytes_list", "BytesList"), ("float_list", "FloatList"), ("int64_list", "Int64List"))
    lists = [(name, i, nested, f".tensorflow.{kind}") for i, (name, kind) in enumerate(names, 1)]
    feature = message("Feature", *lists)
    feature.oneof_decl.add(name="kind")
    for one in feature.field:
        one.oneof_index = 0
    features = message("Features", ("feature", 1, nested, ".tensorflow.Features.FeatureEntry"))
    entry = features.nested_type.add(name="FeatureEntry")
    entry.options.map_entry = True
    entry.field.add(name="key", number=1, type=kinds.TYPE_STRING, label=kinds.LABEL_OPTIONAL)
    entry.field.add(name="value", number=2, type=nested, label=kinds.LABEL_OPTIONAL, type_name=".tensorflow.Feature")
    message("Example", ("features", 1, nested, ".tensorflow.Features"))
    pool = descriptor_pool.DescriptorPool()
    pool.AddSerializedFile(file.SerializeToString())
    return message_factory.GetMessageClass(pool.FindMessageTypeByName("tensorflow.Example"))


_EXAMPLE = _example_class()
