"""The index of a checkpoint: which values it contains, and where they lie; every byte of it is verified.

TensorFlow verifies the checksum of every value that it reads, but not of all that stands in the index: what lists the
names ends without an error at a damaged block, so that a checkpoint seems to lack variables. The index is therefore
read here: a table of LevelDB, whose format is that of
https://github.com/google/leveldb/blob/main/doc/table_format.md, with tensor_bundle.proto's messages as values.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import google_crc32c
import tensorflow as tf
from google.protobuf.message import DecodeError
from tensorflow.core.protobuf import tensor_bundle_pb2

from easyrec_mm.errors import DamagedCheckpointError

_MAGIC = (0xDB4775248B80FB57).to_bytes(8, "little")
_FOOTER_BYTES = 48
# Behind each block: whether it is compressed, and the checksum of both.
_TRAILER_BYTES = 5
_HASH_BYTES = 16


class Entry(NamedTuple):
    """A value of a checkpoint."""

    shape: list[int]
    dtype: tf.DType


class Index(NamedTuple):
    """The index of a checkpoint.

    entries  the values by name
    digest   a hash of the index, which contains the checksum of each value: equal only for equal checkpoints
    """

    entries: dict[str, Entry]
    digest: str


class _DamageError(Exception):
    """What is wrong with an index."""


def read_index(path: str, with_values: bool = True) -> Index:
    """Read the index of a checkpoint, and, `with_values`, check that the files of its values are long enough.

    Raises:
      DamagedCheckpointError: if a byte of the index is not as it was written, or values are missing.
    """
    try:
        content = Path(f"{path}.index").read_bytes()
        messages = dict(_pairs(content))
        entries = _entries(path, messages, with_values)
    except OSError as error:
        file = Path(error.filename).name
        raise DamagedCheckpointError(f"{path}: is not a readable checkpoint: {file}: {error.strerror}") from error
    except (_DamageError, DecodeError, IndexError, ValueError, TypeError) as error:
        raise DamagedCheckpointError(f"{path}: is not a readable checkpoint: {error}") from error
    return Index(entries, hashlib.blake2b(content, digest_size=_HASH_BYTES).hexdigest())


def _entries(path: str, messages: dict[bytes, bytes], with_values: bool) -> dict[str, Entry]:
    """Decode the messages of an index; `with_values`, compare the sizes of the files with them."""
    if b"" not in messages:
        raise _DamageError("its index has no header")
    header = tensor_bundle_pb2.BundleHeaderProto.FromString(messages.pop(b""))
    ends = dict.fromkeys(range(header.num_shards), 0)
    entries = {}
    for key, message in messages.items():
        entry = tensor_bundle_pb2.BundleEntryProto.FromString(message)
        ends[entry.shard_id] = max(ends.get(entry.shard_id, 0), entry.offset + entry.size)
        # The keys of the slices of a value begin with a null byte.
        if not key.startswith(b"\0"):
            entries[key.decode()] = Entry([dim.size for dim in entry.shape.dim], tf.as_dtype(entry.dtype))
    for shard, end in ends.items() if with_values else ():
        file = Path(f"{path}.data-{shard:05d}-of-{header.num_shards:05d}")
        size = file.stat().st_size
        if size < end:
            raise _DamageError(f"{file.name} has {size:,} of {end:,} bytes")
    return entries


def _pairs(content: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a table, all of whose bytes are verified.

    Raises:
      _DamageError: if a byte is not as it was written.
    """
    footer = content[-_FOOTER_BYTES:]
    if len(footer) < _FOOTER_BYTES or not footer.endswith(_MAGIC):
        raise _DamageError("its index is cut or overwritten")
    meta, at = _handle(footer, 0)
    index, at = _handle(footer, at)
    blocks = [_handle(value, 0)[0] for _, value in _block(content, index)]
    # The blocks follow each other without gaps, so that their checksums cover everything before the footer.
    start = 0
    for offset, size in (*blocks, meta, index):
        if offset != start:
            raise _DamageError("its index is damaged")
        start = offset + size + _TRAILER_BYTES
    if start != len(content) - _FOOTER_BYTES or any(footer[at : -len(_MAGIC)]):
        raise _DamageError("its index is damaged")
    for _ in _block(content, meta):
        pass
    for handle in blocks:
        yield from _block(content, handle)


def _block(content: bytes, handle: tuple[int, int]) -> Iterator[tuple[bytes, bytes]]:
    """Yield the keys and values of a block, after verifying its checksum."""
    offset, size = handle
    end = offset + size
    crc = google_crc32c.value(content[offset : end + 1])
    masked = (((crc >> 15) | (crc << 17)) + 0xA282EAD8) & 0xFFFFFFFF
    if masked.to_bytes(4, "little") != content[end + 1 : end + _TRAILER_BYTES]:
        raise _DamageError("its index is damaged")
    if content[end]:
        raise _DamageError("its index is compressed")
    block = content[offset:end]
    # The last four bytes count the places, of four bytes each, where keys are written out.
    end = size - 4 - 4 * int.from_bytes(block[-4:], "little")
    at, key = 0, b""
    while at < end:
        num_shared, at = _varint(block, at)
        num_own, at = _varint(block, at)
        num_value, at = _varint(block, at)
        key = key[:num_shared] + block[at : at + num_own]
        at += num_own
        yield key, block[at : at + num_value]
        at += num_value


def _handle(content: bytes, at: int) -> tuple[tuple[int, int], int]:
    """Return the offset and the size of a block, and where the next number begins."""
    offset, at = _varint(content, at)
    size, at = _varint(content, at)
    return (offset, size), at


def _varint(content: bytes, at: int) -> tuple[int, int]:
    """Return a number, and where the next one begins."""
    number = shift = 0
    while True:
        byte = content[at]
        number |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return number, at
